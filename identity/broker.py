"""The one door to tokens: (session, need) → sealed token.

A refresh token leaves the vault here, becomes a subject token whose audience is this agent, and that becomes a token for
one API (RFC 8693), with the person as ``sub`` and the agent as ``act.sub``. Everything runs on the I/O thread, so callers
of any event loop share one request in flight: fifty threads of one person cause one refresh.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .access import AccessToken
from .errors import DeputizeError, OAuthError, ProtocolError, RefusedError, SealError, TokenError
from .inbound import Inbound
from .needs import Resource
from .oauth.client import Client
from .oauth.exchange import exchange_request, process_exchange_response
from .oauth.jwt import JwksCache, KeySet, NeedsFetch, jwks_request, key_id, validate_access_token
from .oauth.metadata import ServerMetadata, metadata_request, process_metadata_response
from .oauth.tokens import (
    TokenResponse,
    client_credentials_request,
    process_revocation_response,
    process_token_response,
    refresh_request,
    revocation_request,
)
from .principal import Principal
from .sealing import Context, StateKeys, token_context
from .secret import Secret
from .sessions import Place, Session
from .transport import Transport
from .vault import Grant, Vault

__all__ = ["ASSUMED_LIFETIME", "Broker", "SignInAgainError", "check_credential"]

_T = TypeVar("_T")

ASSUMED_LIFETIME = 300.0
"""Seconds that a token is taken to live when its answer has no ``expires_in`` (RFC 6749 §5.1; casebook F9)."""

MARGIN = 15.0
"""A token with less than this many seconds left is not started with."""

_METADATA_LIFETIME = 3600.0
_METADATA_RETRY = 60.0


class SignInAgainError(RefusedError):
    """The person's grant does not work any more: revoked, expired, used up. Only a new sign-in helps."""

    code = "login_required"


