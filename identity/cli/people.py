"""The commands of a person: sign in and out, and see what one has signed in to and is being asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .output import json_option, left, note, shown, table, tell, waiting
from .surroundings import Surroundings

if TYPE_CHECKING:
    from ..identity import Identity
    from ..ledger import Request
    from ..principal import Principal
    from ..sessions import Session
    from ..signout import GivenUp
    from .account import Account

__all__ = ["approvals", "login", "logout", "sessions", "whoami"]


@contextmanager
def _account(around: Surroundings, **settings: Any) -> Iterator[tuple[Identity, Account]]:
    from .account import Account

    identity = around.identity(**settings)
    try:
        yield identity, Account(identity, around.user())
    finally:
        identity.close()


# -- signing in --------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--device", is_flag=True, help="Show a code to type in a browser anywhere, instead of opening one here.")
@click.option("--no-browser", is_flag=True, help="Show the link and do not open it.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="Ask for this scope too. May be repeated.")
@json_option
@click.pass_obj
def login(around: Surroundings, device: bool, no_browser: bool, scopes: tuple[str, ...], as_json: bool) -> None:
    """Sign in at this terminal, in the browser."""
    with _account(around) as (identity, account):
        session = account.session()
        if session is not None:
            facts = {**_person(session.principal), "until": session.expires_at, "already": True}
            told = f"{_name(session.principal)} is signed in already. To sign in as somebody else: deputize logout"
            tell(as_json, facts, [told])
            return
        redirect_uri = identity.settings.redirect_uri
    browse = not no_browser
    session = _device_login(around, scopes) if device else _browser_login(around, scopes, redirect_uri, browse)
    facts = {**_person(session.principal), "until": session.expires_at, "already": False}
    tell(as_json, facts, [f"Signed in as {_name(session.principal)}, for {left(session.expires_at - around.clock())}."])


def _device_login(around: Surroundings, scopes: Sequence[str]) -> Session:
    def show(request: Request) -> None:
        note(
            f"To sign in, open this page in a browser, anywhere, and type the code:\n  {request.url}\n  {request.code}"
        )

    with _account(around, login="device") as (_, account):
        return asyncio.run(account.login(scopes, show, _wait(around, "the code")))


def _browser_login(around: Surroundings, scopes: Sequence[str], at: str, open_browser: bool) -> Session:
    from ..terminal import Callback

    def show(request: Request) -> None:
        note(f"To sign in, open this page in a browser on this machine:\n  {request.url}")
        if open_browser and not around.browse(request.url):
            note("No browser could be opened here. Elsewhere: deputize login --device")

    callback = Callback(at=at)
    with _account(around, login="browser", redirect_uri=callback.redirect_uri) as (identity, account), callback:
        callback.finish = lambda query: identity.transport.call(identity.asking.browser_callback, query)
        return asyncio.run(account.login(scopes, show, _wait(around, "the browser")))


def _wait(around: Surroundings, what: str) -> Any:
    def wait(request: Request) -> AbstractAsyncContextManager[None]:
        return waiting(what, request.expires_at, around.clock)

    return wait


@click.command()
@json_option
@click.pass_obj
def whoami(around: Surroundings, as_json: bool) -> None:
    """Say who is signed in at this terminal."""
    with _account(around) as (_, account):
        session = account.require()
    person = session.principal
    tell(
        as_json,
        {**_person(person), "since": session.created_at, "until": session.expires_at},
        [
            _name(person),
            f"  subject  {shown(person.subject, 200)}",
            f"  issuer   {shown(person.issuer, 200)}",
            f"  tenant   {shown(person.tenant)}",
            f"  signed in for another {left(session.expires_at - around.clock())}",
        ],
    )


@click.command()
@json_option
@click.pass_obj
def logout(around: Surroundings, as_json: bool) -> None:
    """Sign out, here and at the issuer.

    The sign-in is revoked at the issuer where that can be done, wiped here, and every session that used it ends.
    """
    with _account(around) as (_, account):
        done = account.logout()
    if done is None:
        tell(as_json, {"signed_out": None}, ["Nobody was signed in at this terminal."])
        return
    session, receipt = done
    tell(
        as_json,
        {"signed_out": _person(session.principal), **_receipt(receipt)},
        [f"Signed out {_name(session.principal)}.", *_receipt_lines(receipt)],
    )


_OWN = "it came from the application's own sign-in, of which nothing is kept here"


# -- sessions ----------------------------------------------------------------------------------------------------------


@click.group()
def sessions() -> None:
    """See where you are signed in, and end it."""


@sessions.command("list")
@json_option
@click.pass_obj
def list_sessions(around: Surroundings, as_json: bool) -> None:
    """List your sessions: this terminal's, and those of conversations."""
    with _account(around) as (_, account):
        found, here = account.sessions(), account.require()
    now = around.clock()
    rows = [
        (
            s.short_id,
            _place(s),
            _when(s.created_at),
            left(s.expires_at - now),
            "this terminal" if s.id == here.id else "",
        )
        for s in found
    ]
    facts = [
        {
            "id": s.short_id,
            "graph": s.place.graph,
            "thread": s.place.thread,
            "since": s.created_at,
            "until": s.expires_at,
            "here": s.id == here.id,
        }
        for s in found
    ]
    tell(as_json, {"sessions": facts}, table(("ID", "WHERE", "SINCE", "LEFT", ""), rows))


