"""The key ring: one private file, outside the data folder, so that a stolen database comes without its keys."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from .errors import GateError, SettingsError, UsageError
from .files import create_private, read_private
from .oauth.client import Client
from .sealing import Key, RowKeys, StateKeys
from .secret import Secret

__all__ = ["KeyRing", "create_client_key", "create_keyring", "load_client", "load_keyring"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of one installation."""

    state: StateKeys
    rows: RowKeys


def create_keyring(path: Path, data_dir: Path, now: float) -> None:
    """Make a new key ring. An existing one is never overwritten: its rows could not be opened again (casebook F3)."""
    _outside(path, data_dir)
    keys = [
        {
            "kid": f"{use}-{secrets.token_hex(4)}",
            "use": use,
            "k": base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode(),
            "created_at": now,
        }
        for use in ("state", "row")
    ]
    create_private(path, json.dumps({"version": _VERSION, "keys": keys}, indent=2) + "\n")


def load_keyring(path: Path, data_dir: Path) -> KeyRing:
    """Read the key ring.

    Raises:
        SettingsError: missing, readable by others, inside the data folder, or not a key ring. Nothing is made anew.
    """
    _outside(path, data_dir)
    text = read_private(
        path, "The key ring", "Restore it from its backup, or make one for a new database: deputize keys new"
    )
    try:
        ring = json.loads(text)
        if ring["version"] != _VERSION:
            raise SettingsError(f"The key ring {path} is of another version", "Use the deputize that wrote it")
        keys = [(str(k["use"]), Key(str(k["kid"]), Secret(k["k"]), float(k["created_at"]))) for k in ring["keys"]]
        return KeyRing(
            StateKeys(key for use, key in keys if use == "state"), RowKeys(key for use, key in keys if use == "row")
        )
    except UsageError as error:
        raise SettingsError(f"{path}: {error.message}", error.hint) from None
    except (JoseError, GateError, ValueError, KeyError, TypeError, RecursionError):
        raise SettingsError(f"{path} is not a key ring", "Restore it from its backup") from None


def _outside(path: Path, data_dir: Path) -> None:
    if path.resolve().is_relative_to(data_dir.resolve()):
        raise SettingsError(
            f"The key ring {path} lies in the data folder, so a copy of the one is a copy of both",
            "Set DEPUTIZE_KEY_FILE to a place outside DEPUTIZE_DATA_DIR",
        )


def create_client_key(path: Path) -> dict[str, Any]:
    """Make the agent's private key (ES256) for ``private_key_jwt``; returns the public JWK to register at the issuer."""
    key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"}, private=True, auto_kid=True)
    create_private(path, json.dumps(key.as_dict(private=True), indent=2) + "\n")
    return dict(key.as_dict(private=False))


_SIGNS = {"ES256": "P-256", "ES384": "P-384", "PS256": "RSA", "RS256": "RSA", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}
"""Which keys sign with which algorithm. A key that does not say ``alg`` signs with the first that fits."""


def load_client(client_id: str, path: Path) -> Client:
    """The agent's credential: its id and its private key.

    Raises:
        SettingsError: missing, readable by others, or nothing that this agent could sign with.
    """
    text = read_private(
        path, "The agent's key", "Make one and register its public part at the issuer: deputize keys client"
    )
    try:
        values = json.loads(text)
        kinds: dict[str, type[ECKey] | type[RSAKey] | type[OKPKey]] = {"EC": ECKey, "RSA": RSAKey, "OKP": OKPKey}
        key = kinds[values["kty"]].import_key(values)
        kind = values.get("crv", values["kty"])
        algorithm = values.get("alg") or next((alg for alg, fits in _SIGNS.items() if fits == kind), "")
        if not key.is_private:
            raise SettingsError(f"{path} holds a public key only", "Point DEPUTIZE_CLIENT_KEY_FILE to the private JWK")
        key.check_use("sig")
        key.check_key_op("sign")
        if _SIGNS.get(algorithm) != kind:  # said now, not by every request
            raise SettingsError(
                f"{path} holds a key that nothing can be signed with here",
                "Use an EC key (P-256, P-384), an RSA key or an Ed25519 key, with an alg that fits it or none",
            )
    except (JoseError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SettingsError(f"{path} is not a private JWK for signatures", "Restore it from its backup") from None
    return Client(client_id, key, algorithm)