class Broker:
    """Tokens of one agent at one issuer.

    Args:
        issuer: the issuer identifier.
        client: loads this agent's credential, at first use.
        clock: unix seconds.
    """

    def __init__(
        self,
        issuer: str,
        client: Callable[[], Client],
        transport: Transport,
        vault: Vault,
        inbound: Inbound,
        keys: StateKeys,
        clock: Callable[[], float],
    ) -> None:
        self.issuer = issuer
        self.transport = transport
        self._load_client = client
        self._client: Client | None = None
        self._vault = vault
        self._inbound = inbound
        self._keys = keys
        self._clock = clock
        self._server: ServerMetadata | None = None
        self._server_until = 0.0
        self._jwks = JwksCache()
        self._have_keys = False
        self._flights: dict[str, asyncio.Task[Any]] = {}
        self._expiry = functools.lru_cache(maxsize=1024)(self._sealed_expiry)

    # -- the issuer (on the I/O thread) ------------------------------------------------------------------------------

    async def server(self) -> ServerMetadata:
        """The issuer's metadata, fetched once an hour; the last good copy serves while it cannot be had."""
        if self._server is None or self._clock() >= self._server_until:
            try:
                self._server = await self._once("metadata", self._discover)
            except DeputizeError:
                if self._server is None:
                    raise
                self._server_until = self._clock() + _METADATA_RETRY  # not before every single request of an outage
        return self._server

    async def _discover(self) -> ServerMetadata:
        answer = await self.transport.send(metadata_request(self.issuer))
        found = process_metadata_response(self.issuer, answer, allow_origins=self.transport.allow_origins)
        self._server_until = self._clock() + _METADATA_LIFETIME
        return found

    async def client(self) -> Client:
        """This agent's credential."""
        if self._client is None:
            self._client = await asyncio.to_thread(self._load_client)
        return self._client

    async def check(self) -> ServerMetadata:
        """Whether the issuer can be reached and accepts this agent's credential; its metadata.

        Raises:
            OAuthError: ``invalid_client``: it does not know the agent, or not by this key.
        """
        server = await self.server()
        await check_credential(self.transport, server, await self.client(), self._clock())
        return server

    async def keys(self, kid: str | None) -> KeySet:
        """The issuer's public keys, fetched when ``kid`` is unknown and the cool-down allows it (casebook A10, A11)."""
        found = self._jwks.lookup(kid, self._clock())
        if isinstance(found, NeedsFetch):
            try:
                await self._once("jwks", self._fetch_keys)
            except DeputizeError:
                if not self._jwks.serves(kid, self._clock()):
                    raise
            found = self._jwks.lookup(kid, self._clock())
        if isinstance(found, NeedsFetch):
            raise ProtocolError(
                f"{self.issuer} does not publish the key that signed this", "Check the issuer's jwks_uri"
            )
        return found

    async def have_keys(self) -> None:
        """Fetch the issuer's keys if there never were any: before something is redeemed that is redeemed once, and whose
        answer cannot be believed without them."""
        if not self._have_keys:
            await self._once("jwks", self._fetch_keys)

    async def _fetch_keys(self) -> None:
        server = await self.server()
        try:
            answer = await self.transport.send(jwks_request(server))
            self._jwks.store(answer, self._clock())
            self._have_keys = True
        except DeputizeError:
            self._jwks.failed(self._clock())
            raise

    async def verify(self, token: Secret, audience: str, tenant: str) -> tuple[Principal, float]:
        """Whose an inbound access token is, and until when (RFC 9068 §4). Runs on the I/O thread.

        Raises:
            TokenError: it is not one of this issuer, for this audience, now.
            ProtocolError, TransportError: the issuer's keys cannot be had, so nobody can tell.
        """
        text = token.reveal()
        claims = validate_access_token(
            text, keys=await self.keys(key_id(text)), issuer=self.issuer, audience=audience, now=self._clock()
        )
        if claims.subject == claims.client_id:
            raise TokenError("The token is a client's own and nobody's", "Send a person's access token")
        name = claims.raw.get("name")
        return Principal(tenant, self.issuer, claims.subject, name if isinstance(name, str) else ""), claims.expires_at

    # -- tokens (on the I/O thread) ----------------------------------------------------------------------------------

    async def token(self, place: Place, session: Session, need: Resource, run_id: str = "") -> dict[str, Any]:
        """A delegated token for ``need``, sealed for this person, thread, graph and audience.

        Args:
            run_id: the server's run, for a session whose subject token is the one that the run's caller came with.

        Returns what graph state keeps: ``{"sealed": …, "expires_at": unix seconds}``.

        Raises:
            SignInAgainError: the session's grant is spent, or does not open; the session should end.
            OAuthError, ProtocolError, TransportError: the issuer refused, misbehaved, or did not answer.
        """
        subject = session.grant_id or f"run {run_id}"
        issued = await self._once(f"exchange {subject} {need.key}", lambda: self._exchange(session, need, run_id))
        now = self._clock()
        expires_at = issued.expires_at if issued.expires_at is not None else now + ASSUMED_LIFETIME
        if expires_at <= now + MARGIN:
            # Nothing would be started with it, so the next look would want another one, and so on (casebook F9).
            raise ProtocolError(
                f"{self.issuer} gave a token for {need.audience} that lives {max(expires_at - now, 0):.0f} seconds",
                f"Have its tokens live longer than {MARGIN:.0f} seconds",
            )
        return {"sealed": self.seal(place, session, need, issued.access_token, expires_at), "expires_at": expires_at}

    async def _exchange(self, session: Session, need: Resource, run_id: str) -> TokenResponse:
        if session.grant_id:
            subject = await self._once(f"refresh {session.grant_id}", lambda: self._subject_token(session))
        else:
            subject = await self._inbound_token(session, run_id)
        now = self._clock()
        request = exchange_request(
            await self.server(),
            await self.client(),
            subject,
            audience_resource=need.audience,
            scope=need.scope,
            now=now,
        )
        return process_exchange_response(await self.transport.send(request), scope=need.scope, now=now)

    async def _inbound_token(self, session: Session, run_id: str) -> Secret:
        """The access token that the caller of this run came with. A run that was woken has none (casebook C11)."""
        held = await asyncio.to_thread(self._inbound.token, run_id, session.principal, self._clock())
        if held is None:
            raise SignInAgainError("The access token that this conversation came with has expired", "Sign in again")
        return held

    async def _subject_token(self, session: Session) -> Secret:
        if session.principal.issuer != self.issuer:
            # Attack: a deployment that changed its issuer would hand the old one's refresh tokens to the new one.
            raise SignInAgainError("The sign-in was at another issuer", "Sign in again")
        now = self._clock()
        grant, token, serves = await asyncio.to_thread(self._held, session, now)
        if serves:
            return token
        request = refresh_request(await self.server(), await self.client(), token, now=now)
        try:
            issued = process_token_response(await self.transport.send(request), now=now)
        except OAuthError as error:
            if error.error != "invalid_grant":
                raise
            return await self._after_invalid_grant(session, grant)
        expires_at = issued.expires_at if issued.expires_at is not None else now + ASSUMED_LIFETIME
        await asyncio.to_thread(
            lambda: self._vault.rotate(
                grant,
                refresh_token=issued.refresh_token,
                subject_token=issued.access_token,
                subject_token_expires_at=expires_at,
                now=now,
            )
        )
        return issued.access_token

    def _held(self, session: Session, now: float) -> tuple[Grant, Secret, bool]:
        """The session's grant, with its subject token while that serves (``True``), else its refresh token: one trip to a
        thread for all of it."""
        grant = self._vault.grant(session.grant_id, session.principal)
        if grant is None or grant.broken or now >= grant.expires_at:
            raise SignInAgainError("The sign-in has ended", "Sign in again")
        try:
            subject_token = self._vault.subject_token(grant, now)
            if subject_token is not None:
                return grant, subject_token, True
            return grant, self._vault.refresh_token(grant), False
        except SealError as error:
            # It will never open again, and while it counted as a live sign-in nobody would be asked for another one.
            self._vault.mark_broken(grant, error.code)
            raise SignInAgainError("The stored sign-in does not open any more", "Sign in again") from None

    async def _after_invalid_grant(self, session: Session, sent: Grant) -> Secret:
        """Another process may have rotated the token while ours was on its way: read again before giving up (F8)."""
        current = await asyncio.to_thread(self._vault.grant, session.grant_id, session.principal)
        if current is not None and current.generation != sent.generation:
            return await self._subject_token(session)
        await asyncio.to_thread(self._vault.mark_broken, sent, "invalid_grant")
        raise SignInAgainError("The issuer does not accept this sign-in any more", "Sign in again")

    async def revoke(self, grant: Grant) -> None:
        """Have the issuer forget a person's grant (RFC 7009 §2.1: a refresh token takes its whole grant with it).

        Raises:
            ProtocolError: the issuer has no revocation endpoint.
            OAuthError, TransportError: it refused, or did not answer.
            SealError: the stored token does not open any more.
        """
        if grant.principal.issuer != self.issuer:
            # Attack: a deployment that changed its issuer would hand the old one's tokens to the new one.
            raise ProtocolError(f"The sign-in is one at {grant.principal.issuer}", "Have it revoked there")
        token = await asyncio.to_thread(self._vault.refresh_token, grant)
        server, client = await self.server(), await self.client()
        request = revocation_request(server, client, token, hint="refresh_token", now=self._clock())
        process_revocation_response(await self.transport.send(request))

    # -- seals -------------------------------------------------------------------------------------------------------

    def seal(self, place: Place, session: Session, need: Resource, token: Secret, expires_at: float) -> str:
        """A token for graph state; it opens for this person, thread, graph, audience and scopes only."""
        value = json.dumps({"access_token": token.reveal(), "expires_at": expires_at})
        return self._keys.seal(value, _context(place, session.principal, need))

    def usable(self, entry: object, now: float) -> bool:
        """Whether graph state seems to hold a token; ``tool_call`` opens it and decides."""
        return (
            isinstance(entry, dict)
            and isinstance(entry.get("sealed"), str)
            and isinstance(entry.get("expires_at"), int | float)
            and entry["expires_at"] > now + MARGIN
        )

    def open(self, place: Place, session: Session, need: Resource, entry: object, now: float) -> AccessToken | None:
        """The token in a state entry, or ``None`` when it does not open here or is about to expire."""
        if not self.usable(entry, now):
            return None
        assert isinstance(entry, dict)  # by usable()
        try:
            value = self._unsealed(entry["sealed"], _context(place, session.principal, need))
        except SealError:
            return None
        # The sealed expiry counts; the one beside it can be edited by clients.
        if value["expires_at"] <= now + MARGIN:
            return None
        return AccessToken(Secret(value["access_token"]), need, value["expires_at"])

    def serves(self, place: Place, session: Session, need: Resource, entry: object, now: float) -> bool:
        """Whether :meth:`open` would give a token: a look ahead, for which the same value is opened once and not kept."""
        if not self.usable(entry, now):
            return False
        assert isinstance(entry, dict)  # by usable()
        try:
            return self._expiry(entry["sealed"], _context(place, session.principal, need)) > now + MARGIN
        except SealError:
            return False

    def _sealed_expiry(self, sealed: str, context: Context) -> float:
        return float(self._unsealed(sealed, context)["expires_at"])

    def _unsealed(self, sealed: str, context: Context) -> Any:
        return json.loads(self._keys.open(sealed, context).reveal())

    # -- one request in flight ---------------------------------------------------------------------------------------

    async def _once(self, key: str, start: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Share one run of ``start`` among all who ask for ``key`` while it runs; cancelling one leaves the others."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(start())
            self._flights[key] = flight
            flight.add_done_callback(lambda task: self._landed(key, task))
        result: _T = await asyncio.shield(flight)
        return result

    def _landed(self, key: str, task: asyncio.Task[Any]) -> None:
        self._flights.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved here too, in case everybody who waited was cancelled


async def check_credential(transport: Transport, server: ServerMetadata, client: Client, now: float) -> None:
    """Whether a server accepts a client's credential. Runs on the I/O thread.

    Raises:
        OAuthError: ``invalid_client``: it does not know the client, or not by this key.
    """
    request = client_credentials_request(server, client, scope="", now=now)
    try:
        process_token_response(await transport.send(request), now=now)
    except OAuthError as error:
        if error.error == "invalid_client":
            raise OAuthError(
                error.error,
                error.description,
                status=error.status,
                hint="Register DEPUTIZE_CLIENT_ID there with the public part of DEPUTIZE_CLIENT_KEY_FILE",
            ) from None
        # unauthorized_client, or invalid_request at some servers: the credential was accepted, the grant is not for it


@functools.lru_cache(maxsize=4096)
def _context(place: Place, principal: Principal, need: Resource) -> Context:
    """Where a token belongs. Kept, since each turn asks for the same ones several times."""
    return token_context(
        tenant=place.tenant,
        issuer=principal.issuer,
        subject=principal.subject,
        thread=place.thread,
        graph=place.graph,
        audience=need.audience,
        scopes=need.scopes,
        purpose="call",
    )