@sessions.command("end")
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="End every session of yours, this terminal's too.")
@json_option
@click.pass_obj
def end_sessions(around: Surroundings, session_id: str | None, everything: bool, as_json: bool) -> None:
    """End a session. With the last one that uses a sign-in, that is given up too."""
    if everything == (session_id is not None):
        raise UsageError("Which session is to end is not clear", "Give an id from `deputize sessions list`, or --all")
    with _account(around) as (_, account):
        if session_id is None:
            ended, receipts = account.end_all()
            lines = [f"Ended {ended} of your sessions."]
        else:
            session, given_up = account.end(session_id)
            ended, receipts = 1, [given_up] if given_up else []
            lines = [f"Ended the session {session.short_id} ({_place(session)})."]
            if given_up is None:
                lines.append(f"  {'another session uses the same sign-in, which stays' if session.grant_id else _OWN}")
    lines += [line for receipt in receipts for line in _receipt_lines(receipt)]
    tell(as_json, {"ended": ended, "grants": [_receipt(receipt) for receipt in receipts]}, lines)


# -- approvals ---------------------------------------------------------------------------------------------------------


@click.group()
def approvals() -> None:
    """See what waits for your decision.

    Decisions are made on the page of a request, never here.
    """


@approvals.command("list")
@json_option
@click.pass_obj
def list_approvals(around: Surroundings, as_json: bool) -> None:
    """List what you are being asked to approve."""
    with _account(around) as (identity, account):
        found = [(request, str(identity.ledger.payload(request)["tool"])) for request in account.approvals()]
    now = around.clock()
    facts = [
        {
            "id": r.short_id,
            "tool": tool,
            "graph": r.place.graph,
            "thread": r.place.thread,
            "code": r.code,
            "url": r.url,
            "expires_at": r.expires_at,
        }
        for r, tool in found
    ]
    rows = [
        (r.short_id, shown(tool), _place(r), r.code, left(r.expires_at - now), shown(r.url, 300)) for r, tool in found
    ]
    lines = table(("ID", "TOOL", "WHERE", "CODE", "LEFT", "PAGE"), rows) if rows else ["Nothing waits for you."]
    tell(as_json, {"approvals": facts}, lines)


@approvals.command("open")
@click.argument("approval_id", metavar="ID")
@click.option("--no-browser", is_flag=True, help="Show the link and do not open it.")
@json_option
@click.pass_obj
def open_approval(around: Surroundings, approval_id: str, no_browser: bool, as_json: bool) -> None:
    """Open the page where you decide about a request."""
    with _account(around) as (_, account):
        request = account.approval(approval_id)
        url = account.page(request)
    opened = not no_browser and around.browse(url)
    tell(
        as_json,
        {"id": request.short_id, "url": url, "code": request.code, "opened": opened},
        [f"Decide on this page; it shows the code {shown(request.code)} too:", f"  {url}"],
    )


# -- how things are told -----------------------------------------------------------------------------------------------


def _person(principal: Principal) -> dict[str, Any]:
    return {
        "name": principal.name,
        "subject": principal.subject,
        "issuer": principal.issuer,
        "tenant": principal.tenant,
    }


def _name(principal: Principal) -> str:
    return shown(principal.name or principal.subject)


def _place(found: Session | Request) -> str:
    return f"{shown(found.place.graph, 30)}/{shown(found.place.thread, 40)}"


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def _receipt(receipt: GivenUp) -> dict[str, Any]:
    return {"revoked": receipt.revoked, "reason": receipt.reason, "wiped": True, "sessions": receipt.sessions}


def _receipt_lines(receipt: GivenUp) -> list[str]:
    return [
        f"  revoked at the issuer  {'yes' if receipt.revoked else 'no: ' + receipt.reason}",
        "  wiped here             yes",
        f"  sessions ended         {receipt.sessions}",
    ]
