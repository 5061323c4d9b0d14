"""Following: a request that was opened is asked about until a person has decided, or its time is over.

Polling works from the ledger's rows, never from the status of a thread, so it survives restarts and may be done by any
process that gets the row's lease.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .broker import ASSUMED_LIFETIME, Broker
from .errors import (
    DeputizeError,
    OAuthError,
    ProtocolError,
    RefusedError,
    SealError,
    TokenError,
    TransportError,
    UsageError,
)
from .ledger import DECLINED, Ledger, Request
from .oauth.authorization import (
    AuthorizationAttempt,
    code_request,
    process_authorization_response,
)
from .oauth.ciba import (
    ciba_token_request,
    process_poll_response,
)
from .oauth.device import device_token_request
from .oauth.jwt import key_id, validate_id_token
from .oauth.pkce import Pkce
from .oauth.rar import require_granted
from .oauth.tokens import TokenResponse, process_token_response
from .principal import Principal
from .secret import Secret
from .sessions import Place, Sessions
from .transport import DEADLINE
from .vault import Vault

__all__ = ["GRACE", "SESSION_LIFETIME", "Following", "state_digest"]

SESSION_LIFETIME = 8 * 3600.0
"""Seconds after which a sign-in ends, however much it was used."""

GRACE = 30.0
"""Seconds after its end in which an approval that was given in time may still be fetched."""

_log = logging.getLogger("deputize")

_LEASE = 3 * DEADLINE  # one poll sends three requests at most: metadata, keys, and its own
_BACK_OFF_LIMIT = 60.0


class Following:
    """Follows requests.

    Args:
        clock: unix seconds.
        pause: waits that many seconds (replaced in tests).
    """

    def __init__(
        self,
        broker: Broker,
        ledger: Ledger,
        sessions: Sessions,
        vault: Vault,
        *,
        tenant: str,
        clock: Callable[[], float],
        pause: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._broker = broker
        self._ledger = ledger
        self._sessions = sessions
        self._vault = vault
        self._tenant = tenant
        self._clock = clock
        self._pause = pause
        self._polls: set[asyncio.Task[bool]] = set()

    # -- following (on the I/O thread) -------------------------------------------------------------------------------

    async def wait(self, *places: Place) -> list[Request]:
        """Return when something that waits in one of these places has been decided, or nothing waits there.

        Returns what was decided and has not been gone on with.
        """
        await self._decided(places)
        return await asyncio.to_thread(lambda: [r for p in places for r in self._ledger.unwoken_in(p, self._clock())])

    def _pending(self, places: Iterable[Place]) -> list[Request]:
        return [request for place in places for request in self._ledger.pending(place)]

    async def _decided(self, places: Sequence[Place]) -> None:
        waiting = await asyncio.to_thread(self._pending, places)
        while waiting:
            pending = await asyncio.to_thread(self._pending, places)
            still = {request.id for request in pending}
            if any(request.id not in still for request in waiting):
                return
            now = self._clock()
            due = [request for request in pending if request.next_poll_at <= now or request.expires_at <= now]
            if due and any(await asyncio.gather(*(self.poll(request) for request in due))):
                continue
            # What is due still has just been polled: here, by another process, or by one that died and left its lease.
            soonest = min(min(r.next_poll_at, r.expires_at) for r in pending)
            await self._pause(1.0 if due else min(max(soonest - now, 0.1), 1.0))

    async def pinged(self, token: str, auth_req_id: str) -> Request | None:
        """The authorization server says that a request was decided: ask it at once how (CIBA Core §10.2).

        Returns the request as it stands afterwards; ``None`` when the pair of token and id is not one (casebook B13).
        """
        request = await asyncio.to_thread(self._ledger.by_ping, self._tenant, token)
        if request is None:
            return None
        handle = await asyncio.to_thread(self._ledger.handle, request)
        if not hmac.compare_digest(str(handle.get("auth_req_id")).encode(), auth_req_id.encode("utf-8", "replace")):
            return None
        if request.state == "pending":
            await self.poll(request)
        return await asyncio.to_thread(self._ledger.request, request.id)

    async def poll_due(self) -> list[Request]:
        """One round over everything that is due: the requests that were decided in it.

        One that cannot be polled, whatever the reason, does not keep the others waiting.
        """
        due = await asyncio.to_thread(self._ledger.due, self._tenant, self._clock())
        results = await asyncio.gather(*(self.poll(request) for request in due), return_exceptions=True)
        for request, result in zip(due, results, strict=True):
            if isinstance(result, DeputizeError):
                _log.error("Request %s cannot be polled: %s", request.short_id, result)
            elif isinstance(result, Exception):
                _log.error("Request %s cannot be polled (%s)", request.short_id, type(result).__name__, exc_info=result)
        return [request for request, result in zip(due, results, strict=True) if result is True]

    async def poll(self, request: Request) -> bool:
        """Ask once how a pending request stands. True when this call decided it; passing failures leave it pending.

        Whoever waits for it may be cancelled; the poll is not: an approval that is being redeemed would be lost.
        """
        poll = asyncio.get_running_loop().create_task(self._poll(request))
        self._polls.add(poll)
        poll.add_done_callback(self._polls.discard)
        return await asyncio.shield(poll)

    async def _poll(self, request: Request) -> bool:
        now = self._clock()
        if not await asyncio.to_thread(self._ledger.lease, request, now + _LEASE, now):
            return False
        if now >= request.expires_at + _LEASE:
            # Nobody was there to ask, or asking failed each time, whatever the reason: it ends all the same.
            return await self._end(request, "expired")
        try:
            return await self._poll_leased(request, now)
        except TransportError as error:
            # A timeout, a reset, 429 or 5xx says nothing about the decision: the request survives (casebook B15).
            wait = max(min(request.interval * 2, _BACK_OFF_LIMIT), error.retry_after or 0.0)
            if now >= request.expires_at:
                return await self._end(request, "expired")
            again = min(now + wait, request.expires_at)  # however long it is told to wait, it is told when it is over
            await asyncio.to_thread(
                lambda: self._ledger.postpone(request, interval=request.interval, next_poll_at=again)
            )
            return False
        except OAuthError as error:
            match error.error:
                case "access_denied":
                    return await self._end(request, "denied", DECLINED)
                case "expired_token":
                    return await self._end(request, "expired")
                case "invalid_grant" if now >= request.expires_at:  # servers forget what has run out
                    return await self._end(request, "expired")
                case _:
                    return await self._end(
                        request, "denied", f"The authorization server ended the request: {error.error}."
                    )
        except (ProtocolError, TokenError, RefusedError, SealError) as error:
            # What came back is not what was asked for (casebook B16), or the row is not what was stored (F1): nothing of
            # it is used, and nobody waits for it.
            return await self._end(request, "denied", str(error))

    async def _poll_leased(self, request: Request, now: float) -> bool:
        handle = await asyncio.to_thread(self._ledger.handle, request)
        self._require_own(handle)
        server, client = await self._broker.server(), await self._broker.client()
        if "auth_req_id" in handle:
            message = ciba_token_request(server, client, Secret(handle["auth_req_id"]), now=now)
        elif "device_code" in handle:
            message = device_token_request(server, client, Secret(handle["device_code"]), now=now)
        else:  # a browser login: nobody can be asked, it can only run out
            if now >= request.expires_at:
                return await self._end(request, "expired")
            await asyncio.to_thread(
                lambda: self._ledger.postpone(request, interval=request.interval, next_poll_at=request.expires_at)
            )
            return False
        await self._broker.have_keys()
        answer = process_poll_response(await self._broker.transport.send(message), interval=request.interval, now=now)
        if isinstance(answer, TokenResponse):
            if request.kind == "approval":
                return await self._approved(request, answer, now)
            return await self._signed_in(request, answer, now, nonce=None)
        if now >= request.expires_at:
            return await self._end(request, "expired")
        await asyncio.to_thread(
            lambda: self._ledger.postpone(request, interval=answer.interval, next_poll_at=now + answer.interval)
        )
        return False

    def _require_own(self, handle: Mapping[str, Any]) -> None:
        if handle["issuer"] != self._broker.issuer:
            # Attack: a deployment that changed its issuer would hand the old one's handles to the new one.
            raise RefusedError("This was asked at another issuer than the one that is used now", "Ask again")

    async def _approved(self, request: Request, answer: TokenResponse, now: float) -> bool:
        if now >= request.expires_at + GRACE:  # nobody looked for hours: what was approved was for then
            return await self._end(request, "expired")
        payload = await asyncio.to_thread(self._ledger.payload, request)
        require_granted(payload["authorization_details"], answer.authorization_details)
        granted = set((answer.scope if answer.scope is not None else payload["scope"]).split())
        if missing := set(payload["scope"].split()) - {"openid"} - granted:
            raise ProtocolError(f"The approval came back without the scope {' '.join(sorted(missing))}", "Ask again")
        claims = await self._identity(answer, nonce=None)
        if claims.subject != request.subject:
            raise RefusedError("Somebody else than the person who was asked approved", "Ask again")  # casebook B8
        expires_at = answer.expires_at if answer.expires_at is not None else now + ASSUMED_LIFETIME
        evidence = {
            "access_token": answer.access_token.reveal(),
            "expires_at": expires_at,
            "approver": claims.subject,
            "acr": claims.acr,
            "auth_time": claims.auth_time,
        }
        return await asyncio.to_thread(lambda: self._ledger.decide(request, "approved", evidence=evidence, now=now))

    async def _signed_in(self, request: Request, answer: TokenResponse, now: float, nonce: Secret | None) -> bool:
        claims = await self._identity(answer, nonce=nonce)
        if request.subject and (claims.subject, self._broker.issuer) != (request.subject, request.issuer):
            raise RefusedError("Somebody else than the person who was asked signed in", "Sign in as yourself")
        if answer.refresh_token is None:
            raise ProtocolError(
                "The sign-in brought no refresh token", "Allow offline_access to this client at the issuer"
            )
        principal = Principal(self._tenant, self._broker.issuer, claims.subject, claims.name or "")
        refresh_token = answer.refresh_token

        def record() -> bool:
            expires_at, scope = now + SESSION_LIFETIME, self._ledger.payload(request)["scope"]
            grant = self._vault.store_grant(
                principal, refresh_token=refresh_token, scope=scope, expires_at=expires_at, now=now
            )
            # A visitor keeps what the visitor began; what nobody began belongs to the person who signed in.
            owner = request.owner or principal.key
            try:
                session = self._sessions.start(
                    request.place, principal, owner=owner, grant_id=grant.id, expires_at=expires_at, now=now
                )
            except RefusedError:
                self._vault.delete(grant)  # a sign-in that was refused leaves nothing to be used elsewhere
                raise
            if self._ledger.decide(request, "approved", evidence={"session": session.id}, now=now):
                return True
            self._sessions.end(session, now)
            self._vault.delete(grant)
            return False

        return await asyncio.to_thread(record)

    async def _identity(self, answer: TokenResponse, nonce: Secret | None) -> Any:
        """The validated ID token of an answer (OpenID Connect Core §3.1.3.7): who decided, who signed in."""
        if answer.id_token is None:
            raise ProtocolError("The answer has no id_token, so nobody knows who decided", "Ask for the scope openid")
        token = answer.id_token.reveal()
        client = await self._broker.client()
        return validate_id_token(
            token,
            keys=await self._broker.keys(key_id(token)),
            issuer=self._broker.issuer,
            client_id=client.client_id,
            nonce=nonce,
            now=self._clock(),
        )

    async def _end(self, request: Request, state: Any, reason: str = "") -> bool:
        return await asyncio.to_thread(lambda: self._ledger.decide(request, state, reason=reason, now=self._clock()))

    # -- the browser comes back (on the I/O thread) ------------------------------------------------------------------

    async def browser_callback(self, parameters: Sequence[tuple[str, str]]) -> Request:
        """Finish a browser login with the query of its redirect (RFC 6749 §4.1.2, RFC 9207).

        Raises:
            UsageError: no login waits for this ``state`` (unknown, used, expired): nothing is stored (casebook A2).
            OAuthError, ProtocolError: the issuer refused, or the answer is not for this login (A1).
        """
        states = [value for name, value in parameters if name == "state"]
        request = None
        if len(states) == 1 and states[0]:
            request = await asyncio.to_thread(
                self._ledger.login_by_digest, self._tenant, state_digest(Secret(states[0]))
            )
        now = self._clock()
        if request is None or now >= request.expires_at:
            raise UsageError("This sign-in link is unknown, used or expired", "Start again from the conversation")
        handle = await asyncio.to_thread(self._ledger.handle, request)
        self._require_own(handle)
        server, client = await self._broker.server(), await self._broker.client()
        nonce = Secret(handle["nonce"])
        attempt = AuthorizationAttempt(
            url=request.url,
            state=Secret(handle["state"]),
            nonce=nonce,
            pkce=Pkce.restore(Secret(handle["verifier"])),
            redirect_uri=handle["redirect_uri"],
            issuer=handle["issuer"],
        )
        try:
            code = process_authorization_response(server, attempt, parameters)
        except OAuthError as error:
            await self._end(request, "denied", f"The sign-in ended: {error.error}.")
            raise
        await self._broker.have_keys()
        if not await asyncio.to_thread(self._ledger.lease, request, now + _LEASE, now):
            # A browser that opens the redirect twice at once: a code that comes twice revokes what it brought (A4).
            raise UsageError("This sign-in link is unknown, used or expired", "Start again from the conversation")
        try:
            answer = await self._broker.transport.send(code_request(server, client, code, now=now))
            await self._signed_in(request, process_token_response(answer, now=now), now, nonce)
        except DeputizeError as error:
            await self._end(request, "denied", str(error))
            raise
        return request


def state_digest(state: Secret) -> str:
    """Finds a login by its ``state``: an index of digests tells nobody by its timing how much of a guess is right."""
    return hashlib.sha256(state.reveal().encode("utf-8", "surrogatepass")).hexdigest()
