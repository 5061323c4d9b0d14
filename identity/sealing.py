"""Sealing: a secret that opens in its own context only.

*Sealed* means a compact JWE (RFC 7516; ``alg: dir``, ``enc: A256GCM``, ``kid``) whose protected header carries ``ctx``, a
digest of where the value belongs. ``open`` makes that digest again from the *live* context and refuses any other: a token
moved to another thread, a ciphertext swapped into another row, a byte that flipped (casebook F1, E13). Keys for graph
state and keys for rows are separate classes with keys of their own, so the one never opens what the other sealed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from joserfc.registry import HeaderParameter

from .canonical import digest
from .errors import KeyMissingError, SealError, UsageError
from .secret import Secret

__all__ = ["Context", "Key", "RowKeys", "StateKeys", "row_context", "token_context", "visitor_context"]

_ALGORITHMS = ["dir", "A256GCM"]
_LIMIT = 16 << 20  # bytes of one value; what is larger is refused when it is sealed, not when it is needed again


class _Registry(jwe.JWERegistry):
    max_ciphertext_length = 2 * _LIMIT  # joserfc's own limit, 64 KiB, would lock away what it had sealed


_REGISTRY = _Registry(
    header_registry={"ctx": HeaderParameter("Digest of the context that the value belongs to", "str", True)},
    algorithms=_ALGORITHMS,
)


@dataclass(frozen=True, slots=True)
class Context:
    """Where a sealed value belongs, as a digest. Made by :func:`token_context` and :func:`row_context`."""

    digest: str


def token_context(
    *,
    tenant: str,
    issuer: str,
    subject: str,
    thread: str,
    graph: str,
    audience: str,
    scopes: Sequence[str],
    purpose: str,
) -> Context:
    """The context of a token in graph state."""
    return Context(digest(["token", tenant, issuer, subject, thread, graph, audience, list(scopes), purpose]))


def row_context(
    *, table: str, tenant: str, row: str, field: str, owner: str = "", generation: int = 0, digest: str = ""
) -> Context:
    """The context of one field of one row.

    Args:
        owner: the principal's ``key``, where the row is somebody's.
        generation: counts the rewrites of the field, so that an older value cannot be put back.
        digest: of the binding, for what belongs to an approval.
    """
    return Context(_digest(["row", table, tenant, row, field, owner, generation, digest]))


def visitor_context(tenant: str) -> Context:
    """The context of the cookies in which visitors' ids travel."""
    return Context(digest(["visitor", tenant]))


_digest = digest  # row_context has a parameter of this name


@dataclass(frozen=True, slots=True)
class Key:
    """One 256-bit key of a ring.

    Args:
        kid: its name in the headers of what it sealed.
        secret: 32 bytes, base64url.
        created_at: unix seconds.
    """

    kid: str
    secret: Secret
    created_at: float


class _Keys:
    """The keys of one use; the newest one seals, all of them open."""

    _use: str

    def __init__(self, keys: Iterable[Key]) -> None:
        newest_last = sorted(keys, key=lambda key: key.created_at)
        if not newest_last:
            raise UsageError(f"The key ring has no {self._use} key", "Restore the key ring from its backup")
        self._keys: dict[str, OctKey] = {}
        for key in newest_last:
            if key.kid in self._keys:
                raise UsageError(f"The key ring names {key.kid!r} twice", "Restore the key ring from its backup")
            if len(_decoded(key.secret.reveal())) != 32:
                raise UsageError(f"The key {key.kid!r} has not 256 bits", "Restore the key ring from its backup")
            self._keys[key.kid] = OctKey.import_key({"kty": "oct", "k": key.secret.reveal(), "kid": key.kid})
        self._newest = newest_last[-1].kid

    def seal(self, value: str, context: Context) -> str:
        """Seal ``value`` for ``context``: a compact JWE.

        Raises:
            UsageError: ``value`` is empty, or larger than what can be opened again.
        """
        plain = value.encode()
        if not plain or len(plain) > _LIMIT:
            raise UsageError(f"A value of {len(plain)} bytes cannot be sealed", f"Seal 1 to {_LIMIT} bytes")
        header = {"alg": "dir", "enc": "A256GCM", "kid": self._newest, "ctx": f"{self._use}:{context.digest}"}
        return jwe.encrypt_compact(header, plain, self._keys[self._newest], registry=_REGISTRY)

    def fits(self, sealed: str, context: Context) -> bool:
        """Whether ``sealed`` says that it is for ``context`` and a key that we have. It is not opened, so not believed."""
        try:
            header = json.loads(_decoded(sealed.split(".", 1)[0]))
            return header["kid"] in self._keys and header["ctx"] == f"{self._use}:{context.digest}"
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    def open(self, sealed: str, context: Context) -> Secret:
        """The value, if it was sealed for this very context.

        Raises:
            KeyMissingError: the key that sealed it is not in the ring.
            SealError: anything else; which it was is told to nobody, since who moves ciphertexts would like to know.
        """
        if not isinstance(sealed, str) or len(sealed) > 2 * _LIMIT:
            raise SealError("A sealed value is too large or no text", "It was changed; sign in or connect again")
        try:
            header = json.loads(_decoded(sealed.split(".", 1)[0]))
            kid = header["kid"]
            key = self._keys.get(kid)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SealError("A sealed value was changed", "Sign in or connect again") from None
        if key is None:
            raise KeyMissingError(
                "The key that sealed a value is not in the key ring",
                "Restore the key ring that belongs to this database",
            )
        try:
            opened = jwe.decrypt_compact(sealed, key, registry=_REGISTRY)
        except (JoseError, ValueError, TypeError, KeyError):
            raise SealError("A sealed value was changed", "Sign in or connect again") from None
        if opened.headers().get("ctx") != f"{self._use}:{context.digest}" or opened.plaintext is None:
            raise SealError("A sealed value belongs elsewhere", "Sign in or connect again")
        return Secret(opened.plaintext.decode())


class StateKeys(_Keys):
    """Keys for tokens in graph state. What they sealed may be lost: it is exchanged again."""

    _use = "state"


class RowKeys(_Keys):
    """Keys for the rows of the database. What they sealed cannot be had again."""

    _use = "row"


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
