"""Asking people: a login or an approval is asked for here, once however often it is wanted.

What is asked becomes a row of the ledger; an agent's run then ends. :mod:`identity.following` sees to what comes of it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

from .binding import Call, binding_digest, call_digest, require_shown, shown_arguments
from .broker import Broker
from .errors import (
    RefusedError,
    UsageError,
)
from .following import SESSION_LIFETIME, Following, state_digest
from .inbound import Inbound
from .ledger import Ledger, Request
from .needs import Approval, Resource
from .oauth.authorization import (
    authorization_request,
)
from .oauth.ciba import (
    backchannel_request,
    iss_sub_hint,
    process_backchannel_response,
)
from .oauth.device import device_request, process_device_response
from .principal import Caller, Principal, Visitor
from .secret import Secret
from .sessions import Place, Session, Sessions
from .vault import Vault

__all__ = ["APPROVAL_LIFETIME", "TERMINAL", "Asking"]

APPROVAL_LIFETIME = 300
"""Seconds that a person has for a decision (``requested_expiry``)."""

TERMINAL = "terminal"
"""What the place of the command line's own sign-in calls its graph."""

OWN_LOGIN_LIFETIME = 3600.0
"""Seconds that a sign-in at the application's own page may take."""

SAFETY_INTERVAL = 30.0
"""Seconds between polls of a request that will be pinged."""

DECLINED_A_MOMENT = 60.0
"""Seconds in which what a person has just declined is not asked of them again."""

FATIGUE = 600.0
"""Seconds in which a person who declines three times is asked nothing more, and for as long again (casebook B11)."""


