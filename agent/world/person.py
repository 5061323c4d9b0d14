"""A person at a browser: fetches the real pages, fills in the real forms, presses the real buttons."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from identity.errors import DeputizeError
from identity.principal import Principal

from .installation import PersonRecord

__all__ = ["Person"]


class Person:
    """One of the world's people, with a browser of their own.

    A *request* is what an interrupt shows: a mapping with ``url`` and, for a login, ``code``.

    Args:
        mount: replaces the network (an in-process ASGI application in tests).
    """

    def __init__(
        self, record: PersonRecord, principal: Principal, mount: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.principal = principal
        self._record = record
        self._browser = httpx.AsyncClient(transport=mount, follow_redirects=False, trust_env=False, timeout=20)

    async def close(self) -> None:
        """Close the browser."""
        await self._browser.aclose()

    async def sign_in(self, request: Mapping[str, Any]) -> str:
        """Sign in where a login request says: type its code, or agree at its authorization URL. Returns the last page.

        For an authorization URL, the last "page" is the URL that the browser was sent back to.
        """
        page = await self._open(request["url"])
        if request.get("code"):
            page = await self._submit(page, {"user_code": request["code"]})
        return (await self._submit(page, {"decision": "approve"})).text

    async def approve(self, request: Mapping[str, Any]) -> str:
        """Open the request's page and press *Approve*. Returns the page that follows."""
        return (await self._submit(await self._open(request["url"]), {"decision": "approve"})).text

    async def deny(self, request: Mapping[str, Any]) -> str:
        """Open the request's page and press *Decline*. Returns the page that follows."""
        return (await self._submit(await self._open(request["url"]), {"decision": "deny"})).text

    async def decide(self, request: Mapping[str, Any]) -> str:
        """Do what a request asks for: sign in, or approve. Returns the last page."""
        return await (self.sign_in(request) if request["kind"] == "login" else self.approve(request))

    async def read(self, url: str) -> str:
        """The text of a page, signing in first if it asks."""
        return (await self._open(url)).text

    async def _open(self, url: str) -> _Page:
        page = await self._follow(await self._browser.get(url))
        if "password" in page.fields:
            page = await self._submit(page, {"username": self._record.username, "password": self._record.password})
        return page

    async def _submit(self, page: _Page, values: Mapping[str, str]) -> _Page:
        if page.action is None:
            raise DeputizeError(f"The page has no form to fill in: {' '.join(page.text.split())[:200]}")
        target = urljoin(page.url, page.action)
        parts = urlsplit(page.url)
        answer = await self._browser.post(
            target, data={**page.fields, **values}, headers={"origin": f"{parts.scheme}://{parts.netloc}"}
        )
        return await self._follow(answer)

    async def _follow(self, answer: httpx.Response) -> _Page:
        for _ in range(10):
            if not answer.is_redirect:
                break
            target = urljoin(str(answer.url), answer.headers["location"])
            if urlsplit(target).netloc != urlsplit(str(answer.url)).netloc:  # back at the client
                return _Page(target, target, None, {})
            answer = await self._browser.get(target)
        return _Page.of(answer)


class _Page:
    def __init__(self, url: str, text: str, action: str | None, fields: dict[str, str]) -> None:
        self.url, self.text, self.action, self.fields = url, text, action, fields

    @classmethod
    def of(cls, answer: httpx.Response) -> _Page:
        reader = _Reader()
        reader.feed(answer.text)
        if answer.status_code >= 400 and reader.action is None:
            raise DeputizeError(f"{answer.url.path} answered HTTP {answer.status_code}: {' '.join(reader.shown)[:200]}")
        return cls(str(answer.url), "\n".join(reader.shown), reader.action, reader.fields)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self.shown: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "form":
            self.action = values.get("action")
        elif tag == "input" and values.get("name"):
            self.fields[str(values["name"])] = values.get("value") or ""
        elif tag in ("title", "style", "script"):
            self._hidden += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("title", "style", "script"):
            self._hidden -= 1

    def handle_data(self, data: str) -> None:
        if data.strip() and not self._hidden:
            self.shown.append(data.strip())
