"""What holds at every endpoint of the issuer: what it publishes, how it answers, which parameters it takes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from identity.errors import StoreError
from identity.oauth.metadata import process_metadata_response
from identity.oauth.wire import Response
from tests.support import URL, Inside
from tests.world.driver import (
    CIBA,
    CODE,
    CREDENTIALS,
    DEVICE,
    EXCHANGE,
    ISSUER,
    REFRESH,
    TRADING,
    Driver,
    authorization_url,
    claims,
)

FOR_CLIENTS = ("token", "device_authorization", "bc-authorize", "introspect", "revoke")
FOR_PEOPLE = ("login", "logout", "device", "approvals/x")


async def test_the_metadata_is_at_both_places_and_says_what_the_issuer_holds_to(driver: Driver) -> None:
    answer = await driver.http.get("/issuer/.well-known/openid-configuration")
    server = process_metadata_response(
        ISSUER, Response(answer.status_code, dict(answer.headers), answer.content), allow_origins=(URL,)
    )
    assert server.code_challenge_methods_supported == ("S256",)
    assert server.authorization_response_iss_parameter_supported
    assert set(server.grant_types_supported) == {CODE, REFRESH, CREDENTIALS, DEVICE, EXCHANGE, CIBA}
    again = await driver.http.get("/.well-known/oauth-authorization-server/issuer")
    assert again.json() == answer.json()


async def test_every_endpoint_of_the_metadata_answers(driver: Driver) -> None:
    named = (await driver.http.get("/issuer/.well-known/openid-configuration")).json()
    for name, url in named.items():
        if name.endswith(("_endpoint", "jwks_uri")):
            found = [(await driver.http.request(method, url)).status_code for method in ("GET", "POST")]
            assert 404 not in found, name
            assert found != [405, 405], name


async def test_the_published_keys_have_no_private_part(driver: Driver, world: Inside) -> None:
    answer = await driver.http.get("/issuer/jwks")
    (key,) = answer.json()["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert world.world.installation.signing_key.as_dict(private=True)["d"] not in answer.text


@pytest.mark.case("A14")
@pytest.mark.parametrize("path", FOR_CLIENTS)
async def test_a_repeated_parameter_is_refused_at_every_endpoint_for_clients(driver: Driver, path: str) -> None:
    for name in ("token", "scope", "resource", "client_assertion", "anything"):
        form = [(name, "a"), (name, "a"), *driver.authenticated().items()]
        answer = await driver.raw(path, urlencode(form))
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), name


@pytest.mark.case("A14")
@pytest.mark.parametrize("path", FOR_CLIENTS + FOR_PEOPLE)
async def test_an_oversized_parameter_is_refused_at_every_endpoint(driver: Driver, path: str) -> None:
    answer = await driver.raw(path, urlencode({"scope": "x" * 16_385, **driver.authenticated()}))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.case("A14")
@pytest.mark.parametrize("path", FOR_CLIENTS + FOR_PEOPLE)
@pytest.mark.parametrize(
    ("body", "status"),
    [("a=" + "b" * 65_536, 413), ("&".join(f"f{i}=1" for i in range(101)), 400), ("a=%ff&b=\xff", 400)],
    ids=["body", "fields", "bytes"],
)
async def test_an_oversized_or_unreadable_form_is_refused_before_anything_is_looked_up(
    driver: Driver, path: str, body: str, status: int
) -> None:
    kind = {"content-type": "application/x-www-form-urlencoded"}
    answer = await driver.http.post(f"/issuer/{path}", content=body.encode("latin-1"), headers=kind)
    assert (answer.status_code, answer.json()["error"]) == (status, "invalid_request")


@pytest.mark.case("A14")
@pytest.mark.parametrize("name", ["client_id", "redirect_uri", "state", "scope", "code_challenge", "nonce", "prompt"])
async def test_a_repeated_parameter_of_an_authorization_request_is_refused(driver: Driver, name: str) -> None:
    browser = await driver.browser()
    for url in (f"{authorization_url(prompt='login')}&{name}=x", f"/issuer/login?{name}=1&{name}=2"):
        answer = await browser.get(url)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.case("A14")
@pytest.mark.parametrize("path", FOR_PEOPLE)
async def test_a_repeated_field_of_a_page_is_refused(driver: Driver, path: str) -> None:
    browser = await driver.browser()
    csrf = await browser.csrf()
    body = urlencode([("csrf", csrf), ("decision", "deny"), ("decision", "approve")])
    headers = {"content-type": "application/x-www-form-urlencoded", "origin": URL}
    answer = await browser.http.post(f"/issuer/{path}", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", FOR_CLIENTS)
async def test_what_was_asked_in_another_form_or_by_get_is_no_request(driver: Driver, path: str) -> None:
    fields = {"grant_type": CREDENTIALS, **driver.authenticated()}
    assert (await driver.http.get(f"/issuer/{path}", params=fields)).status_code == 405
    assert (await driver.http.post(f"/issuer/{path}", params=fields)).status_code in (400, 401)
    assert (await driver.http.post(f"/issuer/{path}", json=fields)).status_code in (400, 401)


@pytest.mark.parametrize("grant_type", ["password", "implicit", "", "authorization_code ", "é", '"'])
async def test_an_unknown_grant_is_refused(driver: Driver, grant_type: str) -> None:
    answer = await driver.token(grant_type, username="alice", password="x")
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")


async def test_every_answer_of_the_token_endpoint_is_kept_by_nobody(driver: Driver) -> None:
    tokens = await driver.sign_in()
    answers = [
        await driver.token(CREDENTIALS),
        await driver.refresh(tokens["refresh_token"]),
        await driver.exchange(tokens["access_token"]),
        await driver.redeem("wrong"),
        await driver.collect("wrong"),
        await driver.post("introspect", {"token": tokens["access_token"]}, client="trading-api"),
        await driver.raw("token", "grant_type=x&grant_type=y"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 400, 200, 400]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_no_access_token_lives_longer_than_five_minutes(driver: Driver, world: Inside) -> None:
    tokens = await driver.sign_in()
    await driver.refresh(tokens["refresh_token"])
    await driver.exchanged(tokens["access_token"])
    await driver.token(CREDENTIALS)
    await driver.approved()
    issued = [claims(token) for token in world.issued_tokens if token.count(".") == 2]
    assert len(issued) >= 6
    assert {found["exp"] - found["iat"] for found in issued} == {300}
    assert tokens["expires_in"] == 300


async def test_the_authorization_endpoint_is_not_for_scripts_of_other_origins(driver: Driver) -> None:
    browser = await driver.browser()
    page = await browser.get(authorization_url(), origin="https://evil.example")
    asked = await browser.http.options(authorization_url(), headers={"origin": "https://evil.example"})
    for answer in (page, asked, await driver.http.get("/issuer/jwks", headers={"origin": "https://evil.example"})):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_a_form_with_credentials_is_never_sent_on(driver: Driver, world: Inside) -> None:
    """RFC 9700 §4.12: after a 307 or 308 the browser would post the password, or the decision, to the next place."""
    browser = await driver.browser("bob")
    device = await driver.device()
    asked = await driver.asked(login_hint="bob")
    seen: list[httpx.Response] = [
        await browser.log_in("bob", world.world.installation.people["bob"].password),
        await browser.submit(authorization_url(), decision="approve"),
        await browser.submit(authorization_url(), decision="deny"),
        await browser.post("/issuer/device", csrf=await browser.csrf(), user_code=device["user_code"]),
        await browser.submit(asked["approval_uri"], decision="approve"),
        await browser.post("/issuer/logout", csrf=await browser.csrf()),
    ]
    assert {answer.status_code for answer in seen} == {200, 303}


@pytest.mark.parametrize(
    "changes",
    [
        {"redirect_uri": 'http://127.0.0.1:9/callback"'},
        {"redirect_uri": "http://127.0.0.1:9/cällback"},
        {"response_type": 'code"'},
        {"response_type": "cöde"},
        {"response_type": "code\\"},
        {"client_id": '"\\é'},
        {"scope": '"\\é'},
        {"code_challenge": '"\\é'},
        {"state": '"\\é', "code_challenge_method": "plain"},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_characters_that_an_error_may_not_hold_break_nothing(driver: Driver, changes: dict[str, str]) -> None:
    """RFC 6749 §4.1.2.1 restricts ``error_description``; what was sent is not repeated in it."""
    answer = await (await driver.browser()).get(authorization_url(**changes))
    assert answer.status_code in (303, 400)


async def test_a_failure_of_the_database_is_not_the_clients_and_says_nothing_about_our_files(
    driver: Driver, world: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise StoreError(f"The database {world.home} is damaged", "Restore it")

    monkeypatch.setattr(world.world.issuer.tokens, "disabled", broken)
    answer = await driver.token(CREDENTIALS)
    assert answer.status_code == 503
    assert str(world.home) not in answer.text


async def test_a_client_reads_and_revokes_its_own_tokens_only(driver: Driver) -> None:
    tokens = await driver.sign_in()
    delegated = await driver.exchanged(tokens["access_token"])
    driver.register("other")
    for token in (tokens["access_token"], delegated, tokens["refresh_token"]):
        assert not await driver.active(token, client="other")
        assert (await driver.post("revoke", {"token": token}, client="other")).status_code == 200
    assert await driver.active(delegated)
    assert await driver.active(tokens["access_token"], client="deputize-agent")
    assert await driver.active(delegated, client="deputize-agent")
    assert not await driver.active(tokens["access_token"])  # for the agent, so not the API's business

    assert (await driver.post("revoke", {"token": delegated})).status_code == 200
    assert not await driver.active(delegated)
    assert await driver.active(tokens["access_token"], client="deputize-agent")


async def test_a_revoked_refresh_token_takes_its_whole_grant_with_it(driver: Driver) -> None:
    tokens = await driver.sign_in()
    delegated = await driver.exchanged(tokens["access_token"])
    assert (await driver.post("revoke", {"token": tokens["refresh_token"]})).status_code == 200
    assert not await driver.active(delegated)
    assert (await driver.refresh(tokens["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await driver.order(delegated)).status_code == 401


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "rt_unknown", "x" * 16_000])
async def test_what_is_no_token_is_inactive_and_revoking_it_is_no_error(driver: Driver, token: str) -> None:
    assert not await driver.active(token)
    assert (await driver.post("revoke", {"token": token})).status_code == 200


async def test_a_public_client_may_not_ask_about_tokens(driver: Driver) -> None:
    driver.register("public", public=True)
    answer = await driver.post("introspect", {"token": (await driver.sign_in())["access_token"]}, client="public")
    assert (answer.status_code, answer.json()["error"]) == (400, "unauthorized_client")


async def test_a_client_of_its_own_gets_a_token_that_is_nobodys(driver: Driver) -> None:
    answer = (await driver.token(CREDENTIALS, resource=TRADING, scope="orders:write portfolio:read")).json()
    found = claims(answer["access_token"])
    assert (found["sub"], found["client_id"], found["scope"]) == ("deputize-agent", "deputize-agent", "")
    assert "refresh_token" not in answer
    assert "may_act" not in found
    assert (await driver.order(answer["access_token"])).status_code == 403
    assert (await driver.portfolio(answer["access_token"])).status_code == 403
    for_itself = (await driver.token(CREDENTIALS)).json()["access_token"]
    assert (await driver.exchange(for_itself)).json()["error"] == "invalid_grant"
