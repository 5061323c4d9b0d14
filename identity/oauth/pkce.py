"""Proof key for code exchange: RFC 7636, S256 only."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from authlib.oauth2.rfc7636 import create_s256_code_challenge

from ..errors import ProtocolError
from ..secret import Secret
from .metadata import ServerMetadata

__all__ = ["Pkce", "require_s256"]


@dataclass(frozen=True, slots=True)
class Pkce:
    """A verifier and its S256 challenge."""

    verifier: Secret
    challenge: str

    @classmethod
    def new(cls) -> Pkce:
        """A fresh one, 256 bits (RFC 7636 §4.1)."""
        return cls.restore(Secret(secrets.token_urlsafe(32)))

    @classmethod
    def restore(cls, verifier: Secret) -> Pkce:
        """The one whose verifier was kept."""
        return cls(verifier, create_s256_code_challenge(verifier.reveal()))


def require_s256(server: ServerMetadata) -> None:
    """Refuse a server that does not say that it checks S256 (RFC 9700 §2.1.1; casebook A3)."""
    if "S256" not in server.code_challenge_methods_supported:
        raise ProtocolError(
            f"{server.issuer} does not support PKCE with S256",
            "Without it a stolen code is enough; use the device login",
        )
