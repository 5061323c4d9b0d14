"""Somebody's sign-in at the terminal, and what a signed-in person may see and end.

It is a session like any other, in the agent's own database: the place is the terminal of one user of the operating
system. That user is a visitor who has signed in, so that somebody else may sign in there afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from ..asking import TERMINAL
from ..errors import RefusedError, UsageError
from ..identity import Identity
from ..ledger import Request
from ..principal import Principal, Visitor
from ..sessions import Place, Session
from ..signout import GivenUp, end_session, give_up

__all__ = ["Account"]

_T = TypeVar("_T", Request, Session)


class Account:
    """Who is signed in at one terminal.

    Args:
        user: the operating system's name for who sits there.
    """

    def __init__(self, identity: Identity, user: str) -> None:
        self._identity = identity
        self._place = Place(identity.settings.tenant, TERMINAL, user)
        self._visitor = Visitor(f"{TERMINAL}:{user}")

    # -- signing in --------------------------------------------------------------------------------------------------

    def session(self) -> Session | None:
        """The sign-in here, if it still works."""
        session, now = self._identity.sessions.of(self._place), self._identity.clock()
        if session is None or not session.live(now) or session.principal.issuer != self._identity.settings.issuer:
            return None
        grant = self._identity.vault.grant(session.grant_id, session.principal)
        return session if grant is not None and not grant.broken and now < grant.expires_at else None

    def require(self) -> Session:
        """The sign-in here.

        Raises:
            RefusedError: nobody is signed in.
        """
        session = self.session()
        if session is None:
            raise RefusedError("Nobody is signed in at this terminal", "Sign in: deputize login", code="not_signed_in")
        return session

    async def login(
        self,
        scopes: Iterable[str],
        show: Callable[[Request], None],
        waiting: Callable[[Request], AbstractAsyncContextManager[None]],
    ) -> Session:
        """Ask for a sign-in, show it, and wait until it has come to something. Whoever stops waiting withdraws it.

        Raises:
            RefusedError: the person declined, or nobody signed in in time.
        """
        await asyncio.to_thread(self._clear)
        try:
            transport, asking = self._identity.transport, self._identity.asking
            request = await transport.acall(asking.login, self._place, self._visitor, "", scopes)
            assert request is not None  # a visitor has no sign-in elsewhere that would serve
            show(request)
            async with waiting(request):
                await transport.acall(asking.wait, self._place)
        except BaseException:
            self._withdraw()
            raise
        return await asyncio.to_thread(self._outcome, request)

    def _clear(self) -> None:
        """What earlier sign-ins left here: a request whose terminal was killed, a grant that does not work any more."""
        self._withdraw()
        if self.session() is None:
            self.logout()
            # A terminal is no conversation: what was said there is nowhere, so the next one there may be anybody.
            self._identity.sessions.forget_ended(self._place)

    def _withdraw(self) -> None:
        ledger, now = self._identity.ledger, self._identity.clock()
        for request in ledger.pending(self._place):
            ledger.decide(request, "withdrawn", now=now, reason="The sign-in was stopped at the terminal.")

    def _outcome(self, asked: Request) -> Session:
        ledger = self._identity.ledger
        request = ledger.request(asked.id)
        assert request is not None  # rows stay
        ledger.woken(request, self._identity.clock())  # no thread waits for it
        match request.state:
            case "approved":
                return self.require()
            case "withdrawn":
                raise RefusedError("Another sign-in was begun at this terminal", "Finish that one", code="withdrawn")
            case "expired":
                raise RefusedError("Nobody signed in in time", "Try again: deputize login", code="expired")
            case _:
                raise RefusedError(
                    request.reason.rstrip(".") or "The sign-in was declined", "Try again: deputize login"
                )

    # -- signing out -------------------------------------------------------------------------------------------------

    def logout(self) -> tuple[Session, GivenUp] | None:
        """Give up the sign-in here, with every session that uses it; ``None`` when there is none.

        One that has expired meanwhile is wiped too.
        """
        session = self._identity.sessions.of(self._place)
        if session is None or session.ended_at is not None:
            return None
        return session, self._give_up(session.principal, session.grant_id)

    def sessions(self) -> list[Session]:
        """The sessions of whoever is signed in here, wherever they are."""
        return self._identity.sessions.live_of(self.require().principal, self._identity.clock())

    def end(self, id_: str) -> tuple[Session, GivenUp | None]:
        """End one session of whoever is signed in here; its sign-in too, if no other session uses that.

        Raises:
            UsageError: they have no session of that id.
        """
        session, identity = _named(self.sessions(), id_, "session"), self._identity
        broker, vault, sessions, now = identity.broker, identity.vault, identity.sessions, identity.clock()
        return session, identity.transport.call(
            lambda: end_session(session, broker=broker, vault=vault, sessions=sessions, now=now)
        )

    def end_all(self) -> tuple[int, list[GivenUp]]:
        """End every session of whoever is signed in here, and give up every grant of theirs. Returns how many ended."""
        principal, identity = self.require().principal, self._identity
        receipts = [self._give_up(principal, grant.id) for grant in identity.vault.grants_of(principal)]
        rest = identity.sessions.live_of(principal, identity.clock())
        for session in rest:  # the application's own sign-ins, of which no grant is kept
            identity.sessions.end(session, identity.clock())
        return len(rest) + sum(receipt.sessions for receipt in receipts), receipts

    def _give_up(self, principal: Principal, grant_id: str) -> GivenUp:
        identity = self._identity
        broker, vault, sessions, now = identity.broker, identity.vault, identity.sessions, identity.clock()
        return identity.transport.call(
            lambda: give_up(principal, grant_id, broker=broker, vault=vault, sessions=sessions, now=now)
        )

    # -- approvals ---------------------------------------------------------------------------------------------------

    def approvals(self) -> list[Request]:
        """What whoever is signed in here is being asked to approve."""
        return self._identity.ledger.pending_of(self.require().principal, self._identity.clock())

    def approval(self, id_: str) -> Request:
        """One of them.

        Raises:
            UsageError: nothing of that id waits for them.
        """
        return _named(self.approvals(), id_, "approval")

    def page(self, request: Request) -> str:
        """Where a person decides about a request. This terminal never does (casebook B25): its stored sign-in says that
        somebody was here within a day's work, not who reads the request now.

        Raises:
            RefusedError: there is no such page, or not one that may be opened.
        """
        if not request.url:
            raise RefusedError("The issuer asks on a channel of its own, and has no page for it", "Look at your phone")
        if not self._identity.transport.permits(request.url):
            # Attack: a row that was edited in the database opens a page of the attacker's (casebook B20, C9).
            raise RefusedError("The page of this request is not one that may be opened", "Ask for the call again")
        return request.url


def _named(found: Sequence[_T], id_: str, what: str) -> _T:
    """The one that a short id means, or the beginning of one."""
    matching = [item for item in found if id_ and item.short_id.startswith(id_)]
    if len(matching) != 1:
        known = ", ".join(item.short_id for item in found) or "none"
        raise UsageError(
            f"{'Several' if matching else 'No'} {what}s of yours are called {id_!r}", f"There are: {known}"
        )
    return matching[0]