class Asking(Following):
    """Opens requests, and follows them.

    Args:
        login: ``device``, ``browser`` or ``url``.
        device_for_all: whether somebody who is not known may be asked by a typed code: in the embedded world only.
        login_url: the application's own sign-in page, for ``url``.
        redirect_uri: where a browser login comes back to.
        delivery: ``poll`` or ``ping``, as this client is registered.
        pending_limit: approvals that may wait for one person at a time.
        served: whether callers come over the network: a link that one of them gets can be passed on.
        clock: unix seconds.
        pause: waits that many seconds (replaced in tests).
    """

    def __init__(
        self,
        broker: Broker,
        ledger: Ledger,
        sessions: Sessions,
        vault: Vault,
        inbound: Inbound,
        *,
        tenant: str,
        login: str,
        device_for_all: bool = False,
        login_url: str = "",
        redirect_uri: str,
        delivery: str = "poll",
        pending_limit: int = 5,
        served: Callable[[], bool] = lambda: False,
        clock: Callable[[], float],
        pause: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        super().__init__(broker, ledger, sessions, vault, tenant=tenant, clock=clock, pause=pause)
        self._login = login
        self._inbound = inbound
        self._device_for_all = device_for_all
        self._login_url = login_url
        self._redirect_uri = redirect_uri
        self._delivery = delivery
        self._pending_limit = pending_limit
        self._served = served
        self._asked_of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # -- asking (on the I/O thread) ----------------------------------------------------------------------------------

    async def login(
        self, place: Place, caller: Caller | None, message_id: str, scopes: Iterable[str], run_id: str = ""
    ) -> Request | None:
        """Ask the caller to sign in, or return ``None`` when a live sign-in of this very caller serves this thread too.

        Args:
            run_id: the server's run; the access token that its caller came with is a sign-in.

        Raises:
            RefusedError: the thread is somebody else's, or the caller is of another tenant or issuer.
        """
        now = self._clock()
        if isinstance(caller, Principal) and (caller.tenant, caller.issuer) != (self._tenant, self._broker.issuer):
            # What the one vouched for is no sign-in at the other, and the other never sees its tokens (casebook G10).
            raise RefusedError(
                "The caller is of another organization or issuer than this deployment",
                "Say who is calling with a principal of its own",
                code="foreign_principal",
            )
        owner, scopes = caller.key if caller else "", set(scopes)
        taken = await asyncio.to_thread(self._sessions.of, place)
        if taken is not None:
            taken.require(caller)
        if isinstance(caller, Principal) and await asyncio.to_thread(
            self._already_signed_in, place, caller, taken, run_id, scopes, now
        ):
            return None
        pending = await asyncio.to_thread(self._ledger.pending_login, place, owner)
        if pending is not None and now < pending.expires_at:
            return pending
        if pending is not None:  # nobody was there to notice; its link leads nowhere any more
            await self._end(pending, "expired")
        scope = " ".join(["openid", "profile", "offline_access", *sorted(scopes)])
        if self._login == "url":
            asked = self._own_login(scope, now)
        elif self._login == "browser":
            if self._served() and not isinstance(caller, Principal):
                # Attack: whoever starts a conversation sends the link to somebody else, who signs in for them (A18).
                raise UsageError(
                    "Somebody who is not known cannot be sent to the issuer from here",
                    "Set DEPUTIZE_LOGIN_URL to your sign-in page",
                )
            asked = await self._browser_login(scope)
        elif not (self._device_for_all or isinstance(caller, Principal) or place.graph == TERMINAL):
            # Attack: whoever starts a conversation sends the typed code to somebody else, who signs in for them (A18).
            raise UsageError(
                "Somebody who is not known cannot be asked to type a code",
                "Set DEPUTIZE_LOGIN_URL to your sign-in page",
            )
        else:
            asked = await self._device_login(scope, now)
        return await asyncio.to_thread(
            lambda: self._ledger.open(
                place=place,
                kind="login",
                owner=owner,
                issuer=caller.issuer if isinstance(caller, Principal) else "",
                subject=caller.subject if isinstance(caller, Principal) else "",
                message_id=message_id,
                now=now,
                **asked,
            )
        )

    def _already_signed_in(
        self, place: Place, caller: Principal, taken: Session | None, run_id: str, scopes: set[str], now: float
    ) -> bool:
        """Begin a session from the token that the caller came with, or from a live grant of theirs.

        A grant serves threads only that this very person began, and that no session has ended in: in a thread that somebody
        else began, the open calls are somebody else's wishes; and who signed out is asked again.
        """
        if self._inbound.token(run_id, caller, now) is not None:
            self._sessions.start(
                place, caller, owner=caller.key, grant_id="", expires_at=now + SESSION_LIFETIME, now=now
            )
            return True
        if taken is not None or self._sessions.began(place) not in (None, caller.key):
            return False
        # One that was made for less, at the terminal say, would have every exchange refused.
        grant = self._vault.live_grant(caller, now, scopes)
        if grant is None:
            return False
        self._sessions.start(place, caller, owner=caller.key, grant_id=grant.id, expires_at=grant.expires_at, now=now)
        return True

    def _own_login(self, scope: str, now: float) -> dict[str, Any]:
        """The application's own sign-in. Nothing is polled: the person comes back with a bearer token, or it expires."""
        return {
            "url": self._login_url,
            "code": "",
            "payload": {"scope": scope},
            "handle": {"issuer": self._broker.issuer},
            "interval": OWN_LOGIN_LIFETIME,
            "expires_at": now + OWN_LOGIN_LIFETIME,
        }

    def came_back(self, thread: str, principal: Principal, was: Visitor | None) -> bool:
        """Somebody came to a thread with a bearer token: a sign-in that was asked for there is done.

        True if the thread was the visitor's and is the person's from here on.

        Args:
            was: the visitor that this very browser was until now, by its cookie: nobody else finishes what a visitor
                began (casebook A17, A18).
        """
        now, moved = self._clock(), False
        for place, began in self._sessions.places_of(self._tenant, thread):
            if was is not None and began == was.key and self._sessions.of(place) is None:
                self._sessions.start(
                    # The person's own: they bring a bearer token each time. Whoever knows the cookie, from before, is nobody.
                    place,
                    principal,
                    owner=principal.key,
                    grant_id="",
                    expires_at=now + SESSION_LIFETIME,
                    now=now,
                )
                moved = True
            for request in self._ledger.pending(place):
                # However they were asked, a person who is here signed in has signed in. A visitor's request is done only if
                # it sent them to the application's own page.
                visitors = was is not None and request.owner == was.key and request.url == self._login_url
                if request.kind == "login" and (visitors or request.owner == principal.key):
                    self._ledger.decide(request, "approved", evidence={"came_back": True}, now=now)
                    self._ledger.woken(request, now)  # by the run that they came with
        return moved

    async def _device_login(self, scope: str, now: float) -> dict[str, Any]:
        server, client = await self._broker.server(), await self._broker.client()
        answer = await self._broker.transport.send(device_request(server, client, scope=scope, now=now))
        device = process_device_response(answer, now=now, allow_origins=self._broker.transport.allow_origins)
        return {
            "url": device.verification_uri,
            "code": device.user_code,
            "payload": {"scope": scope},
            "handle": {"issuer": server.issuer, "device_code": device.device_code.reveal()},
            "interval": device.interval,
            "expires_at": device.expires_at,
        }

    async def _browser_login(self, scope: str) -> dict[str, Any]:
        server, client = await self._broker.server(), await self._broker.client()
        attempt = authorization_request(server, client.client_id, redirect_uri=self._redirect_uri, scope=scope)
        return {
            "url": attempt.url,
            "code": "",
            "digest": state_digest(attempt.state),
            "payload": {"scope": scope},
            "handle": {
                "issuer": attempt.issuer,
                "state": attempt.state.reveal(),
                "nonce": attempt.nonce.reveal(),
                "verifier": attempt.pkce.verifier.reveal(),
                "redirect_uri": attempt.redirect_uri,
            },
            "interval": float(APPROVAL_LIFETIME * 2),  # nothing to poll: the browser comes back, or it expires
            "expires_at": self._clock() + APPROVAL_LIFETIME * 2,
        }

    async def approval(
        self,
        place: Place,
        session: Session,
        call: Call,
        condition: Approval,
        need: Resource | None,
        given: Mapping[str, Any] = MappingProxyType({}),
    ) -> Request:
        """Ask the session's person to approve this very call (CIBA Core §7.1 with RFC 9396 details).

        Returns the request of an equal call instead, if one waits in this place already (casebook B22).

        Args:
            given: the arguments as the model gave them, with which a deferred call is made later.

        Raises:
            RefusedError: this person is asked too much already, or has just declined (casebook B11).
        """
        # One at a time: all calls of a turn are asked about at once, and each would find that nothing waits yet.
        async with self._asked_of.setdefault(session.principal.key, asyncio.Lock()):
            asked = await asyncio.to_thread(self._asked, place, session, call)
            return asked if asked is not None else await self._ask(place, session, call, condition, need, given)

    def _asked(self, place: Place, session: Session, call: Call) -> Request | None:
        """The request that serves for a call already, if there is one; else make sure that the person may be asked.

        Attack: whoever has the model's ear asks, and asks again, until the person presses Approve to have their peace.
        """
        now, person, equal = self._clock(), session.principal, call_digest(call, session)
        ours = self._ledger.of_call(place, call.message_id, call.id)
        asked = ours if ours is not None else self._ledger.equal_open(place, equal, now)
        if asked is not None:
            return asked
        waiting = len(self._ledger.pending_of(person, now))
        if waiting >= self._pending_limit:
            raise RefusedError(
                f"Nothing more is asked of this person: {waiting} approvals wait already",
                "Decide those first, then ask again",
                code="too_many_pending",
            )
        declined = self._ledger.declined(person, now - 2 * FATIGUE)
        if any(r.call == equal and now - (r.decided_at or 0.0) < DECLINED_A_MOMENT for r in declined):
            raise RefusedError(
                "The same was declined a moment ago, so it is not asked again",
                "Ask what should be different, or wait a minute",
                code="declined_before",
            )
        at = [r.decided_at or 0.0 for r in declined[:3]]
        if len(at) == 3 and at[0] - at[2] <= FATIGUE and now < at[0] + FATIGUE:
            minutes = math.ceil((at[0] + FATIGUE - now) / 60)
            raise RefusedError(
                "Three approvals were declined within ten minutes, so nothing is asked for a while",
                f"Try again in {minutes} min" if minutes > 1 else "Try again in a minute",
                code="declined_often",
            )
        return None

    async def _ask(
        self,
        place: Place,
        session: Session,
        call: Call,
        condition: Approval,
        need: Resource | None,
        given: Mapping[str, Any],
    ) -> Request:
        now = self._clock()
        server, client = await self._broker.server(), await self._broker.client()
        nonce = secrets.token_urlsafe(16)
        expires_at = int(now) + APPROVAL_LIFETIME
        bound = binding_digest(call, place, session, client.client_id, nonce, expires_at)
        code = _comparison_code()
        details: list[dict[str, Any]] = [
            {
                "type": condition.type,
                **({"locations": [need.audience]} if need else {}),
                "actions": [call.tool],
                "digest": bound,
                "arguments": shown_arguments(call.arguments),
            }
        ]
        require_shown(call)
        kept = shown_arguments(given)
        scope = " ".join(["openid", *(need.scopes if need else ())])
        token = Secret(secrets.token_urlsafe(32)) if self._delivery == "ping" else None
        answer = await self._broker.transport.send(
            backchannel_request(
                server,
                client,
                login_hint=iss_sub_hint(session.principal.issuer, session.principal.subject),
                scope=scope,
                binding_message=code,
                authorization_details=details,
                resource=need.audience if need else None,
                requested_expiry=APPROVAL_LIFETIME,
                client_notification_token=token,
                now=now,
            )
        )
        opened = process_backchannel_response(answer, now=now, allow_origins=self._broker.transport.allow_origins)
        return await asyncio.to_thread(
            lambda: self._ledger.open(
                place=place,
                kind="approval",
                owner=session.owner,
                issuer=session.principal.issuer,
                subject=session.principal.subject,
                message_id=call.message_id,
                tool_call_id=call.id,
                digest=bound,
                url=opened.approval_uri or "",
                code=code,
                payload={
                    "tool": call.tool,
                    "nonce": nonce,
                    "expires_at": expires_at,
                    "scope": scope,
                    "authorization_details": details,
                    "given": kept,
                },
                call=call_digest(call, session),
                handle={"issuer": server.issuer, "auth_req_id": opened.auth_req_id.reveal()},
                # With pings, polling is the safety net for one that was lost.
                interval=max(opened.interval, SAFETY_INTERVAL) if token else opened.interval,
                expires_at=min(opened.expires_at, float(expires_at)),
                ping=token.reveal() if token else "",
                now=now,
            )
        )


def _comparison_code() -> str:
    """A code that the chat and the approval page both show, so that people approve what they asked for."""
    letters = "BCDFGHJKLMNPQRSTVWXZ"
    return (
        "".join(secrets.choice(letters) for _ in range(3)) + "-" + "".join(secrets.choice("23456789") for _ in range(3))
    )
