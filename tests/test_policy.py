"""The decision: a pure function of facts, and whatever is not provided for is denied."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from identity.policy import Allow, Deferred, Deny, Facts, StepUp, decide

READY = {
    "needs_user": True,
    "session": "live",
    "needs_relation": True,
    "relation": "holds",
    "needs_approval": True,
    "approval": "approved",
}


def facts(**changes: Any) -> Facts:
    return Facts(**{**READY, **changes})


def test_a_call_with_everything_that_it_needs_is_allowed() -> None:
    assert decide(Facts()) == Allow()
    assert decide(facts()) == Allow()
    assert decide(facts(needs_approval=False, approval="none")) == Allow()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"session": "none"}, "login"),
        ({"session": "none", "approval": "none", "token_missing": True}, "login"),  # login comes first, alone
        ({"session": "none", "relation": "unknown", "approval": "none"}, "login"),  # nobody has relations
        ({"approval": "none"}, "approval"),
        ({"approval": "pending"}, "approval"),
        ({"approval": "none", "token_missing": True}, "approval"),  # the token exists only after the approval
        ({"token_missing": True}, "token"),
        ({"needs_approval": False, "approval": "none", "token_missing": True}, "token"),
    ],
)
def test_what_is_missing_is_obtained_first_and_in_this_order(changes: dict[str, Any], what: Any) -> None:
    assert decide(facts(**changes)) == StepUp(what)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"problem": "There is no such tool."}, "invalid_call"),
        ({"problem": "There is no such tool.", "effect": "done"}, "invalid_call"),
        ({"relation": "missing"}, "forbidden"),
        ({"relation": "unknown"}, "forbidden"),
        ({"relation": "a state of tomorrow"}, "forbidden"),
        ({"relation": None}, "forbidden"),
        ({"relation": "missing", "approval": "none"}, "forbidden"),  # nobody is asked about what is denied anyway
        ({"relation": "missing", "token_missing": True}, "forbidden"),
        ({"session": "none", "login_refused": "Nobody signed in."}, "login_refused"),
        ({"approval": "denied"}, "access_denied"),
        ({"approval": "expired"}, "expired"),
        ({"approval": "withdrawn"}, "withdrawn"),
        ({"approval": "unusable"}, "approval_unusable"),
        ({"approval": "a state of tomorrow"}, "approval_unusable"),
        ({"approval": ""}, "approval_unusable"),
        ({"approval": None}, "approval_unusable"),
        ({"approval": "none", "failure": "The issuer refused."}, "approval_failed"),
        ({"token_missing": True, "failure": "The issuer refused."}, "no_token"),
    ],
)
def test_what_cannot_be_had_is_denied_with_a_sentence(changes: dict[str, Any], code: str) -> None:
    denied = decide(facts(**changes))
    assert isinstance(denied, Deny)
    assert denied.code == code
    assert denied.reason.endswith(".")


@pytest.mark.parametrize("approval", ["denied", "unusable"])
def test_the_reason_that_was_recorded_is_told(approval: Any) -> None:
    denied = decide(facts(approval=approval, approval_reason="Not today."))
    assert isinstance(denied, Deny)
    assert denied.reason == "Not today."


def test_a_call_whose_approval_is_deferred_is_answered_while_the_person_decides_and_otherwise_like_any_other() -> None:
    assert decide(facts(approval="pending", defers=True)) == Deferred()
    assert decide(facts(approval="none", defers=True)) == StepUp("approval")  # it has to be asked for first
    assert decide(facts(approval="approved", defers=True)) == Allow()
    assert decide(facts(approval="pending", defers=True, session="none")) == StepUp("login")
    assert isinstance(decide(facts(approval="denied", defers=True)), Deny)


@pytest.mark.parametrize("effect", ["claimed", "unknown", "done"])
def test_an_effect_that_was_started_is_answered_from_the_ledger_whatever_else_holds(effect: Any) -> None:
    assert decide(facts(effect=effect, session="none", approval="denied", token_missing=True)) == Allow()


def test_nothing_runs_without_a_session_an_approval_or_a_token_that_it_needs() -> None:
    """All combinations: an allowed call that was not started before lacks nothing."""
    approvals = ["none", "pending", "approved", "denied", "expired", "withdrawn", "unusable", "?"]
    flags = [False, True]
    related = [(False, "unknown"), (True, "holds"), (True, "missing"), (True, "unknown"), (True, "?")]
    for session, approval, user, asks, defers, missing, failure, refused, (takes, relation) in itertools.product(
        ["live", "none", "?"], approvals, flags, flags, flags, flags, ["", "It failed."], ["", "Refused."], related
    ):
        known = Facts(
            needs_user=user,
            session=session,  # type: ignore[arg-type]
            needs_relation=takes,
            relation=relation,  # type: ignore[arg-type]
            needs_approval=asks,
            approval=approval,  # type: ignore[arg-type]
            defers=defers,
            token_missing=missing,
            failure=failure,
            login_refused=refused,
        )
        if decide(known) == Allow():
            assert not user or session == "live"
            assert not takes or relation == "holds"
            assert not asks or approval == "approved"
            assert not missing
        if decide(known) == Deferred():
            assert defers
            assert approval == "pending"
            assert session == "live" or not user
