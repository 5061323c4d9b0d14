"""JWTs that others signed: which may be believed, by which keys, and until when."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa as weak
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey, RSAKey

from identity.errors import OAuthError, ProtocolError, TokenError, TransportError
from identity.oauth.jwt import (
    ALGORITHMS,
    JwksCache,
    KeySet,
    NeedsFetch,
    jwks_request,
    key_id,
    validate_access_token,
    validate_id_token,
)
from identity.secret import Secret
from tests.oauth.parts import (
    AGENT,
    API,
    ISSUER,
    NOW,
    answer,
    ec,
    encoded,
    keyset,
    okp,
    public,
    rsa,
    server,
    signed,
    unsigned,
)
from tests.support import Clock

NONCE = Secret("n-1")


def access(**changes: Any) -> dict[str, Any]:
    claims = {
        "iss": ISSUER,
        "aud": API,
        "sub": "alice",
        "client_id": AGENT,
        "jti": "j-1",
        "iat": NOW,
        "exp": NOW + 300,
        "scope": "orders:write portfolio:read",
        "act": {"sub": AGENT, "act": {"sub": "another"}},
        "may_act": {"sub": "agent-2"},
        "authorization_details": [{"type": "stock_order"}],
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not ...}


def identity(**changes: Any) -> dict[str, Any]:
    claims = {
        "iss": ISSUER,
        "aud": AGENT,
        "sub": "alice",
        "name": "Alice",
        "acr": "urn:fresh",
        "auth_time": NOW - 5,
        "nonce": "n-1",
        "iat": NOW,
        "exp": NOW + 300,
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not ...}


def take(token: str, *, keys: KeySet | None = None, now: float = NOW) -> Any:
    return validate_access_token(token, keys=keys or keyset(ec()), issuer=ISSUER, audience=API, now=now)


def sign_in(token: str, *, nonce: Secret | None = NONCE, now: float = NOW) -> Any:
    return validate_id_token(token, keys=keyset(ec()), issuer=ISSUER, client_id=AGENT, nonce=nonce, now=now)


def test_an_access_token_is_read_with_its_actor_and_the_outermost_one_only() -> None:
    found = take(signed(access()))
    assert (found.subject, found.client_id, found.jti) == ("alice", AGENT, "j-1")
    assert found.scopes == {"orders:write", "portfolio:read"}
    assert (found.actor, found.may_act) == (AGENT, "agent-2")
    assert found.authorization_details == ({"type": "stock_order"},)
    assert found.expires_at == NOW + 300
    assert found.raw == access()


def test_an_access_token_without_the_optional_claims_carries_nothing() -> None:
    few = access(scope=..., act=..., may_act=..., authorization_details=...)
    found = take(signed(few, typ="application/AT+JWT"))
    assert (found.scopes, found.actor, found.may_act) == (frozenset(), None, None)
    assert found.authorization_details == ()


def test_an_id_token_is_read() -> None:
    for typ in ("JWT", "jwt", "application/jwt", ...):
        found = sign_in(signed(identity(), typ=typ))
        assert (found.subject, found.name, found.acr, found.auth_time) == ("alice", "Alice", "urn:fresh", NOW - 5)


# -- of whom, for whom, what kind (A8) -----------------------------------------------------------------------------------


@pytest.mark.case("A8")
@pytest.mark.parametrize(
    "aud",
    [
        ...,
        None,
        "",
        [],
        AGENT,
        f"{API}/",
        f"{API}.evil.example",
        API.upper(),
        [f"{API}/orders", AGENT],
        {API: True},
        [[API]],
        1,
    ],
)
def test_a_token_for_another_audience_is_refused(aud: Any) -> None:
    with pytest.raises(TokenError, match="another audience"):
        take(signed(access(aud=aud)))


def test_a_token_for_several_audiences_is_for_each_of_them() -> None:
    assert take(signed(access(aud=["https://other.example", API]))).subject == "alice"


@pytest.mark.case("A8")
@pytest.mark.parametrize("iss", [..., None, "", f"{ISSUER}/", "https://evil.example", ISSUER.upper(), [ISSUER], 1])
def test_a_token_of_another_issuer_is_refused(iss: Any) -> None:
    with pytest.raises(TokenError, match="another issuer"):
        take(signed(access(iss=iss)))
    with pytest.raises(TokenError, match="another issuer"):
        sign_in(signed(identity(iss=iss), typ="JWT"))


@pytest.mark.case("A8")
@pytest.mark.parametrize("typ", [..., None, "JWT", "jwt", "id_token", "rt+jwt", "oauth-id-jag+jwt", "dpop+jwt", "", 1])
def test_a_token_of_another_kind_is_refused_where_an_access_token_belongs(typ: Any) -> None:
    # The claims are those of an access token, so that only its kind speaks against it.
    with pytest.raises(TokenError, match="of another kind"):
        take(signed(access(), typ=typ))


@pytest.mark.case("A8")
def test_an_id_token_is_refused_where_an_access_token_belongs_and_the_other_way_round() -> None:
    both = {**access(), **identity(), "aud": [API, AGENT], "azp": AGENT}
    with pytest.raises(TokenError, match="of another kind"):
        take(signed(both, typ="JWT"))
    with pytest.raises(TokenError, match="of another kind"):
        sign_in(signed(both, typ="at+jwt"))


@pytest.mark.case("A8")
@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another-client"},
        {"aud": ["another-client"]},
        {"aud": [AGENT, "another-client"]},  # §3.1.3.7: several audiences need an azp
        {"aud": [AGENT, "another-client"], "azp": "another-client"},
        {"azp": "another-client"},
        {"azp": None},
        {"azp": [AGENT]},
    ],
)
def test_an_id_token_for_another_client_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenError):
        sign_in(signed(identity(**changes), typ="JWT"))


def test_an_id_token_for_several_audiences_is_taken_by_the_client_it_was_issued_to() -> None:
    assert sign_in(signed(identity(aud=[AGENT, "another"], azp=AGENT), typ="JWT")).subject == "alice"


@pytest.mark.parametrize("nonce", [..., None, "", " ", "n-2", "N-1", ["n-1"], 1, "\ud800"])
def test_an_id_token_of_another_sign_in_is_refused(nonce: Any) -> None:
    with pytest.raises(TokenError, match="another sign-in"):
        sign_in(signed(identity(nonce=nonce), typ="JWT"))


def test_a_flow_without_a_nonce_asks_for_none() -> None:
    assert sign_in(signed(identity(nonce=...), typ="JWT"), nonce=None).subject == "alice"


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": ...},
        {"sub": ""},
        {"sub": 7},
        {"client_id": ...},
        {"client_id": [AGENT]},
        {"jti": ...},
        {"jti": 1},
        {"scope": ["orders:write"]},
        {"scope": None},
        {"act": AGENT},
        {"act": {}},
        {"act": {"sub": ""}},
        {"act": [{"sub": AGENT}]},
        {"may_act": AGENT},
        {"may_act": {"sub": 1}},
        {"authorization_details": {"type": "stock_order"}},
        {"authorization_details": ["stock_order"]},
        {"authorization_details": "[]"},
    ],
)
def test_an_access_token_with_a_malformed_claim_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenError):
        take(signed(access(**changes)))


# -- signed how (A9) -----------------------------------------------------------------------------------------------------


def test_every_listed_algorithm_is_accepted_with_the_key_that_fits_it() -> None:
    fitting = {
        "ES256": ec(),
        "ES384": ec("P-384", "es384"),
        "RS256": rsa(),
        "PS256": rsa(),
        "EdDSA": okp(),
        "Ed25519": okp(),
    }
    assert set(fitting) == set(ALGORITHMS)
    for alg, key in fitting.items():
        assert take(signed(access(), key=key, alg=alg), keys=keyset(*fitting.values())).subject == "alice"


@pytest.mark.case("A9")
@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", ..., None, ["ES256"], {"alg": "ES256"}, 1])
@pytest.mark.parametrize("signature", ["", "AA", "valid"])
def test_an_unsigned_token_is_refused(alg: Any, signature: str) -> None:
    header = {"alg": alg, "kid": "es", "typ": "at+jwt"}
    text = unsigned({k: v for k, v in header.items() if v is not ...}, access())
    if signature == "valid":
        signature = signed(access(), alg=alg, signer="ES256").rsplit(".", 1)[1]
    with pytest.raises(TokenError):
        take(f"{text}.{signature}")


@pytest.mark.case("A9")
@pytest.mark.parametrize("key", [ec(), rsa(), okp()], ids=["EC", "RSA", "OKP"])
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a_public_key_used_as_an_hmac_key_is_refused(key: ECKey | RSAKey | OKPKey, alg: str) -> None:
    # Attack: everybody knows the public key; a verifier that goes by the token's alg takes it for a shared secret.
    spelled = [
        key.as_pem(private=False),
        key.as_der(private=False),
        json.dumps(key.as_dict(private=False)).encode(),
        json.dumps(key.as_dict(private=False), separators=(",", ":")).encode(),
    ]
    text = unsigned({"alg": alg, "kid": key.kid, "typ": "at+jwt"}, access())
    for secret in spelled:
        mac = hmac.new(secret, text.encode(), getattr(hashlib, alg.replace("HS", "sha"))).digest()
        with pytest.raises(TokenError, match="algorithm is not accepted"):
            take(f"{text}.{encoded(mac)}", keys=keyset(key))


@pytest.mark.case("A9")
def test_an_algorithm_that_is_not_listed_is_refused_though_its_signature_holds() -> None:
    p521 = ECKey.generate_key("P-521", {"kid": "es512"})
    koblitz = ECKey.generate_key("secp256k1", {"kid": "k"})
    for key, alg in ((p521, "ES512"), (koblitz, "ES256K"), (rsa(), "RS384"), (rsa(), "RS512"), (rsa(), "PS512")):
        with pytest.raises(TokenError, match="algorithm is not accepted"):
            take(signed(access(), key=key, alg=alg), keys=keyset(key))


@pytest.mark.case("A9")
@pytest.mark.parametrize(
    ("alg", "key"),
    [
        ("ES256", rsa()),
        ("ES256", okp()),
        ("ES256", ec("P-384", "es384")),
        ("ES384", ec()),
        ("RS256", ec()),
        ("PS256", okp()),
        ("EdDSA", ec()),
        ("Ed25519", rsa()),
        ("EdDSA", okp("X25519", "x")),
        ("Ed25519", okp("X25519", "x")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.key_type}-{value.kid}",
)
def test_a_key_that_does_not_fit_the_algorithm_verifies_nothing(alg: str, key: ECKey | RSAKey | OKPKey) -> None:
    signature = signed(access()).rsplit(".", 1)[1]
    text = unsigned({"alg": alg, "kid": key.kid, "typ": "at+jwt"}, access())
    with pytest.raises(TokenError):
        take(f"{text}.{signature}", keys=keyset(key))


@pytest.mark.case("A9")
@pytest.mark.parametrize(
    ("key", "signer", "told"), [(rsa(), "PS256", "RS256"), (rsa(), "RS256", "PS256"), (okp(), "Ed25519", "ES256")]
)
def test_a_signature_by_another_algorithm_than_the_header_says_is_refused(key: Any, signer: str, told: str) -> None:
    with pytest.raises(TokenError):
        take(signed(access(), key=key, alg=told, signer=signer), keys=keyset(key))


@pytest.mark.case("A9")
@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": NOW},
        {"crit": ["b64"], "b64": True},
        {"crit": ["b64"], "b64": False},
        {"crit": ["https://evil.example/ext"], "https://evil.example/ext": 1},
        {"crit": []},
        {"crit": None},
        {"crit": "kid"},
        {"crit": ["alg"]},
        {"b64": False},
        {"b64": True},
    ],
    ids=json.dumps,
)
def test_a_token_that_demands_an_extension_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(TokenError, match="an extension"):
        take(signed(access(), **header))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "a.b.c.d.e",
        "é.b.c",
        "a.b.\ud800",
        "!!!!.b.c",
        encoded(b"[]") + ".b.c",
        encoded(b"null") + ".b.c",
        encoded(b'{"alg": "ES256"') + ".b.c",
        encoded(b"\xff\xfe") + ".b.c",
        encoded(b'{"alg":' + b"[" * 5_000 + b"]" * 5_000 + b"}") + ".b.c",
        signed(access()) + "." + "A" * 16_384,
        signed(access(padding="x" * 16_384)),
        None,
        b"a.b.c",
        7,
    ],
    ids=lambda token: repr(token)[:24],
)
def test_what_is_no_jwt_is_refused(token: Any) -> None:
    with pytest.raises(TokenError):
        take(token)
    with pytest.raises(TokenError):
        sign_in(token)


@pytest.mark.parametrize("claims", [[], "text", 1, None, True])
def test_a_signed_payload_that_holds_no_claims_is_refused(claims: Any) -> None:
    with pytest.raises(TokenError, match="no claims"):
        take(signed(claims))


@pytest.mark.case("A9")
@given(st.data())
def test_a_token_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    token = signed(access())
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABZaz09-_.=!"))
    changed = token[:place] + other + token[place + 1 :]
    if changed == token:
        return
    with pytest.raises(TokenError):
        take(changed)


# -- by which key (A10) --------------------------------------------------------------------------------------------------


ODD_KIDS = [
    "../../../../dev/null",
    "/etc/passwd",
    "' OR 1=1 --",
    "es' UNION SELECT 'AA",
    "https://evil.example/jwks.json",
    "file:///proc/self/environ",
    "ES",
    "es ",
    "es\x00",
    "",
    "x" * 5_000,
]


@pytest.mark.case("A10")
@pytest.mark.parametrize("kid", [*ODD_KIDS, ..., None, 0, True, ["es"], {"kid": "es"}], ids=lambda kid: repr(kid)[:24])
def test_a_kid_is_a_name_in_the_issuers_key_set_and_nothing_else(kid: Any) -> None:
    # The signature is that of the issuer's only key, so that only the name speaks against it.
    token = signed(access(), kid=kid)
    assert key_id(token) == (kid if isinstance(kid, str) else None)
    with pytest.raises(TokenError):
        take(token)


@pytest.mark.case("A10")
@pytest.mark.parametrize("kid", ["es", "evil", ...])
@pytest.mark.parametrize("header", ["jwk", "jku", "x5u", "x5c", "all"])
def test_a_key_that_the_token_brings_itself_verifies_nothing(header: str, kid: Any) -> None:
    attacker = ECKey.generate_key("P-256", {"kid": "evil"})
    brought = {
        "jwk": attacker.as_dict(private=False),
        "jku": "https://evil.example/jwks.json",
        "x5u": "https://evil.example/cert.pem",
        "x5c": [base64.b64encode(attacker.as_der(private=False)).decode()],
    }
    chosen = brought if header == "all" else {header: brought[header]}
    with pytest.raises(TokenError):
        take(signed(access(), key=attacker, kid=kid, **chosen))


@pytest.mark.case("A10")
def test_what_a_token_says_about_other_keys_is_ignored_when_the_issuers_key_signed_it() -> None:
    token = signed(
        access(),
        jku="https://evil.example/jwks.json",
        x5u="https://evil.example/cert.pem",
        x5t="abc",
        nonce="some issuers write parameters of their own (RFC 7515 section 4: ignored)",
        x5c=["QUJD" * 300],
    )
    assert take(token).subject == "alice"


@pytest.mark.case("A10")
def test_a_thousand_unknown_kids_cause_at_most_one_fetch_per_cool_down() -> None:
    clock, cache, fetches = Clock(), JwksCache(), []

    def arrives(kid: str | None) -> None:
        try:
            found = cache.lookup(kid, clock())
        except TokenError:
            return
        if isinstance(found, NeedsFetch):
            fetches.append(clock())
            if len(fetches) % 2:
                cache.store(answer(public(ec())), clock())
            else:
                cache.failed(clock())

    for number in range(1_000):  # over ten minutes, some of them without a name
        arrives(None if number % 10 == 0 else f"kid-{number}")
        arrives("es")
        clock.advance(0.6)
    assert len(fetches) == 10
    assert all(later - sooner >= 60 for sooner, later in pairwise(fetches))


def test_a_key_set_keeps_what_may_verify_signatures_and_passes_over_the_rest() -> None:
    numbers = weak.generate_private_key(65537, 1024).public_key().public_numbers()
    short = {"kty": "RSA", "kid": "short", "n": encoded(numbers.n.to_bytes(128, "big")), "e": "AQAB"}
    padded = {**short, "kid": "padded", "n": encoded(numbers.n.to_bytes(256, "big"))}
    fine = ec().as_dict(private=False)
    passed_over: list[Any] = [
        short,
        padded,
        {"kty": "oct", "k": encoded(b"x" * 32), "kid": "oct"},
        {**fine, "kid": "enc", "use": "enc"},
        {**fine, "kid": 7},
        {name: value for name, value in fine.items() if name != "kid"},
        {**fine, "kid": "curve", "crv": "P-999"},
        {**fine, "kid": "off-curve", "x": fine["y"]},
        {"kty": "EC", "kid": "empty"},
        {"kty": "RSA", "kid": "no-n", "e": "AQAB"},
        {"kty": "RSA", "kid": "odd-n", "n": [1], "e": "AQAB"},
        {"kty": ["EC"], "kid": "odd-kty"},
        {"kty": {}, "kid": "odd-kty-2"},
        {"kid": "no-kty"},
        "text",
        None,
        [],
    ]
    found = KeySet.of({"keys": [*passed_over, fine]})
    assert "es" in found
    named = [jwk["kid"] for jwk in passed_over if isinstance(jwk, dict) and isinstance(jwk.get("kid"), str)]
    assert [kid for kid in named if kid in found] == []


@pytest.mark.case("A9")
@pytest.mark.parametrize(
    "limits", [{"alg": "PS256"}, {"alg": "RSA-OAEP"}, {"key_ops": ["encrypt"]}, {"key_ops": []}], ids=json.dumps
)
def test_a_key_that_its_issuer_meant_for_something_else_verifies_nothing(limits: dict[str, Any]) -> None:
    meant = KeySet.of({"keys": [{**rsa().as_dict(private=False), **limits}]})
    with pytest.raises(TokenError):
        take(signed(access(), key=rsa(), alg="RS256"), keys=meant)


def test_of_two_keys_with_one_name_the_first_one_counts() -> None:
    first, second = ec(), ECKey.generate_key("P-256", {"kid": "es"})
    keys = KeySet.of({"keys": [first.as_dict(private=False), second.as_dict(private=False)]})
    assert take(signed(access(), key=first), keys=keys).subject == "alice"
    with pytest.raises(TokenError):
        take(signed(access(), key=second), keys=keys)


def test_a_private_key_in_a_jwks_is_used_as_the_public_one_that_it_contains() -> None:
    keys = KeySet.of({"keys": [ec().as_dict(private=True)]})
    assert take(signed(access()), keys=keys).subject == "alice"
    found = keys.get("es")
    assert found is not None
    assert not found.is_private


@pytest.mark.parametrize("body", [{}, {"keys": None}, {"keys": {}}, {"keys": "es"}, {"keys": [1]}])
def test_a_key_set_may_be_malformed_and_is_then_empty(body: dict[str, Any]) -> None:
    assert not KeySet.of(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["kty", "kid", "n", "e", "crv", "x", "y", "use", "keys"]), inner, max_size=6
            )
        ),
        max_leaves=12,
    )
)
def test_no_key_set_breaks_its_reader(jwk: Any) -> None:
    for kty in ("EC", "RSA", "OKP", jwk):
        assert not KeySet.of({"keys": [jwk, {"kty": kty, "kid": "k", "n": jwk, "e": jwk, "crv": jwk, "x": jwk}]})


# -- for how long: keys (A11) --------------------------------------------------------------------------------------------


def stored(*keys: Any, at: float = NOW) -> JwksCache:
    cache = JwksCache()
    assert isinstance(cache.lookup("es", at), NeedsFetch)
    cache.store(answer(public(*keys)), at)
    return cache


def names(cache: JwksCache, kid: str, now: float) -> bool:
    found = cache.lookup(kid, now)
    return isinstance(found, KeySet) and kid in found


@pytest.mark.case("A11")
def test_a_new_signing_key_is_looked_for_and_accepted() -> None:
    cache = stored(ec())
    new = ec(kid="new")
    assert isinstance(cache.lookup("new", NOW + 60), NeedsFetch)
    cache.store(answer(public(ec(), new)), NOW + 60)
    found = cache.lookup("new", NOW + 60)
    assert isinstance(found, KeySet)
    assert take(signed(access(), key=new), keys=found).subject == "alice"


@pytest.mark.case("A11")
def test_a_withdrawn_key_is_refused_after_its_lifetime() -> None:
    cache = stored(ec(), ec(kid="withdrawn"))
    assert names(cache, "withdrawn", NOW + 3_599)
    assert isinstance(cache.lookup("withdrawn", NOW + 3_600), NeedsFetch)
    cache.store(answer(public(ec())), NOW + 3_600)
    with pytest.raises(TokenError):
        cache.lookup("withdrawn", NOW + 3_600)
    assert names(cache, "es", NOW + 3_600)


@pytest.mark.case("A11")
@pytest.mark.parametrize(
    "useless",
    [
        None,
        answer(b"", 503),
        answer(b"<html>", 200, "text/html"),
        answer({"keys": []}),
        answer({"error": "server_error"}, 400),
        answer(b"[]"),
    ],
    ids=["no-answer", "503", "page", "empty", "error", "list"],
)
def test_while_the_jwks_is_down_the_last_good_keys_serve_for_a_day_and_then_none(useless: Any) -> None:
    clock = Clock(NOW)
    cache = stored(ec(), at=clock())

    def fetch() -> None:
        if useless is None:
            cache.failed(clock())
        else:
            with pytest.raises((ProtocolError, TransportError, OAuthError)):
                cache.store(useless, clock())

    tried = 0
    while clock() - NOW < 24 * 3_600:
        found = cache.lookup("es", clock())
        if isinstance(found, NeedsFetch):
            tried += 1
            fetch()
            found = cache.lookup("es", clock())
        assert isinstance(found, KeySet)
        assert "es" in found
        clock.advance(45)
    assert tried <= 23 * 60
    fetch()
    with pytest.raises(TokenError):
        cache.lookup("es", clock())
    assert not cache.serves("es", clock())


def test_unknown_keys_are_served_by_nobody() -> None:
    cache = stored(ec())
    assert cache.serves("es", NOW + 86_399)
    assert not cache.serves("new", NOW)
    assert not cache.serves(None, NOW)


@pytest.mark.parametrize("back", [1.0, 3_600.0, 365 * 86_400.0])
def test_a_clock_that_is_set_back_fetches_the_keys_again_once(back: float) -> None:
    cache = stored(ec(), ec(kid="withdrawn"))
    assert isinstance(cache.lookup("withdrawn", NOW - back), NeedsFetch)
    cache.store(answer(public(ec())), NOW - back)
    with pytest.raises(TokenError):
        cache.lookup("withdrawn", NOW - back)
    assert names(cache, "es", NOW - back)


def test_the_keys_are_fetched_where_the_metadata_says() -> None:
    assert (jwks_request(server()).method, jwks_request(server()).url) == ("GET", f"{ISSUER}/jwks")
    with pytest.raises(ProtocolError, match="has no jwks_uri"):
        jwks_request(server(jwks_uri=None))


# -- for how long: tokens (A12) ------------------------------------------------------------------------------------------


def both_kinds(**times: Any) -> Iterable[Any]:
    yield lambda: take(signed(access(**times)))
    yield lambda: sign_in(signed(identity(**times), typ="JWT"))


@pytest.mark.case("A12")
@pytest.mark.parametrize(
    "times", [{"exp": NOW - 59}, {"nbf": NOW + 59}, {"iat": NOW + 59}, {"exp": NOW - 59, "iat": NOW - 359}]
)
def test_clocks_may_differ_by_59_seconds_either_way(times: dict[str, float]) -> None:
    for check in both_kinds(**times):
        assert check().subject == "alice"


@pytest.mark.case("A12")
@pytest.mark.parametrize("times", [{"exp": NOW - 60}, {"exp": NOW - 60.5}, {"exp": NOW - 86_400}, {"exp": 0}])
def test_a_token_that_expired_over_60_seconds_ago_is_refused(times: dict[str, float]) -> None:
    for check in both_kinds(**times):
        with pytest.raises(TokenError) as refused:
            check()
        assert refused.value.code == "expired_token"


@pytest.mark.case("A12")
@pytest.mark.parametrize("times", [{"nbf": NOW + 61}, {"iat": NOW + 61}, {"nbf": NOW + 61, "iat": NOW}])
def test_a_token_from_over_60_seconds_in_the_future_is_refused(times: dict[str, float]) -> None:
    for check in both_kinds(**times):
        with pytest.raises(TokenError, match="not valid yet"):
            check()


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", ["1900000000", True, -1, 1e11, [NOW], {}, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(name: str, value: Any) -> None:
    for check in both_kinds(**{name: value}):
        with pytest.raises(TokenError, match=f"{name} is no time"):
            check()


@pytest.mark.parametrize("absent", [..., None])
def test_a_token_that_never_expires_is_refused(absent: Any) -> None:
    for check in both_kinds(exp=absent):
        with pytest.raises(TokenError):
            check()
