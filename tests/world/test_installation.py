"""An installation of the embedded world: private, made once, and on loopback or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.world import World, install
from agent.world.installation import Installation
from identity.errors import SettingsError, TokenError
from identity.oauth.jwt import KeySet, validate_access_token
from identity.settings import Settings, load_settings
from tests.support import URL, Clock, Inside
from tests.world.driver import AGENT_ID, ISSUER, Driver

FILES = ("people.json", "issuer-key.json", "agent-client.json", "trading-client.json", "world.db")


def made(folder: Path, url: str = URL, **environment: str) -> Installation:
    world = install(folder, url, environment)
    world.database.close()
    return world


# -- where it may be served ----------------------------------------------------------------------------------------------


@pytest.mark.case("G7")
@pytest.mark.parametrize(
    "url",
    [
        "https://deputize.example",
        "http://deputize.example:2024",
        "http://0.0.0.0:2024",
        "http://192.168.1.5:2024",
        "http://10.0.0.1:2024",
        "http://169.254.169.254:2024",
        "http://[::]:2024",
        "http://[fe80::1]:2024",
        "http://[2001:db8::1]:2024",
        "http://127.0.0.1",
        "https://127.0.0.1:2024",
        "http://user@127.0.0.1:2024",
        "http://127.0.0.1:2024/path",
        "http://127.0.0.1:2024?x=1",
        "http://127.0.0.1.evil.example:2024",
        "http://localhost.evil.example:2024",
        "http://127.0.0.1:port",
        "127.0.0.1:2024",
        "",
    ],
)
def test_it_is_not_made_for_any_address_but_loopback(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="embedded world"):
        made(tmp_path / "world", url)
    assert list(tmp_path.iterdir()) == []  # and nothing was left behind
    with pytest.raises(SettingsError):
        load_settings(embedded=True, url=url, home=tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:2024", "http://localhost:1", "http://[::1]:2024", f"{URL}/"])
def test_it_is_made_for_loopback(tmp_path: Path, url: str) -> None:
    assert made(tmp_path / "world", url).url == url.rstrip("/")


@pytest.mark.case("G7")
def test_it_does_not_start_beside_the_settings_of_a_deployment(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="DEPUTIZE_ISSUER"):
        made(tmp_path / "world", DEPUTIZE_ISSUER="https://idp.example")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match="contradict each other"):
        load_settings(embedded=True, issuer="https://idp.example", home=tmp_path)
    assert made(tmp_path / "world", DEPUTIZE_ISSUER="").issuer == ISSUER
    assert made(tmp_path / "world", DEPUTIZE_ISSUER=ISSUER).issuer == ISSUER


def production(tmp_path: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "issuer": "https://idp.example",
        "client_id": "agent",
        "client_key_file": tmp_path / "key.json",
        "data_dir": tmp_path / "data",
        "key_file": tmp_path / "keys.json",
    }
    return load_settings(**{**given, **changes})


@pytest.mark.case("G7")
@pytest.mark.parametrize(
    "issuer", [ISSUER, "http://localhost:2024/issuer", "http://idp.example", "//idp.example", "idp.example"]
)
def test_production_settings_refuse_an_issuer_that_is_not_https(tmp_path: Path, issuer: str) -> None:
    assert production(tmp_path).allow_origins == ()
    with pytest.raises(SettingsError, match="an issuer is an https URL"):
        production(tmp_path, issuer=issuer)


@pytest.mark.case("G7")
async def test_its_tokens_are_refused_by_a_production_verifier(tmp_path: Path, driver: Driver, world: Inside) -> None:
    token, keys = (await driver.sign_in())["access_token"], KeySet.of(world.world.issuer.tokens.public_keys)
    checks = {"keys": keys, "audience": AGENT_ID, "now": world.clock()}
    assert validate_access_token(token, issuer=ISSUER, **checks)
    with pytest.raises(TokenError, match="of another issuer"):
        validate_access_token(token, issuer=production(tmp_path).issuer, **checks)


# -- who is answered -----------------------------------------------------------------------------------------------------


@pytest.mark.case("G7")
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:2024",
        "127.0.0.1",
        "127.0.0.1:2025",
        "127.0.0.1:2024.evil.example",
        "127.0.0.1.evil.example:2024",
        "localhost",
        "localhost.:2024",
        "0.0.0.0:2024",
        "[::]:2024",
        "192.168.1.5:2024",
        "user@127.0.0.1:2024",
        "127.0.0.1:2024@evil.example",
        "127.0.0.1:2024 ",
        "",
    ],
)
async def test_a_request_that_names_another_host_is_misdirected(driver: Driver, host: str) -> None:
    """Attack (DNS rebinding): a page of evil.example, whose name now resolves to 127.0.0.1, reads ours as its own."""
    for path in (
        "/issuer/login",
        "/issuer/jwks",
        "/trading/quotes/ACME",
        "/.well-known/oauth-authorization-server/issuer",
    ):
        answer = await driver.http.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "set-cookie" not in answer.headers


@pytest.mark.case("G7")
@pytest.mark.parametrize(
    "name", ["forwarded", "via", "x-forwarded-for", "X-Forwarded-Host", "x-forwarded-proto", "X-Real-IP"]
)
async def test_a_request_that_came_through_a_proxy_or_tunnel_is_misdirected(driver: Driver, name: str) -> None:
    for value in ("127.0.0.1", "evil.example", ""):
        assert (await driver.http.get("/issuer/login", headers={name: value})).status_code == 421


async def answered(
    world: Inside, hosts: list[bytes], kind: str = "http", client: Any = ("127.0.0.1", 1)
) -> dict[str, Any]:
    """The first message of the answer to a request that no HTTP client would send."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": kind, "method": "GET", "path": "/issuer/login", "root_path": "", "query_string": b"", "scheme": kind,
        "headers": [(b"host", host) for host in hosts], "client": client, "server": ("127.0.0.1", 2024),
    }  # fmt: skip
    await world.network.app(scope, receive, send)
    return sent[0]


