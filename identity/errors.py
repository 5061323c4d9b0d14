"""The one error tree of deputize.

Every error says what happened, to what, and what to do next: ``message`` is one sentence about the fault, ``hint`` one
about the way out, ``code`` a stable word for machines. Neither ever carries a secret, and both are printable as they
stand (:func:`identity.text.printable` has escaped what came from elsewhere).

::

    DeputizeError                 exit code 1
    ├── UsageError                exit code 2: what was asked for cannot be done as it was asked
    │   ├── SettingsError         a setting is missing or contradicts another
    │   ├── NeedsError            a tool's declaration does not fit the tool
    │   └── InputError            a graph was given something that is not a new message of a person
    ├── GateError                 a guarded tool was called around its gate, or a token was to leave its audience
    ├── RefusedError              somebody who may decide said no: a person, a policy, an expiry
    ├── OAuthError                their answer: an OAuth error response (RFC 6749 §5.2), ``error`` verbatim
    ├── ProtocolError             their fault: an answer that breaks a MUST; nothing of it is used
    ├── TransportError            no answer, or none that is one: worth another try later
    ├── TokenError                a JWT that may not be believed (RFC 9068 §4, OpenID Connect Core §3.1.3.7)
    ├── SealError                 a sealed value that does not open in this context
    │   └── KeyMissingError       the key that sealed it is not in the key ring
    └── StoreError                the database is damaged, locked, full, or of another version
"""

from __future__ import annotations

from typing import ClassVar

from .text import printable

__all__ = [
    "DeputizeError",
    "GateError",
    "InputError",
    "KeyMissingError",
    "NeedsError",
    "OAuthError",
    "ProtocolError",
    "RefusedError",
    "SealError",
    "SettingsError",
    "StoreError",
    "TokenError",
    "TransportError",
    "UsageError",
]


class DeputizeError(Exception):
    """Base of everything that deputize raises on purpose.

    Args:
        message: what happened and to what, one sentence without its full stop.
        hint: what to do next, one sentence; empty when there is nothing to do.
        code: a stable word for machines; the class's own when not given.
    """

    code: str = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "", *, code: str | None = None) -> None:
        self.message = printable(message, limit=600)
        self.hint = printable(hint, limit=600)
        if code is not None:
            self.code = code
        super().__init__(self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class UsageError(DeputizeError):
    """What was asked for cannot be done as it was asked."""

    code = "usage"
    exit_code = 2


class SettingsError(UsageError):
    """A setting is missing or contradicts another."""

    code = "settings"


class NeedsError(UsageError):
    """A tool's declaration does not fit the tool: found when the tool is defined, not when it is called."""

    code = "needs"


class InputError(UsageError):
    """A graph was given something that is not a new message of a person."""

    code = "input"


class GateError(DeputizeError):
    """A guarded tool was called around its gate, or a token was about to leave its audience."""

    code = "gate"


class RefusedError(DeputizeError):
    """Somebody who may decide said no: a person, a policy, an expiry."""

    code = "refused"


class OAuthError(DeputizeError):
    """An OAuth error response, RFC 6749 §5.2.

    Args:
        error: the wire's ``error`` verbatim, e.g. ``invalid_grant``.
        description: the wire's ``error_description``, for operators; people are shown ``message`` and ``hint``.
        status: HTTP status of the answer.
    """

    code = "oauth"

    def __init__(self, error: str, description: str = "", *, status: int = 400, hint: str = "") -> None:
        self.error = printable(error, limit=100)
        self.description = printable(description, limit=300)
        self.status = status
        told = f"{self.error}: {self.description}" if self.description else self.error
        super().__init__(f"The authorization server refused: {told}", hint, code=self.error)


class ProtocolError(DeputizeError):
    """An answer that breaks a MUST of its specification. Nothing of it is used."""

    code = "protocol"


class TransportError(DeputizeError):
    """No answer, or one that is none (a timeout, a reset, HTTP 429 or 5xx, an HTML page): worth another try later."""

    code = "unavailable"

    def __init__(self, message: str, hint: str = "", *, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message, hint)


class TokenError(DeputizeError):
    """A JWT that may not be believed."""

    code = "invalid_token"


class SealError(DeputizeError):
    """A sealed value that does not open here: another context, another key, or bytes that were changed."""

    code = "seal"


class KeyMissingError(SealError):
    """The key that sealed a value is not in the key ring."""

    code = "key_missing"


class StoreError(DeputizeError):
    """The database is damaged, locked, full, or of a version that this program does not know."""

    code = "store"
