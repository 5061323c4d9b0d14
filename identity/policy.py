"""The decision about one tool call: a pure function of facts.

``decide`` is asked twice, by the edge ``authorize`` to choose the way and by ``tool_call`` right before the effect, with
facts that were read anew. A decision is a value, never a stage: nothing rests on having come the right way. Today it
knows the tools' own conditions; an organization's policies are to be evaluated behind this same function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Allow", "Decision", "Deferred", "Deny", "Facts", "RelationState", "StepUp", "decide"]

ApprovalState = Literal["none", "pending", "approved", "denied", "expired", "withdrawn", "unusable"]
EffectState = Literal["none", "claimed", "unknown", "done"]
RelationState = Literal["unknown", "holds", "missing"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one call at one moment.

    Args:
        problem: why the call cannot be made as it stands (unknown tool, arguments that do not validate); else empty.
        effect: what the ledger holds for this call.
        needs_user: whether the tool needs somebody who is signed in.
        session: whether this thread has a live session of this caller.
        login_pending: whether a person is being asked to sign in; ``refused`` holds why that ended without one.
        needs_relation: whether the tool takes that the person has a relation to what the call is about.
        relation: whether they have every one of them; ``relation_reason`` says what is missing.
        needs_approval: whether a condition of the tool asks for a person's yes for these arguments.
        approval: the state of the request for this very call; ``unusable`` when it was approved but its token or its
            binding no longer serves.
        defers: whether the conversation goes on while the person decides.
        token_missing: whether a token that the call declares is not at hand.
        failure: why a token could not be had, in this turn; else empty.
    """

    problem: str = ""
    effect: EffectState = "none"
    needs_user: bool = False
    session: Literal["live", "none"] = "none"
    login_refused: str = ""
    needs_relation: bool = False
    relation: RelationState = "unknown"
    relation_reason: str = ""
    needs_approval: bool = False
    approval: ApprovalState = "none"
    approval_reason: str = ""
    defers: bool = False
    token_missing: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Allow:
    """The call may be made now."""


@dataclass(frozen=True, slots=True)
class StepUp:
    """Something has to be obtained first."""

    what: Literal["login", "approval", "token"]


@dataclass(frozen=True, slots=True)
class Deferred:
    """A person is being asked. The call is answered with that, and made when they have agreed."""


@dataclass(frozen=True, slots=True)
class Deny:
    """The call is not made; ``reason`` is a sentence for people and for the model."""

    code: str
    reason: str


Decision = Allow | StepUp | Deferred | Deny


def decide(facts: Facts) -> Decision:
    """What is to be done about a call, from facts alone. Whatever is not provided for is denied."""
    if facts.problem:
        return Deny("invalid_call", facts.problem)
    if facts.effect != "none":
        # Answered from the ledger: an effect is never started twice, however the call got here (casebook E4-E7).
        return Allow()
    if facts.needs_user and facts.session != "live":
        if facts.login_refused:
            return Deny("login_refused", facts.login_refused)
        return StepUp("login")
    if facts.needs_relation and facts.relation != "holds":
        # Before the approval: nobody is asked about a call that will not be made.
        return Deny("forbidden", facts.relation_reason or "It is not known that you may do this, so it was not done.")
    if facts.needs_approval:
        match facts.approval:
            case "none" | "pending":
                if facts.failure:
                    return Deny("approval_failed", facts.failure)
                return Deferred() if facts.approval == "pending" and facts.defers else StepUp("approval")
            case "approved":
                pass
            case "denied":
                return Deny("access_denied", facts.approval_reason or "The person who was asked declined.")
            case "expired":
                return Deny(
                    "expired", "Nobody decided in time, so the request expired. Ask again if it is still wanted."
                )
            case "withdrawn":
                return Deny("withdrawn", "The request was withdrawn, because the conversation went on without it.")
            case _:
                return Deny(
                    "approval_unusable",
                    facts.approval_reason or "The approval does not fit this call any more. Ask again.",
                )
    if facts.token_missing:
        if facts.failure:
            return Deny("no_token", facts.failure)
        return StepUp("token")
    return Allow()
