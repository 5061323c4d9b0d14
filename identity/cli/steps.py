"""What an issuer can do: how each step that an agent takes with it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..oauth.metadata import ServerMetadata
from ..text import printable

__all__ = ["Step", "steps_of"]

Name = Literal["login", "exchange", "actor", "approval", "RAR"]

_NAMES: tuple[Name, ...] = ("login", "exchange", "actor", "approval", "RAR")
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


@dataclass(frozen=True, slots=True)
class Step:
    """How one step is done with this issuer: by it, by us, not at all, or nobody knows before it is tried."""

    name: Name
    verdict: Literal["native", "ours", "impossible", "unknown"]
    reason: str


def steps_of(
    server: ServerMetadata | None, document: Mapping[str, Any], *, probed: str | None = None, embedded: bool = False
) -> tuple[Step, ...]:
    """Every step, in the order in which an agent takes them.

    Args:
        document: the discovery document as it came.
        probed: the ``error`` that a token exchange of nothing was answered with, where the document does not list grants.
        embedded: the issuer is the embedded world's.
    """
    if server is None:
        return tuple(Step(name, "unknown", "the issuer's discovery document could not be read") for name in _NAMES)
    exchange = _exchange_step(document, probed)
    return (
        _login_step(server),
        exchange,
        _actor_step(exchange, embedded=embedded),
        _approval_step(server, embedded=embedded),
        _rar_step(document, server),
    )


def _login_step(server: ServerMetadata) -> Step:
    ways = []
    if server.authorization_endpoint and "S256" in server.code_challenge_methods_supported:
        ways.append("in a browser (code with PKCE S256)")
    if server.device_authorization_endpoint:
        ways.append("with a typed code (device grant)")
    if ways:
        return Step("login", "native", ", ".join(ways))
    return Step("login", "impossible", "neither an authorization endpoint with PKCE S256 nor a device endpoint")


def _exchange_step(document: Mapping[str, Any], probed: str | None) -> Step:
    grants = document.get("grant_types_supported")
    if isinstance(grants, list):
        if _EXCHANGE in grants:
            return Step("exchange", "native", "token exchange (RFC 8693) is among its grants")
        return Step(
            "exchange",
            "impossible",
            "token exchange (RFC 8693) is not among its grants: no token for an API can be had",
        )
    match probed:
        case None:
            return Step("exchange", "unknown", "it does not list its grants, and could not be probed")
        case "unsupported_grant_type":
            return Step(
                "exchange",
                "impossible",
                "it does not list its grants; probed, it does not know token exchange (RFC 8693)",
            )
        case "unauthorized_client":
            return Step(
                "exchange", "impossible", "it does not list its grants; probed, this client may not exchange tokens"
            )
        case "invalid_request" | "invalid_grant" | "invalid_target" | "invalid_scope":
            return Step(
                "exchange", "native", f"it does not list its grants; probed, it knows token exchange ({probed})"
            )
        case _:
            return Step("exchange", "unknown", f"it does not list its grants; probed, it answered {probed}")


def _actor_step(exchange: Step, *, embedded: bool) -> Step:
    if exchange.verdict == "impossible":
        return Step("actor", "impossible", "without an exchange no token names the agent beside the person")
    if embedded:
        return Step("actor", "native", "the embedded issuer names the agent in act, and whom it may act for in may_act")
    return Step(
        "actor", "unknown", "whether tokens name the agent (act) is not advertised: tried with the first exchange"
    )


def _approval_step(server: ServerMetadata, *, embedded: bool) -> Step:
    modes = server.backchannel_token_delivery_modes_supported
    if not server.backchannel_authentication_endpoint:
        return Step(
            "approval",
            "impossible",
            "no CIBA; the approval authority of this version serves the embedded world only, so tools that need an approval fail",
        )
    if not {"poll", "ping"} & set(modes):
        offered = printable(", ".join(modes)) or "none"
        return Step("approval", "impossible", f"CIBA, but neither poll nor ping (it offers: {offered})")
    if embedded:
        return Step("approval", "ours", "by our approval authority, behind the embedded issuer's CIBA")
    return Step("approval", "native", f"CIBA, {' and '.join(mode for mode in ('poll', 'ping') if mode in modes)}")


def _rar_step(document: Mapping[str, Any], server: ServerMetadata) -> Step:
    types = server.authorization_details_types_supported
    if types:
        return Step("RAR", "native", f"authorization_details of the types {printable(', '.join(types))}")
    if document.get("authorization_details_supported") is True:  # the name in RFC 9396's drafts, still sent
        return Step("RAR", "native", "authorization_details")
    return Step("RAR", "impossible", "no authorization_details: an approval cannot say what exactly it is for")
