"""``private_key_jwt`` at every endpoint of the issuer that is for clients: RFC 7523 §3, OpenID Connect Core §9."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry

from tests.support import URL, Inside
from tests.world.driver import ASSERTION, CREDENTIALS, ISSUER, Driver

ENDPOINTS = ("token", "device_authorization", "bc-authorize", "introspect", "revoke")


async def sent(driver: Driver, path: str = "token", **changes: str) -> httpx.Response:
    """A request with authentication fields as given; an empty string leaves one out."""
    fields = {"grant_type": CREDENTIALS, "scope": "openid", **driver.authenticated(), **changes}
    return await driver.raw(path, urlencode({name: value for name, value in fields.items() if value}))


def refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), answer.text
    assert answer.headers["www-authenticate"].startswith('Basic realm="issuer"')
    assert answer.headers["cache-control"] == "no-store"


async def test_a_good_assertion_authenticates(driver: Driver) -> None:
    assert (await sent(driver)).status_code == 200


@pytest.mark.case("A15")
async def test_an_assertion_is_good_for_one_request_at_any_endpoint(driver: Driver) -> None:
    used = driver.assertion()
    assert (await sent(driver, client_assertion=used)).status_code == 200
    for path in ENDPOINTS:
        refused(await sent(driver, path, client_assertion=used))
    # The jti is what was used: signing it anew makes no difference.
    again = driver.assertion(jti="a-jti-of-my-own")
    assert (await sent(driver, "introspect", client_assertion=again)).status_code == 200
    refused(await sent(driver, client_assertion=driver.assertion(jti="a-jti-of-my-own", exp=1_800_000_100)))


@pytest.mark.case("A15")
async def test_a_used_assertion_is_remembered_as_long_as_it_could_be_accepted(driver: Driver, world: Inside) -> None:
    used = driver.assertion()
    assert (await sent(driver, client_assertion=used)).status_code == 200
    world.clock.advance(60 + 59)  # its lifetime, and the leeway less a second
    assert (await sent(driver)).status_code == 200  # old ones are cleared away on the way
    refused(await sent(driver, client_assertion=used))


@pytest.mark.case("A15")
async def test_two_clients_may_happen_on_the_same_jti(driver: Driver) -> None:
    driver.register("other")
    for client in ("deputize-agent", "other"):
        assertion = driver.assertion(client, jti="the-very-same")
        assert (await sent(driver, client_id=client, client_assertion=assertion)).status_code == 200


@pytest.mark.case("A15")
@pytest.mark.parametrize(
    "changes",
    [
        {"aud": f"{ISSUER}/token"},
        {"aud": f"{ISSUER}/"},
        {"aud": URL},
        {"aud": "https://evil.example"},
        {"aud": ["https://evil.example", ISSUER]},
        {"aud": None},
        {"sub": "trading-api"},
        {"iss": "trading-api"},
        {"sub": None},
        {"iss": None},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": 1_800_000_000 - 60},
        {"exp": 1_800_000_000 + 3601},
        {"exp": 10**400},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"nbf": 1_800_000_000 + 61},
        {"nbf": float("nan")},
        {"nbf": "now"},
        {"jti": None},
        {"jti": "short"},
        {"jti": "x" * 257},
        {"jti": 12345678},
    ],
    ids=lambda changes: f"{next(iter(changes))}={next(iter(changes.values()))}"[:40],
)
async def test_an_assertion_for_another_audience_or_client_or_time_is_refused(
    driver: Driver, changes: dict[str, Any]
) -> None:
    refused(await sent(driver, client_assertion=driver.assertion(**changes)))


@pytest.mark.case("A15")
async def test_an_expired_assertion_is_refused_past_the_leeway(driver: Driver, world: Inside) -> None:
    early, late = driver.assertion(), driver.assertion()
    world.clock.advance(60 + 59)
    assert (await sent(driver, client_assertion=early)).status_code == 200
    world.clock.advance(1)
    refused(await sent(driver, client_assertion=late))


@pytest.mark.case("A15")
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_another_clients_assertion_or_key_is_refused(driver: Driver, path: str) -> None:
    driver.register("other")
    refused(await sent(driver, path, client_id="other"))  # the agent's assertion
    refused(await sent(driver, path, client_assertion=driver.assertion("other")))
    refused(
        await sent(driver, path, client_assertion=driver.assertion("other", iss="deputize-agent", sub="deputize-agent"))
    )


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"client_assertion": "", "client_assertion_type": ""},
        {"client_assertion": ""},
        {"client_assertion_type": ""},
        {"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"},
        {"client_assertion": "a.b.c"},
        {"client_assertion": "é.é.é"},
        {"client_id": ""},
        {"client_id": "nobody"},
        {"client_assertion": "", "client_assertion_type": "", "client_secret": "secret"},
    ],
    ids=lambda changes: ",".join(f"{name}={value[-8:]}" for name, value in changes.items()),
)
async def test_who_does_not_prove_to_be_the_client_is_not(driver: Driver, path: str, changes: dict[str, str]) -> None:
    refused(await sent(driver, path, **changes))


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_basic_authentication_is_none(driver: Driver, path: str) -> None:
    basic = "Basic " + base64.b64encode(b"deputize-agent:secret").decode()
    refused(await driver.raw(path, urlencode({"grant_type": CREDENTIALS}), authorization=basic))
    named = {"grant_type": CREDENTIALS, "client_id": "deputize-agent"}
    refused(await driver.raw(path, urlencode(named), authorization=basic))


def forged(world: Inside, header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """An assertion in the agent's name with any header and signature."""
    now = int(world.clock())
    values = {"iss": "deputize-agent", "sub": "deputize-agent", "aud": ISSUER, "jti": "x" * 16, "exp": now + 60}
    given = {"kid": world.world.installation.agent_key["kid"], "typ": "JWT", **header}
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (given, values))
    return f"{signed.decode()}.{base64.urlsafe_b64encode(sign(signed)).rstrip(b'=').decode()}"


