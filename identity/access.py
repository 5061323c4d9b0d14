"""``AccessToken``: what a tool is lent. It goes to its own audience's hosts and nowhere else (casebook E28)."""

from __future__ import annotations

from collections.abc import Generator

import httpx

from .errors import GateError, NeedsError
from .needs import Resource, origin_of
from .secret import Secret

__all__ = ["AccessToken"]


class AccessToken(httpx.Auth):
    """A bearer token for one API (RFC 6750), used as ``httpx``'s ``auth``::

        async with httpx.AsyncClient(auth=token) as client:
            await client.post("https://trading.example/orders", json=order)

    A request to any other origin raises before anything is sent; a redirect elsewhere loses the header. ``.reveal()``
    is for SDKs that want the string itself.

    Args:
        value: the token.
        resource: what it was asked for.
        expires_at: unix seconds.
    """

    __slots__ = ("_value", "expires_at", "resource")

    def __init__(self, value: Secret, resource: Resource, expires_at: float) -> None:
        self._value = value
        self.resource = resource
        self.expires_at = expires_at

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if _origin(request.url) not in self.resource.origins:
            # Attack: a model, a tool's argument or a "next page" link names a host, and the token follows.
            raise GateError(
                f"The token for {self.resource.audience} was about to be sent to {request.url.host!r}",
                "It goes to its own audience only; declare a resource() for the other API",
                code="wrong_audience",
            )
        request.headers["Authorization"] = f"Bearer {self._value.reveal()}"
        yield request

    def reveal(self) -> str:
        """The token itself, for an SDK that sends it on its own. The SDK is then what keeps it to its audience."""
        return self._value.reveal()

    def __repr__(self) -> str:
        return f"AccessToken({self.resource.audience!r}, ***)"

    def __reduce_ex__(self, protocol: object) -> str:
        raise GateError("An access token cannot be pickled or copied", "Pass it on as it is", code="secret")


def _origin(url: httpx.URL) -> str:
    """Where httpx will connect: its own reading of the URL's parts, since two parsers can read one text differently."""
    try:
        return "" if url.userinfo else origin_of(f"{url.scheme}://{url.netloc.decode('ascii')}")
    except NeedsError:
        return ""