@pytest.mark.case("G7")
@pytest.mark.parametrize("hosts", [[], [b"127.0.0.1:2024", b"evil.example"], [b"127.0.0.1:2024", b"127.0.0.1:2024"]])
async def test_a_request_with_no_host_or_two_is_misdirected(world: Inside, hosts: list[bytes]) -> None:
    assert (await answered(world, hosts))["status"] == 421
    assert (await answered(world, [b"127.0.0.1:2024"]))["status"] == 200


@pytest.mark.case("G7")
@pytest.mark.parametrize("client", [("192.168.1.5", 1), ("203.0.113.7", 1), ("2001:db8::1", 1), ("evil", 1), None])
async def test_a_request_from_another_machine_is_misdirected_whatever_host_it_names(world: Inside, client: Any) -> None:
    assert (await answered(world, [b"127.0.0.1:2024"], client=client))["status"] == 421


@pytest.mark.case("G7")
async def test_a_websocket_to_another_host_is_closed(world: Inside) -> None:
    assert await answered(world, [b"evil.example"], "websocket") == {"type": "websocket.close", "code": 1008}


@pytest.mark.parametrize("host", ["127.0.0.1:2024", "localhost:2024", "LocalHost:2024", "[::1]:2024"])
async def test_every_name_of_this_machine_is_answered(driver: Driver, host: str) -> None:
    assert (await driver.http.get("/issuer/login", headers={"host": host})).status_code == 200
    answer = await driver.http.post("/issuer/token", headers={"host": host}, data={"grant_type": "client_credentials"})
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


async def test_metadata_names_the_true_address_whatever_the_request_says(driver: Driver) -> None:
    answer = await driver.http.get("/issuer/.well-known/openid-configuration", headers={"host": "localhost:2024"})
    assert answer.json()["issuer"] == ISSUER
    assert "localhost" not in answer.text


# -- its files -----------------------------------------------------------------------------------------------------------


def test_everything_is_private_and_different_each_time(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o700
    for name in FILES:
        assert (tmp_path / "one" / name).stat().st_mode & 0o777 == 0o600, name
    for name in FILES[:-1]:
        assert (tmp_path / "one" / name).read_text() != (tmp_path / "other" / name).read_text()
    assert "d" not in one.agent_key
    assert one.signing_key.as_dict(private=False) != other.signing_key.as_dict(private=False)


def test_what_is_there_is_opened_and_not_made_anew(tmp_path: Path) -> None:
    first = made(tmp_path / "world")
    before = {name: (tmp_path / "world" / name).read_bytes() for name in FILES[:-1]}
    again = made(tmp_path / "world")
    assert before == {name: (tmp_path / "world" / name).read_bytes() for name in FILES[:-1]}
    assert first.people == again.people


@pytest.mark.parametrize("name", FILES[:-1])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[]",
        b"null",
        b"{}",
        b'{"alice": 1}',
        b'{"alice": {"name": "Alice"}}',
        b"\xff",
        b'{"kty": "EC"}',
    ],
    ids=repr,
)
def test_a_damaged_file_is_an_error_of_one_line_and_is_left_as_it_is(tmp_path: Path, name: str, content: bytes) -> None:
    made(tmp_path / "world")
    path = tmp_path / "world" / name
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        made(tmp_path / "world")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_file_or_folder_that_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    made(tmp_path / "world")
    (tmp_path / "world" / name).chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        made(tmp_path / "world")
    (tmp_path / "world" / name).chmod(0o600)
    (tmp_path / "world").chmod(0o750)
    with pytest.raises(SettingsError, match="chmod 700"):
        made(tmp_path / "world")


def test_codes_tokens_and_cookies_are_not_in_the_database(tmp_path: Path, clock: Clock) -> None:
    installation = install(tmp_path / "world", URL, {})
    world = World(installation, clock)
    cookie = world.issuer.people.remember("somebody")
    grant = world.issuer.tokens.new_grant("agent", "somebody")
    token = world.issuer.tokens.refresh(
        subject="somebody", client_id="agent", scope="openid", grant_id=grant, auth_time=0.0, until=clock() + 60
    )
    world.close()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "world").glob("world.db*"))
    assert grant.encode() in kept
    for secret in (cookie, token):
        assert secret.encode() not in kept
