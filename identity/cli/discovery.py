"""What ``deputize doctor`` asks the issuer: its discovery document, its clock, and whether it knows this agent."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from ..broker import check_credential
from ..errors import DeputizeError, OAuthError, SettingsError
from ..oauth.client import Client
from ..oauth.exchange import exchange_request, process_exchange_response
from ..oauth.jwt import LEEWAY
from ..oauth.metadata import ServerMetadata, metadata_request, process_metadata_response
from ..oauth.wire import Response, read_json
from ..secret import Secret
from ..settings import Settings
from ..text import printable
from ..transport import Transport
from .findings import Examination

__all__ = ["ask_issuer"]


def ask_issuer(now: Examination, settings: Settings) -> str | None:
    """Everything that needs the network. Returns what a probe of the token exchange was answered, if one was needed."""
    if not settings.issuer:
        now.note("issuer", "not asked: the settings name none")
        return None
    try:
        transport = Transport(settings.allow_origins, now.mount, settings.ca_file)
        try:
            return transport.call(lambda: _ask(now, settings, transport))
        finally:
            transport.close()
    except DeputizeError as error:  # what the transport itself stands on: DEPUTIZE_CA_FILE, DEPUTIZE_URL
        now.fail("issuer", error.code, error.message, error.hint)
        return None


async def _ask(now: Examination, settings: Settings, transport: Transport) -> str | None:
    try:
        answer = await transport.send(metadata_request(settings.issuer))
    except SettingsError:
        raise
    except DeputizeError as error:
        now.fail("issuer", error.code, error.message, _unreachable(settings) or error.hint)
        return None
    skewed = _clock(now, answer)
    _discovered(now, settings, answer, transport)
    if now.server is None or now.client is None:
        now.note("credential", "not tried")
        return None
    try:
        await check_credential(transport, now.server, now.client, now.clock())
    except DeputizeError as error:
        fix = (
            "Correct this machine's clock first: the issuer judges when a credential was signed"
            if skewed
            else error.hint
        )
        now.fail("credential", error.code, error.message, fix)
        return None
    now.ok("credential", f"the issuer accepts {printable(settings.client_id)}")
    if "grant_types_supported" in now.document:
        return None
    return await _probe(now.server, now.client, transport, now.clock())


def _unreachable(settings: Settings) -> str:
    return (
        f"Start what serves the embedded world at {settings.url} (in the clone: make dev)" if settings.embedded else ""
    )


def _clock(now: Examination, answer: Response) -> bool:
    """Whether this machine's clock and the issuer's differ by more than tokens bear (casebook A12)."""
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp() + float(answer.headers.get("age", 0))
    except (KeyError, ValueError, TypeError):
        now.note("clock", "not compared: the issuer's answer has no date")
        return False
    apart = now.clock() - theirs
    if abs(apart) <= LEEWAY:
        now.ok("clock", f"within {LEEWAY:.0f} seconds of the issuer's")
        return False
    told = f"This machine's clock is {abs(apart):.0f} seconds {'ahead of' if apart > 0 else 'behind'} the issuer's"
    now.fail(
        "clock", "clock_skew", told, "Set it by NTP (timedatectl set-ntp true); tokens are refused beyond 60 seconds"
    )
    return True


def _discovered(now: Examination, settings: Settings, answer: Response, transport: Transport) -> None:
    try:
        now.server = process_metadata_response(settings.issuer, answer, allow_origins=transport.allow_origins)
        now.document = read_json(answer, "The discovery document")
    except DeputizeError as error:
        theirs = _named(answer)
        if theirs is not None and theirs != settings.issuer:
            told = f"DEPUTIZE_ISSUER is {settings.issuer}, and what answers there calls itself {printable(theirs)}"
            if theirs.rstrip("/") == settings.issuer.rstrip("/"):
                now.fail(
                    "issuer", "issuer_slash", told, f"Set DEPUTIZE_ISSUER={printable(theirs)}, as it spells itself"
                )
            else:
                now.fail("issuer", "issuer_differs", told, "Set the one that you mean, exactly as it spells itself")
            return
        where = f"{settings.issuer}/.well-known/openid-configuration is to answer with it: check DEPUTIZE_ISSUER"
        elsewhere = "Something else answers there: set DEPUTIZE_URL to where the embedded world is"
        now.fail("issuer", "discovery", error.message, elsewhere if settings.embedded else where)
        return
    now.ok("issuer", f"{settings.issuer} answers with its discovery document")
    _refreshable(now)


def _named(answer: Response) -> str | None:
    """The issuer that a document names, be the rest of it as it may."""
    try:
        theirs = read_json(answer, "The discovery document").get("issuer")
    except DeputizeError:
        return None
    return theirs if isinstance(theirs, str) else None


def _refreshable(now: Examination) -> None:
    """Whether sign-ins can be kept: every one here needs a refresh token."""
    scopes, grants = now.document.get("scopes_supported"), now.document.get("grant_types_supported")
    if isinstance(scopes, list) and "offline_access" not in scopes:
        now.fail(
            "refresh tokens",
            "no_refresh",
            "The issuer does not offer the scope offline_access, so a sign-in brings no refresh token",
            "Allow offline_access to this client at the issuer",
        )
    elif isinstance(grants, list) and "refresh_token" not in grants:
        now.fail(
            "refresh tokens",
            "no_refresh",
            "The issuer does not offer the grant refresh_token",
            "Allow refresh tokens at the issuer, or use another one",
        )
    else:
        now.ok("refresh tokens", "offered" if isinstance(scopes, list) else "not ruled out by the discovery document")


async def _probe(server: ServerMetadata, client: Client, transport: Transport, now: float) -> str | None:
    """What a server that does not list its grants answers to an exchange of nothing (RFC 8693 §2.2.2, RFC 6749 §5.2)."""
    request = exchange_request(
        server, client, Secret("deputize-doctor"), audience_resource=server.issuer, scope="", now=now
    )
    try:
        process_exchange_response(await transport.send(request), scope="", now=now)
    except OAuthError as error:
        return error.error
    except DeputizeError:
        return None
    return None
