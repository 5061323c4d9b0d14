"""The CIBA notification endpoint: a ping has the authorization server asked, and decides nothing (casebook B13)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette

from identity import Identity
from identity.ledger import Request
from identity.server.ping import ping_route
from identity.settings import PING_PATH
from tests.support import URL, Inside, assistant, calls, inside, requests, sign_in

LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})


class Asked:
    """alice has been asked to approve, and the issuer will ping."""

    def __init__(self, world: Inside) -> None:
        self.world, self.identity = world, world.identity
        self.told: list[Request] = []

        async def decided(request: Request) -> None:
            self.told.append(request)

        app = Starlette(routes=[ping_route(world.identity, decided)])
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=URL, trust_env=False)

    async def begin(self) -> None:
        graph = assistant(self.world, calls(LARGE))
        state = await sign_in(self.world, graph)
        (self.shown,) = requests(state)
        (sent,) = [sent for sent in self.world.network.sent if sent.url.endswith("/bc-authorize")]
        self.token = sent.form["client_notification_token"]
        request = self.request()
        self.auth_req_id = self.identity.ledger.handle(request)["auth_req_id"]
        self.polls = len(self.world.network.grants())

    def request(self) -> Request:
        found = self.identity.ledger.request(self.shown["id"])
        assert found is not None
        return found

    def asked_the_issuer(self) -> int:
        return len(self.world.network.grants()) - self.polls

    async def ping(
        self, body: Any = None, *, token: str | None = None, method: str = "POST", **headers: str
    ) -> httpx.Response:
        given = {"auth_req_id": self.auth_req_id} if body is None else body
        raw = given if isinstance(given, bytes) else json.dumps(given).encode()
        sent = {"authorization": f"Bearer {self.token if token is None else token}", "content-type": "application/json"}
        return await self.http.request(method, PING_PATH, content=raw, headers={**sent, **headers})


@pytest_asyncio.fixture
async def asked(tmp_path: Any, clock: Any) -> AsyncIterator[Asked]:
    async with inside(tmp_path, clock, delivery="ping") as world:
        made = Asked(world)
        await made.begin()
        yield made
        await made.http.aclose()


async def test_a_ping_after_a_decision_finds_it_at_once_and_tells_the_waker(asked: Asked) -> None:
    answer = await asked.world.person("alice").approve(asked.shown)
    assert answer
    response = await asked.ping()
    assert response.status_code == 204
    assert asked.request().state == "approved"
    assert [request.id for request in asked.told] == [asked.shown["id"]]


@pytest.mark.case("B13")
async def test_a_ping_decides_nothing_by_itself(asked: Asked) -> None:
    """Nobody has decided: the authorization server says so, whoever pings with the right pair."""
    for _ in range(3):
        assert (await asked.ping()).status_code == 204
    assert asked.request().state == "pending"
    assert asked.told == []


@pytest.mark.case("B13")
@pytest.mark.parametrize("token", ["", "forged", "x" * 4000, "auth_req_id", "a token of another request's"], ids=str)
async def test_a_forged_token_is_401_and_changes_nothing(asked: Asked, token: str) -> None:
    await asked.world.person("alice").approve(asked.shown)
    assert (await asked.ping(token=token)).status_code == 401
    assert (await asked.ping(token="", authorization=f"Basic {asked.token}")).status_code == 401
    assert asked.request().state == "pending"
    assert asked.asked_the_issuer() == 0
    assert asked.told == []


@pytest.mark.case("B13")
@pytest.mark.parametrize(
    "body",
    [
        {"auth_req_id": "another"},
        {"auth_req_id": ""},
        {"auth_req_id": None},
        {"auth_req_id": ["x"]},
        {"auth_req_id": "\ud800"},
        {},
        [],
        "x",
        b"",
        b"{",
        b"\xff",
        b"[" * 2000,
        b"x" * 100_000,
    ],
    ids=lambda body: repr(body)[:30],
)
async def test_a_pair_that_does_not_match_is_refused_and_changes_nothing(asked: Asked, body: Any) -> None:
    await asked.world.person("alice").approve(asked.shown)
    assert (await asked.ping(body)).status_code in (401, 413)
    assert asked.request().state == "pending"
    assert asked.asked_the_issuer() == 0


@pytest.mark.case("B13")
async def test_a_ping_with_more_in_it_than_the_id_is_refused(asked: Asked) -> None:
    """Attack: a token or a decision is pushed along, to be believed."""
    await asked.world.person("alice").approve(asked.shown)
    for more in ({"access_token": "x"}, {"state": "approved"}, {"error": "access_denied"}):
        assert (await asked.ping({"auth_req_id": asked.auth_req_id, **more})).status_code == 401
    assert asked.request().state == "pending"


@pytest.mark.case("B13")
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_no_other_method_pings(asked: Asked, method: str) -> None:
    assert (await asked.ping(method=method)).status_code == 405
    assert asked.asked_the_issuer() == 0


@pytest.mark.case("B13")
async def test_nothing_that_is_answered_is_a_redirect(asked: Asked) -> None:
    answers = [await asked.ping(), await asked.ping(token="x"), await asked.ping({}), await asked.ping(b"x" * 9000)]
    assert not any(answer.is_redirect or "location" in answer.headers for answer in answers)
    assert all(answer.headers["www-authenticate"] == "Bearer" for answer in answers[1:])


async def test_a_ping_that_comes_again_is_answered_and_wakes_as_often_as_it_is_told(asked: Asked) -> None:
    await asked.world.person("alice").approve(asked.shown)
    for _ in range(3):
        assert (await asked.ping()).status_code == 204
    assert asked.asked_the_issuer() == 1
    assert asked.request().state == "approved"


async def test_a_ping_for_another_organization_is_not_this_ones(asked: Asked) -> None:
    other: Identity = asked.world.again(tenant="other", delivery="ping")
    app = Starlette(routes=[ping_route(other)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=URL, trust_env=False) as http:
        answer = await http.post(
            PING_PATH, json={"auth_req_id": asked.auth_req_id}, headers={"authorization": f"Bearer {asked.token}"}
        )
    other.close()
    assert answer.status_code == 401
