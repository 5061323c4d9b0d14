"""``AccessToken``: it goes to its own audience's hosts, and nowhere else."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import httpx
import pytest

from identity.access import AccessToken
from identity.errors import GateError
from identity.needs import Resource, resource
from identity.secret import Secret
from tests.support import Clock

VALUE = "at-that-stays-home"
HOME = "https://trading.example"


class Recorder:
    """An HTTP server that remembers who was asked with which authorization, and may redirect."""

    def __init__(self, location: str | None = None, status: int = 307) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self._location = location
        self._status = status

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((str(request.url), request.headers.get("authorization")))
        if self._location is not None and len(self.asked) == 1:
            return httpx.Response(self._status, headers={"location": self._location})
        return httpx.Response(200, json={})

    def client(self, token: AccessToken | None = None, **more: Any) -> httpx.Client:
        return httpx.Client(auth=token, transport=httpx.MockTransport(self), trust_env=False, **more)


def token(need: Resource | None = None) -> AccessToken:
    return AccessToken(Secret(VALUE), need or resource(HOME, "orders:write"), Clock()() + 300)


@pytest.mark.parametrize(
    "url",
    [
        HOME,
        f"{HOME}/orders?symbol=ACME#here",
        "https://TRADING.example:443/orders",
        "HTTPS://trading.example/a/../b",
        f"{HOME}/back\\slash",
        f"{HOME}//evil.example/",
        f"{HOME}/@evil.example",
        f"{HOME}?x=https://evil.example",
    ],
)
def test_a_request_to_its_own_audience_carries_it(url: str) -> None:
    server = Recorder()
    server.client(token()).get(url)
    assert [authorization for _, authorization in server.asked] == [f"Bearer {VALUE}"]


@pytest.mark.case("E28")
@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/orders",
        "https://trading.example.evil.example/",
        "https://evil-trading.example/",
        "https://sub.trading.example/",
        "https://trading.example./",
        "https://trading.example:8443/",
        "https://trading.example:80/",
        "https://trading.example:0/",
        "http://trading.example/",
        "http://trading.example:443/",
        "https://user:password@trading.example/",
        "https://user@trading.example/",
        "https://trading.example@evil.example/",
        "https://trading.example:443@evil.example/",
        "https://trading.example%2f@evil.example/",
        "https://trading.example\\@evil.example/",
        "https://evil.example\\.trading.example/",
        "https://evil.example/trading.example",
        "https://evil.example?https://trading.example",
        "https://evil.example#trading.example",
        "https://trad\u0131ng.example/",
        "https://xn--trding-4qf.example/",
        "https://trading%2eexample/",
        "https://[::ffff:127.0.0.1]/",
        "https://2130706433/",
    ],
)
def test_a_request_to_anywhere_else_raises_before_anything_is_sent(url: str) -> None:
    server = Recorder()
    with pytest.raises(GateError) as refused:
        server.client(token()).get(url)
    assert refused.value.code == "wrong_audience"
    assert server.asked == []
    assert VALUE not in str(refused.value)
    assert "password" not in str(refused.value)


@pytest.mark.case("E28")
async def test_the_same_holds_for_async_clients_and_for_one_request_of_a_client() -> None:
    server = Recorder()
    transport = httpx.MockTransport(server)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        await client.post(f"{HOME}/orders", auth=token(), json={})
        with pytest.raises(GateError):
            await client.post("https://evil.example/orders", auth=token(), json={})
    assert server.asked == [(f"{HOME}/orders", f"Bearer {VALUE}")]


@pytest.mark.case("E28")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/",
        "//evil.example/",
        "https://trading.example:8443/",
        "https://trading.example.evil.example/",
        "http://trading.example/",
        "https://trading.example@evil.example/",
    ],
)
def test_a_redirect_to_another_host_loses_it(location: str, status: int) -> None:
    server = Recorder(location, status)
    server.client(token(), follow_redirects=True).post(f"{HOME}/orders", json={})
    assert server.asked[0] == (f"{HOME}/orders", f"Bearer {VALUE}")
    assert len(server.asked) == 2
    assert server.asked[1][1] is None


def test_a_redirect_within_the_audience_keeps_it() -> None:
    server = Recorder("/elsewhere")
    server.client(token(), follow_redirects=True).get(f"{HOME}/orders")
    assert server.asked[1] == (f"{HOME}/elsewhere", f"Bearer {VALUE}")


@pytest.mark.case("E28")
def test_an_audience_that_is_no_url_goes_to_the_hosts_that_were_named() -> None:
    need = resource("api://orders", "write", hosts=["https://a.example", "https://b.example:8443/ignored"])
    server = Recorder()
    client = server.client(token(need))
    client.get("https://a.example/x")
    client.get("https://b.example:8443/y")
    for elsewhere in ("https://b.example/", "https://a.example:8443/", "https://orders/", "http://a.example/"):
        with pytest.raises(GateError):
            client.get(elsewhere)
    assert len(server.asked) == 2


def test_an_ipv6_audience_is_compared_with_its_port() -> None:
    server = Recorder()
    client = server.client(token(resource("http://[::1]:2024/trading")))
    client.get("http://[::1]:2024/trading/orders")
    for elsewhere in ("http://[::1]/", "http://[::2]:2024/", "http://127.0.0.1:2024/"):
        with pytest.raises(GateError):
            client.get(elsewhere)
    assert len(server.asked) == 1


def test_a_token_that_the_caller_set_by_hand_is_replaced() -> None:
    server = Recorder()
    server.client(token()).get(HOME, headers={"Authorization": "Bearer planted"})
    assert server.asked[0][1] == f"Bearer {VALUE}"


def test_reveal_is_its_only_other_way_out() -> None:
    held = token()
    assert held.reveal() == VALUE
    assert VALUE not in f"{held} {held!r} {[held]}"
    assert vars(held) == {}
    for way in (pickle.dumps, copy.copy, copy.deepcopy, lambda t: pickle.dumps({"a": [t]})):
        with pytest.raises(GateError) as refused:
            way(held)
        assert refused.value.code == "secret"
