"""The key ring and the agent's key: made once, never overwritten, and refused in one clear sentence (casebook F3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from identity import SettingsError
from identity.files import create_private
from identity.keyring import KeyRing, create_client_key, create_keyring, load_client, load_keyring
from identity.sealing import row_context, token_context

NOW = 1_800_000_000.0
ROW = row_context(table="t", tenant="acme", row="1", field="f")
TOKEN = token_context(
    tenant="acme", issuer="i", subject="s", thread="t", graph="g", audience="a", scopes=("x",), purpose="call"
)


def made(folder: Path) -> tuple[Path, KeyRing]:
    path = folder / "keys" / "keyring.json"
    create_keyring(path, folder / "data", NOW)
    return path, load_keyring(path, folder / "data")


def kept(path: Path, value: Any) -> Path:
    path.unlink(missing_ok=True)
    create_private(path, value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_ring_opens_what_it_sealed_after_it_was_read_again(tmp_path: Path) -> None:
    path, ring = made(tmp_path)
    again = load_keyring(path, tmp_path / "data")
    assert again.rows.open(ring.rows.seal("refresh", ROW), ROW).reveal() == "refresh"
    assert again.state.open(ring.state.seal("access", TOKEN), TOKEN).reveal() == "access"
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_rings_share_no_key_and_neither_do_state_and_rows(tmp_path: Path) -> None:
    keys = [
        key["k"]
        for folder in (tmp_path / "one", tmp_path / "other")
        for key in json.loads(made(folder)[0].read_text())["keys"]
    ]
    assert len(set(keys)) == len(keys) == 4


@pytest.mark.case("F3")
def test_a_ring_that_exists_is_never_made_anew(tmp_path: Path) -> None:
    path, _ = made(tmp_path)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="not overwritten"):
        create_keyring(path, tmp_path / "data", NOW)
    assert path.read_bytes() == before


@pytest.mark.case("F3")
def test_a_missing_ring_is_an_error_and_not_a_new_ring(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"The key ring .* is missing") as refused:
        load_keyring(tmp_path / "keys" / "keyring.json", tmp_path / "data")
    assert "Restore it from its backup" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["data/keyring.json", "data/deeper/keyring.json", "data/../data/keyring.json"])
def test_a_ring_inside_the_data_folder_is_refused_when_it_is_made_and_when_it_is_read(
    tmp_path: Path, place: str
) -> None:
    path = tmp_path / place
    with pytest.raises(SettingsError, match="lies in the data folder") as refused:
        create_keyring(path, tmp_path / "data", NOW)
    assert "DEPUTIZE_KEY_FILE" in refused.value.hint
    create_private(path, "{}")
    with pytest.raises(SettingsError, match="lies in the data folder"):
        load_keyring(path, tmp_path / "data")


def test_a_link_into_the_data_folder_is_seen_through(tmp_path: Path) -> None:
    elsewhere = tmp_path / "keys" / "keyring.json"
    (tmp_path / "data").mkdir()
    elsewhere.parent.symlink_to(tmp_path / "data")
    with pytest.raises(SettingsError, match="lies in the data folder"):
        create_keyring(elsewhere, tmp_path / "data", NOW)


_KEY = {"kid": "row-1", "use": "row", "k": "A" * 43, "created_at": NOW}
_STATE = {**_KEY, "kid": "state-1", "use": "state"}


@pytest.mark.case("F3")
@pytest.mark.parametrize(
    ("ring", "told"),
    [
        ("", "is not a key ring"),
        ("{", "is not a key ring"),
        ("[]", "is not a key ring"),
        ('"text"', "is not a key ring"),
        ("[" * 100_000, "is not a key ring"),
        ({}, "is not a key ring"),
        ({"version": 2, "keys": [_KEY, _STATE]}, "of another version"),
        ({"version": 1, "keys": {}}, "has no state key"),
        ({"version": 1, "keys": [_KEY]}, "has no state key"),
        ({"version": 1, "keys": [_STATE]}, "has no row key"),
        ({"version": 1, "keys": [_STATE, _KEY, _KEY]}, "names 'row-1' twice"),
        ({"version": 1, "keys": [_STATE, {**_KEY, "k": "A" * 22}]}, "has not 256 bits"),
        ({"version": 1, "keys": [_STATE, {**_KEY, "k": ""}]}, "is not a key ring"),
        ({"version": 1, "keys": [_STATE, {**_KEY, "k": 7}]}, "is not a key ring"),
        ({"version": 1, "keys": [_STATE, {**_KEY, "k": "A"}]}, "is not a key ring"),
        ({"version": 1, "keys": [_STATE, {**_KEY, "created_at": "yesterday"}]}, "is not a key ring"),
        ({"version": 1, "keys": [_STATE, {"use": "row"}]}, "is not a key ring"),
    ],
)
def test_a_damaged_ring_is_refused_in_one_sentence_and_left_as_it_is(tmp_path: Path, ring: Any, told: str) -> None:
    path = kept(tmp_path / "keyring.json", ring)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match=told) as refused:
        load_keyring(path, tmp_path / "data")
    assert str(path) in refused.value.message
    assert "AAAA" not in str(refused.value)
    assert path.read_bytes() == before


# -- the agent's own key -----------------------------------------------------------------------------------------------


def test_a_new_client_key_signs_and_only_its_public_part_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    public = create_client_key(path)
    assert "d" not in public
    assert path.stat().st_mode & 0o777 == 0o600
    client = load_client("agent", path)
    signed = jws.serialize_compact({"alg": client.alg}, b"hello", client.key, algorithms=[client.alg])
    assert jws.deserialize_compact(signed, ECKey.import_key(public), algorithms=["ES256"]).payload == b"hello"
    with pytest.raises(SettingsError, match="not overwritten"):
        create_client_key(path)
    assert load_client("agent", path).key.thumbprint() == client.key.thumbprint()


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (ECKey.generate_key("P-256"), "ES256"),
        (ECKey.generate_key("P-384"), "ES384"),
        (RSAKey.generate_key(2048), "PS256"),
        (RSAKey.generate_key(2048, {"alg": "RS256"}), "RS256"),
        (OKPKey.generate_key("Ed25519"), "EdDSA"),
        (OKPKey.generate_key("Ed25519", {"alg": "Ed25519"}), "Ed25519"),
    ],
)
def test_a_key_signs_with_what_fits_it(tmp_path: Path, key: Any, alg: str) -> None:
    assert load_client("agent", kept(tmp_path / "client.json", key.as_dict(private=True))).alg == alg


_PRIVATE = ECKey.generate_key("P-256").as_dict(private=True)


@pytest.mark.parametrize(
    ("jwk", "told"),
    [
        ("", "is not a private JWK"),
        ("[]", "is not a private JWK"),
        ('"text"', "is not a private JWK"),
        ("[" * 100_000, "is not a private JWK"),
        ({}, "is not a private JWK"),
        ({"kty": ["EC"]}, "is not a private JWK"),
        (OctKey.generate_key(256).as_dict(private=True), "is not a private JWK"),
        ({**_PRIVATE, "d": "!"}, "is not a private JWK"),
        ({**_PRIVATE, "use": "enc"}, "is not a private JWK"),
        ({**_PRIVATE, "key_ops": ["verify"]}, "is not a private JWK"),
        ({k: v for k, v in _PRIVATE.items() if k != "d"}, "holds a public key only"),
        ({**_PRIVATE, "alg": "HS256"}, "nothing can be signed with"),
        ({**_PRIVATE, "alg": "none"}, "nothing can be signed with"),
        ({**_PRIVATE, "alg": "RS256"}, "nothing can be signed with"),
        ({**_PRIVATE, "alg": "ES384"}, "nothing can be signed with"),
        (ECKey.generate_key("P-521").as_dict(private=True), "nothing can be signed with"),
        (ECKey.generate_key("secp256k1").as_dict(private=True), "nothing can be signed with"),
        (OKPKey.generate_key("X25519").as_dict(private=True), "nothing can be signed with"),
    ],
)
def test_a_key_that_could_not_sign_is_refused_before_the_first_request(tmp_path: Path, jwk: Any, told: str) -> None:
    path = kept(tmp_path / "client.json", jwk)
    with pytest.raises(SettingsError, match=told) as refused:
        load_client("agent", path)
    assert str(path) in refused.value.message
    if isinstance(jwk, dict) and jwk.get("d"):
        assert jwk["d"] == "!" or jwk["d"] not in str(refused.value)