@pytest.mark.case("A9")
async def test_a_forged_assertion_is_refused(driver: Driver, world: Inside) -> None:
    public = world.world.installation.agent_key
    pem = ECKey.import_key(dict(public)).as_pem(private=False)
    own = ECKey.generate_key("P-256", private=True)

    def ecdsa(key: ECKey) -> Callable[[bytes], bytes]:
        return lambda signed: JWSRegistry.algorithms["ES256"].sign(signed, key)

    agents = ECKey.import_key(json.loads((world.home / "world" / "agent-client.json").read_text()))
    assert (await sent(driver, client_assertion=forged(world, {"alg": "ES256"}, ecdsa(agents)))).status_code == 200
    for header, sign in [
        ({"alg": "none"}, lambda signed: b""),
        ({"alg": "ES256"}, lambda signed: b""),
        ({"alg": "ES256"}, ecdsa(own)),
        ({"alg": "ES256", "jwk": own.as_dict(private=False)}, ecdsa(own)),
        ({"alg": "HS256"}, lambda signed: hmac.digest(pem, signed, "sha256")),
        ({"alg": "HS256"}, lambda signed: hmac.digest(json.dumps(dict(public)).encode(), signed, "sha256")),
        ({"alg": "ES256", "typ": "at+jwt"}, ecdsa(agents)),
        ({"alg": "ES256", "crit": ["exp"]}, ecdsa(agents)),
        ({"alg": "ES256", "kid": None}, ecdsa(agents)),
    ]:
        refused(await sent(driver, client_assertion=forged(world, header, sign)))


async def test_a_public_client_authenticates_by_its_id_alone_where_that_is_enough(driver: Driver) -> None:
    driver.register("public", public=True)
    assert (await driver.post("device_authorization", {"scope": "openid"}, client="public")).status_code == 200
    refused(await driver.token(CREDENTIALS, client="public"))
    pretending = {"client_assertion_type": ASSERTION, "client_assertion": driver.assertion()}
    refused(await driver.raw("device_authorization", urlencode({"client_id": "public", **pretending})))


@pytest.mark.case("C5")
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_disabled_client_is_refused_at_every_endpoint(driver: Driver, world: Inside, path: str) -> None:
    world.world.issuer.tokens.disable("client", "deputize-agent")
    refused(await sent(driver, path))
