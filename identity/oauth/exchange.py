"""Token exchange: RFC 8693. The authenticated client is the actor; there is no ``actor_token``."""

from __future__ import annotations

from ..errors import ProtocolError
from ..secret import Secret
from .client import Client
from .metadata import ServerMetadata
from .tokens import TokenResponse, process_token_response, token_request
from .wire import Request, Response

__all__ = ["exchange_request", "process_exchange_response"]

_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type's name


def exchange_request(
    server: ServerMetadata, client: Client, subject_token: Secret, *, audience_resource: str, scope: str, now: float
) -> Request:
    """Ask for a token for one API on behalf of the subject (RFC 8693 §2.1, RFC 8707 §2)."""
    form = (
        ("grant_type", _GRANT),
        ("subject_token", subject_token.reveal()),
        ("subject_token_type", _ACCESS_TOKEN),
        ("requested_token_type", _ACCESS_TOKEN),
        ("resource", audience_resource),
        ("scope", scope),
    )
    return token_request(server, client, tuple(field for field in form if field[1]), now)


def process_exchange_response(response: Response, *, scope: str, now: float) -> TokenResponse:
    """Validate the answer (RFC 8693 §2.2.1).

    Raises:
        ProtocolError: it is no access token, or has fewer scopes than were asked for (casebook B16).
    """
    issued = process_token_response(response, now=now)
    if issued.issued_token_type != _ACCESS_TOKEN:
        raise ProtocolError(
            "The token exchange did not issue an access token", "The server must support RFC 8693 §2.2.1"
        )
    if issued.scope is not None and (missing := set(scope.split()) - set(issued.scope.split())):
        raise ProtocolError(
            f"The token came without the scope {' '.join(sorted(missing))}", "Ask for less, or sign in anew"
        )
    return issued
