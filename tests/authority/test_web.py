"""What pages and endpoints share: a request read once and bounded, answers with their headers, the origin check."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jinja2
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from identity.authority import Inbound, endpoint, strict_json, templates
from identity.authority.web import page, same_origin
from identity.errors import StoreError, UsageError

ORIGIN = "https://host.example"
FORM = {"content-type": "application/x-www-form-urlencoded"}


def serve(handler: Any) -> httpx.AsyncClient:
    app = Starlette(routes=[Route("/x/{id}", endpoint(handler), methods=["GET", "POST"])])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=ORIGIN)


def echo(inbound: Inbound) -> Response:
    return JSONResponse(
        {
            "method": inbound.method, "id": inbound.path["id"], "fields": dict(inbound.fields), "query": inbound.query,
            "size": len(inbound.body),
        }
    )  # fmt: skip


async def test_a_handler_gets_the_whole_request() -> None:
    async with serve(echo) as client:
        answer = await client.post("/x/a b?q=1&empty=", data={"one": "é", "none": ""})
    assert answer.json() == {
        "method": "POST",
        "id": "a b",
        "fields": {"one": "é", "none": ""},
        "query": [["q", "1"], ["empty", ""]],
        "size": 16,
    }


@pytest.mark.case("A14")
@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        ("/x/1", b"a=1&a=1", 400),
        ("/x/1", b"a=1&%61=2", 400),
        ("/x/1", b"a=&a=", 400),
        ("/x/1?a=1&a=2", b"", 400),
        ("/x/1?a=1&%61=2", b"", 400),
        ("/x/1", b"a=" + b"x" * 16_385, 400),
        ("/x/1?a=" + "x" * 16_385, b"", 400),
        ("/x/1", b"a=\xff", 400),
        ("/x/1", b"&".join(b"f%d=" % i for i in range(101)), 400),
        ("/x/1", b"a=" + b"x" * 65_535, 413),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_repeated_oversized_or_unreadable_never_reaches_a_handler(
    url: str, body: bytes, status: int
) -> None:
    called: list[Inbound] = []

    def handler(inbound: Inbound) -> Response:
        called.append(inbound)
        return PlainTextResponse("")

    async with serve(handler) as client:
        answer = await client.post(url, content=body, headers=FORM)
    assert (answer.status_code, answer.json()["error"], called) == (status, "invalid_request", [])


async def test_the_limits_are_the_largest_that_is_taken() -> None:
    async with serve(echo) as client:
        assert (await client.post("/x/1", content=b"a=" + b"x" * 16_384, headers=FORM)).status_code == 200
        assert (await client.post("/x/1", content=b"x" * 65_536)).json()["size"] == 65_536


@pytest.mark.case("A14")
async def test_a_body_without_an_announced_length_is_read_up_to_the_limit_only() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 100:
            read += 1
            yield b"x" * 16_384

    async with serve(echo) as client:
        answer = await client.post("/x/1", content=endless(), headers=FORM)
    assert answer.status_code == 413
    assert read == 5


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("application/x-www-form-urlencoded", {"a": "1"}),
        ("Application/X-WWW-Form-Urlencoded; charset=utf-8", {"a": "1"}),
        ("text/plain", {}),
        ("application/json", {}),
        ("multipart/form-data; boundary=x", {}),
        ("application/x-www-form-urlencoded-not", {}),
    ],
)
async def test_only_a_form_is_a_form(kind: str, fields: dict[str, str]) -> None:
    async with serve(echo) as client:
        answer = await client.post("/x/1", content=b"a=1", headers={"content-type": kind})
    assert answer.json()["fields"] == fields


async def test_every_answer_has_the_headers_that_keep_it_safe_unless_it_says_otherwise() -> None:
    def handler(inbound: Inbound) -> Response:
        return PlainTextResponse("", headers={"cache-control": "public"} if inbound.path["id"] == "public" else None)

    async with serve(handler) as client:
        plain, public = await client.get("/x/1"), await client.get("/x/public")
        refused = await client.post("/x/1", content=b"a=1&a=1", headers=FORM)
    assert plain.headers["cache-control"] == refused.headers["cache-control"] == "no-store"
    assert public.headers["cache-control"] == "public"
    for answer in (plain, public, refused):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in plain.headers["content-security-policy"]


async def test_what_was_asked_wrongly_is_a_400_and_what_fails_here_a_503_that_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def handler(inbound: Inbound) -> Response:
        if inbound.path["id"] == "theirs":
            raise UsageError("That is no page of this site")
        raise StoreError("The database /var/lib/secret.db is damaged", "Restore it")

    with caplog.at_level(logging.ERROR, logger="deputize"):
        async with serve(handler) as client:
            theirs, ours = await client.get("/x/theirs"), await client.get("/x/%1B%5B2J%0AForged")
    assert (theirs.status_code, ours.status_code) == (400, 503)
    assert "That is no page of this site" in theirs.text
    assert ours.json() == {"error": "temporarily_unavailable"}
    assert "secret.db is damaged" in caplog.text  # the operator is told
    assert caplog.text.count("\n") == 1
    assert "\x1b" not in caplog.text


# -- the origin of a form ------------------------------------------------------------------------------------------------


def inbound(csrf: str | None = "token", **headers: str) -> Inbound:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    fields = {} if csrf is None else {"csrf": csrf}
    return Inbound("POST", f"{ORIGIN}/x", {}, (), (), b"", named, {}, "", fields)


@pytest.mark.case("B12")
def test_a_form_is_ours_by_its_origin_and_its_token_together() -> None:
    assert same_origin(inbound(origin=ORIGIN), ORIGIN, "token")
    assert same_origin(inbound(sec_fetch_site="same-origin"), ORIGIN, "token")
    for foreign in (f"{ORIGIN}:8443", f"{ORIGIN}.evil.example", "http://host.example", "null", "", ORIGIN.upper()):
        assert not same_origin(inbound(origin=foreign), ORIGIN, "token")
        assert not same_origin(inbound(origin=foreign, sec_fetch_site="same-origin"), ORIGIN, "token")
    for site in ("cross-site", "same-site", "none", ""):
        assert not same_origin(inbound(sec_fetch_site=site), ORIGIN, "token")
    assert not same_origin(inbound(), ORIGIN, "token")


@pytest.mark.case("B12")
@pytest.mark.parametrize(
    ("sent", "expected"), [(None, "token"), ("", "token"), ("other", "token"), ("é", "token"), ("", ""), (None, "")]
)
def test_without_this_sessions_token_it_is_not(sent: str | None, expected: str) -> None:
    assert not same_origin(inbound(sent, origin=ORIGIN), ORIGIN, expected)


# -- templates and JSON --------------------------------------------------------------------------------------------------


@pytest.mark.case("B10")
def test_templates_escape_everything_and_know_no_missing_name(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text('<p title="{{ value }}">{{ value }}</p>')
    environment = templates(tmp_path)
    answer = page(environment, "x.html", 418, value="\"><script>'&")
    assert answer.status_code == 418
    assert bytes(answer.body).decode().count("&#34;&gt;&lt;script&gt;&#39;&amp;") == 2
    with pytest.raises(jinja2.UndefinedError):
        page(environment, "x.html")


def test_a_pages_forms_lead_to_itself_and_where_it_says(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text("")
    environment = templates(tmp_path)
    policies = [
        page(environment, "x.html", form_targets=targets).headers["content-security-policy"]
        for targets in ("", "http://127.0.0.1:9")
    ]
    assert [policy.rsplit("; ", 1)[1] for policy in policies] == [
        "form-action 'self'",
        "form-action 'self' http://127.0.0.1:9",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '[{"b": {"a": 1, "a": 2}}]',
        '{"a": 1, "\\u0061": 2}',
        "NaN",
        "[Infinity]",
        "",
        "[" * 100_000,
        b"\xff",
    ],
    ids=lambda text: str(text)[:30],
)
def test_json_that_says_two_things_or_none_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - that, and none of its kin that a caller would not expect
        strict_json(text)


def test_json_that_says_one_thing_is_read() -> None:
    assert strict_json(b'{"a": [1, {"a": null}], "b": "1"}') == {"a": [1, {"a": None}], "b": "1"}
