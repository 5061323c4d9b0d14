"""The gate: what every placement shares. Examine a call, bind its tokens, claim its effect, call the tool.

The graph's edges examine calls to choose the way; ``tool_call`` examines its one call again, with facts that were read
anew, and only then runs it. So a client that edits state, jumps to a node or replays a checkpoint meets the same answers
(casebook E1-E5): what is decided here rests on the database and on seals, never on how the call got here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.tools import BaseTool

from .access import AccessToken
from .asking import Asking
from .binding import Call, binding_digest
from .broker import SignInAgainError
from .calls import INVALID_CALL, CallsOf, OpenCall, answer, calls_of, run_id
from .canonical import digest, normalized
from .errors import DeputizeError, InputError, NeedsError, RefusedError, SealError, StoreError, UsageError
from .guarded import GuardedTool
from .ledger import Claim, Ledger, Outcome, Request, effect_id
from .needs import NOTHING, Approval, Binding, Needs, Resource, binding
from .policy import Decision, Deferred, Deny, Facts, StepUp, decide
from .principal import Caller
from .secret import Secret
from .sessions import Place, Session
from .text import printable

if TYPE_CHECKING:
    from .identity import Identity

__all__ = ["Examined", "Gate"]

_log = logging.getLogger("deputize")

_A_MOMENT = 1.0
_A_WHILE = 60.0
_OWNERS = 10_000

_NOT_READY = "The call is not ready any more. Ask again."


@dataclass(frozen=True, slots=True)
class Examined:
    """One call with everything that was found out about it, at one moment."""

    call: OpenCall
    decision: Decision
    tool: GuardedTool | None = None
    bound: Call | None = None
    session: Session | None = None
    condition: Approval | None = None
    request: Request | None = None
    tokens: Mapping[str, AccessToken] | None = None
    missing: tuple[Resource, ...] = ()
    claim: Claim | None = None
    whose: str = ""

    @property
    def waits(self) -> bool:
        """Whether a person's decision is all that this call waits for."""
        return (
            isinstance(self.decision, StepUp)
            and self.decision.what in ("login", "approval")
            and self.request is not None
            and self.request.state == "pending"
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """That a caller was found to be a thread's owner at ``at`` (unix seconds), and the session that there was."""

    at: float
    session: Session | None


class Gate:
    """One graph's gate.

    Args:
        graph: the graph's name; sessions and seals name it, so that no other graph can use them (casebook E20).
        identity: the deployment whose database, issuer and clock count.
        defers: whether the graph tells outcomes that come later (the node ``settle``). In one that does not, every approval
            is waited for, and what waits is withdrawn when people go on talking.
        injects: as for :meth:`GuardedTool.of`.
    """

    def __init__(
        self,
        tools: Sequence[BaseTool],
        graph: str,
        identity: Identity,
        *,
        defers: bool = False,
        injects: bool = False,
    ) -> None:
        self.tools = {tool.name: GuardedTool.of(tool, injects=injects) for tool in tools}
        if len(self.tools) != len(tools):
            raise NeedsError("Two tools have the same name", "Give each tool a name of its own")
        self.graph = graph
        self.scopes = sorted({s for t in self.tools.values() for need in t.needs.tokens.values() for s in need.scopes})
        self._identity = identity
        self._defers = defers
        self._tenant = identity.settings.tenant
        identity.graphs.add(graph)
        self._owners: dict[tuple[Place, str], _Seen] = {}

    @property
    def asking(self) -> Asking:
        """Where logins and approvals are asked for."""
        return self._identity.asking

    @property
    def _ledger(self) -> Ledger:
        return self._identity.ledger

    def caller(self, config: Mapping[str, Any]) -> Caller | None:
        """For whom this run is."""
        return self._identity.current_caller(config, self.place(config))

    def _clock(self) -> float:
        return self._identity.clock()

    # -- where, and whose ------------------------------------------------------------------------------------------

    def place(self, config: Mapping[str, Any]) -> Place:
        """The thread that a run is on."""
        thread = (config.get("configurable") or {}).get("thread_id")
        if thread is None or thread == "":
            raise InputError(
                "This graph was started without a thread, so nothing that waits could be found again",
                "Compile it with a checkpointer and pass {'configurable': {'thread_id': …}}",
            )
        return Place(self._tenant, self.graph, str(thread))

    def check_owner(self, config: Mapping[str, Any], *, begin: bool = False) -> None:
        """Refuse a run of anybody but the one whom this thread belongs to (casebook E13).

        The whole run, not only its guarded calls: the history that the model would be shown is somebody's. A thread belongs
        to whoever began it, and to the person who signed in there.

        Args:
            begin: a run that may be the thread's first one.
        """
        self._session(self.place(config), config, begin)

    def knows_owner(self, config: Mapping[str, Any]) -> bool:
        """Whether :meth:`check_owner` found a moment ago that the thread is this caller's. Reads no database.

        It saves a trip to a thread where one step has just checked what the next one wants checked. Nobody loses a thread in
        between: whose it is, is written once, and others are not signed in there.
        """
        return self._seen(config, _A_MOMENT) is not None

    def runs_at_once(self, calls: Sequence[OpenCall], config: Mapping[str, Any], tokens: Mapping[str, Any]) -> bool:
        """Whether there seems to be nothing that these calls could wait for: they may go to ``tool_call`` as they are.

        A guess that reads no database, from what the run found when it began: a live session, tokens that open for it, and
        no condition that could ask a person. ``tool_call`` examines each call and decides; a wrong guess allows nothing.
        """
        seen, now = self._seen(config, _A_WHILE), self._clock()
        for call in calls:
            needs = self.tools[call.name].needs if call.name in self.tools else NOTHING
            if not needs.user:
                continue
            if needs.approvals or seen is None or seen.session is None or not seen.session.live(now):
                return False
            place, serves = seen.session.place, self._identity.broker.serves
            if not all(serves(place, seen.session, need, tokens.get(key), now) for key, need in _keyed(needs)):
                return False
        return True

    def _seen(self, config: Mapping[str, Any], within: float) -> _Seen | None:
        caller = self._identity.current_caller(config)  # nobody, for a run of the waker: that one is looked up
        seen = self._owners.get((self.place(config), caller.key)) if caller else None
        return seen if seen is not None and 0 <= self._clock() - seen.at < within else None

    def _session(self, place: Place, config: Mapping[str, Any], begin: bool = False) -> Session | None:
        session, caller = self._identity.sessions.of(place), self.caller(config)
        if session is not None:
            session.require(caller)
            self._found(place, caller, session)
            return session
        key = caller.key if caller else ""
        began = self._identity.sessions.began(place)
        if began is None and begin:
            began = self._identity.sessions.begin(place, key, self._clock())
        if began and began != key:
            # Attack: somebody leaves an order in a thread of theirs, for the person who opens it to be signed in to.
            raise RefusedError(
                "This conversation was begun by somebody else",
                "Use a thread of your own; in Python, say who is calling: with identity.caller(principal)",
                code="foreign_thread",
            )
        if began:
            self._found(place, caller)
        return None

    def _found(self, place: Place, caller: Caller | None, session: Session | None = None) -> None:
        if len(self._owners) >= _OWNERS:
            self._owners.clear()
        if caller is not None:
            self._owners[place, caller.key] = _Seen(self._clock(), session)

    def _whose(self, place: Place, session: Session | None) -> str:
        return session.principal.key if session is not None else self._identity.sessions.began(place) or ""

    async def token(self, config: Mapping[str, Any], session: Session, need: Resource) -> dict[str, Any]:
        """A token for graph state; a session whose grant is spent ends, so that the next look asks for a sign-in."""
        try:
            return await self._identity.broker.token(self.place(config), session, need, run_id(config))
        except SignInAgainError:
            await asyncio.to_thread(self._identity.sessions.end, session, self._clock())
            raise

    # -- examining -------------------------------------------------------------------------------------------------

    def examine(
        self,
        calls: Sequence[OpenCall],
        config: Mapping[str, Any],
        tokens: Mapping[str, Any],
        failures: Mapping[str, Any],
        *,
        lend: bool = False,
    ) -> list[Examined]:
        """What is to be done about each of one turn's open calls, from what the database says now.

        Args:
            tokens: graph state's sealed tokens by :attr:`identity.needs.Resource.key`.
            failures: what could not be had in this turn: ``{key: {"message_id": …, "reason": …}}``.
            lend: open the tokens, for the call itself; a look ahead needs to know only whether they would open.
        """
        if not calls:
            return []
        place, now, message_id = self.place(config), self._clock(), calls[0].message_id
        session = self._session(place, config)
        whose = self._whose(place, session)
        if session is not None and not session.live(now):
            session = None
        may_ask = any(call.name in self.tools and self.tools[call.name].needs.approvals for call in calls)
        requests = self._ledger.of_calls(place, message_id) if may_ask else {}
        effects = self._ledger.effects(self._tenant, message_id)
        told = {
            k: str(v.get("reason", ""))
            for k, v in failures.items()
            if isinstance(v, Mapping) and v.get("message_id") == message_id
        }
        login = self._login_state(place, message_id, config) if session is None else (None, "")
        return [
            replace(
                self._examine(
                    call, place, now, session, requests.get(call.id), effects.get(call.id), login, tokens, told, lend
                ),
                whose=whose,
            )
            for call in calls
        ]

    def _login_state(self, place: Place, message_id: str, config: Mapping[str, Any]) -> tuple[Request | None, str]:
        caller = self.caller(config)
        last = self._ledger.last_login(place, caller.key if caller else "")
        if last is None or last.state == "pending":
            return last, ""
        if last.message_id != message_id or last.state == "approved":
            return None, ""
        refused = last.reason or "Nobody signed in in time, so the request expired. Ask again if it is still wanted."
        return None, refused

    def _examine(
        self,
        call: OpenCall,
        place: Place,
        now: float,
        session: Session | None,
        request: Request | None,
        claim: Claim | None,
        login: tuple[Request | None, str],
        tokens: Mapping[str, Any],
        failures: Mapping[str, str],
        lend: bool,
    ) -> Examined:
        if claim is not None:  # before all else: what was started is told as it is, whatever became of the tool since
            return Examined(call, decide(Facts(effect=claim.state)), claim=claim)
        tool = self.tools.get(call.name)
        if tool is None:
            return Examined(call, decide(Facts(problem=self._no_such_tool(call))))
        try:
            arguments = tool.validated(call.arguments, call.id)
            audience = tool.needs.primary.audience if tool.needs.primary else ""
            bound = Call(call.message_id, call.id, call.name, arguments, tool.schema_digest, audience)
            condition = tool.needs.approval_for(arguments)
            normalized(dict(arguments))  # what has no canonical form cannot be bound, so it is not called
        except DeputizeError as error:
            return Examined(call, decide(Facts(problem=str(error))), tool)
        pending_login, login_refused = login
        relation, lacking = "unknown", ""
        if tool.needs.relations and session is not None:
            # Read anew by every look: it may have been taken away since the approval (casebook G2).
            relation, lacking = self._identity.relations.check(session.principal, tool.needs.relations, arguments)
        approval, reason, evidence = "none", "", None
        if session is not None and request is not None:
            # Once a person was asked about this call, their word decides, whatever a condition that looks at the market or
            # at a setting says by now: no answer, and a no, stay what they are.
            approval, reason, evidence = self._approval(request, bound, place, session, tool.needs, now)
        opened, missing = self._tokens(tool.needs, place, session, tokens, evidence, now, lend)
        failed = next((failures[need.key] for need in missing if need.key in failures), "") or failures.get(call.id, "")
        decision = decide(
            Facts(
                needs_user=tool.needs.user,
                session="live" if session else "none",
                login_refused=login_refused or failures.get("login", ""),
                needs_relation=bool(tool.needs.relations),
                relation=relation,  # type: ignore[arg-type]
                relation_reason=lacking,
                needs_approval=condition is not None or approval != "none",
                approval=approval,  # type: ignore[arg-type]
                approval_reason=reason,
                defers=self._defers and condition is not None and condition.wait == "defer",
                token_missing=bool(missing),
                failure=failed,
            )
        )
        asked = request if session is not None else pending_login
        return Examined(call, decision, tool, bound, session, condition, asked, opened, missing)

    def _no_such_tool(self, call: OpenCall) -> str:
        if call.name == INVALID_CALL:
            return "The arguments of this call were not valid JSON, so nothing was done. Make the call again."
        known = ", ".join(sorted(self.tools)) or "none"
        return f"There is no tool {printable(call.name, limit=60)!r}. There are: {known}."

    def _approval(
        self, request: Request, call: Call, place: Place, session: Session, needs: Needs, now: float
    ) -> tuple[str, str, AccessToken | None]:
        """How the request for this call stands, and the token that its approval brought.

        An approved row is not enough: its digest must be that of this very call, made again from live facts, and its
        evidence must open under that digest (casebook B4, B17, B20).
        """
        if request.state != "approved":
            return request.state, request.reason, None
        try:
            asked = self._ledger.payload(request)
            live = binding_digest(
                call, place, session, self._identity.settings.client_id, asked["nonce"], asked["expires_at"]
            )
            evidence = self._ledger.evidence(request)
        except SealError:
            return "unusable", "The record of the approval was changed, so it is not used. Ask again.", None
        if live != request.digest or evidence is None:
            return "unusable", "The approval was given for another call. Ask again.", None
        if evidence["approver"] != session.principal.subject:
            return "unusable", "The approval was given by somebody else. Ask again.", None
        if evidence["expires_at"] <= now:
            return "unusable", "The approval was given, but the time to use it is over. Ask again.", None
        need = needs.primary
        return (
            "approved",
            "",
            AccessToken(Secret(evidence["access_token"]), need, evidence["expires_at"]) if need else None,
        )

    def _tokens(
        self,
        needs: Needs,
        place: Place,
        session: Session | None,
        tokens: Mapping[str, Any],
        approved: AccessToken | None,
        now: float,
        lend: bool,
    ) -> tuple[dict[str, AccessToken], tuple[Resource, ...]]:
        broker = self._identity.broker
        opened: dict[str, AccessToken] = {}
        missing: list[Resource] = []
        for parameter, need in needs.tokens.items():
            held = tokens.get(need.key)
            if approved is not None and approved.resource is need:
                opened[parameter] = approved
            elif session is None:
                missing.append(need)
            elif not lend:
                if not broker.serves(place, session, need, held, now):
                    missing.append(need)
            elif (token := broker.open(place, session, need, held, now)) is None:
                missing.append(need)
            else:
                opened[parameter] = token
        return opened, tuple(missing)

    # -- asking ------------------------------------------------------------------------------------------------------

    async def ask(self, config: Mapping[str, Any], examined: Examined) -> Request:
        """Ask the session's person about a call. Runs on the transport's loop.

        What was asked for already is not asked twice: the call is answered by reference to that, and never run (B22).
        """
        assert examined.session and examined.bound and examined.condition and examined.tool  # by StepUp("approval")
        call, need = examined.call, examined.tool.needs.primary
        request = await self.asking.approval(
            self.place(config), examined.session, examined.bound, examined.condition, need, call.arguments
        )
        if (request.message_id, request.tool_call_id) != (call.message_id, call.id):
            await asyncio.to_thread(self._refer, examined, request)
        return request

    def _refer(self, examined: Examined, request: Request) -> None:
        claim = self._claim(examined.call, examined.whose, request)
        if claim.first:
            told = (
                f"The same was asked for before (#{request.short_id}): it is one request and is done once."
                f" Asked for {1 + self._ledger.referred(request)} x."
            )
            self._ledger.finish(self._tenant, claim, Outcome(told, "success"), self._clock())

    # -- running ---------------------------------------------------------------------------------------------------

    def admit(
        self,
        call: OpenCall,
        config: Mapping[str, Any],
        tokens: Mapping[str, Any],
        failures: Mapping[str, Any],
        *,
        asks: bool = False,
    ) -> Examined | ToolMessage:
        """Right before the call: examine it again and claim its effect. A ``ToolMessage`` says why it is not made.

        Args:
            tokens, failures: as for :meth:`examine`; what a failure says can only keep the call from being made.
            asks: the caller can still obtain what is missing. It gets what was examined, with its ``StepUp`` and no claim.

        Raises:
            RefusedError: the thread is somebody else's. That is no answer to this call: it stays the owner's.
        """
        if not self.knows_owner(config):  # examine() looks in any case; this is for the way in which it refuses
            self.check_owner(config)
        try:
            examined = self.examine([call], config, tokens, failures, lend=True)[0]
            match examined.decision:
                case Deny(reason=reason):
                    return answer(call, Outcome(reason, "error"))
                case StepUp():
                    return examined if asks else answer(call, Outcome(_NOT_READY, "error"))
                case Deferred():
                    assert examined.request is not None
                    return answer(call, self._defer(examined.request))
            if examined.claim is not None:
                return answer(call, self._settled(call, self._claim(call, examined.whose), examined.whose))
            assert examined.tool is not None and examined.bound is not None  # by Allow
            if examined.tool.needs.read_only and examined.condition is None and examined.request is None:
                return examined  # with a condition it claims all the same: an approval serves once, whatever it is for
            claim = self._claim(call, examined.whose, examined.request)
            if not claim.first:
                return answer(call, self._settled(call, claim, examined.whose))
        except DeputizeError as error:
            return answer(call, Outcome(str(error), "error"))
        else:
            return replace(examined, claim=claim)

    def _claim(self, call: OpenCall, whose: str, request: Request | None = None) -> Claim:
        return self._ledger.claim(
            tenant=self._tenant,
            message_id=call.message_id,
            tool_call_id=call.id,
            digest=_effect_digest(call, whose),
            request_id=request.id if request else "",
            now=self._clock(),
        )

    @staticmethod
    def _settled(call: OpenCall, claim: Claim, whose: str) -> Outcome:
        """How a call that was started before is answered: from the ledger, never by running it again (casebook E4-E7)."""
        if claim.digest != _effect_digest(call, whose):
            # Attacks: the arguments are edited in the history afterwards, and the outcome is read as theirs; somebody who
            # has seen the ids reads another person's outcome.
            return Outcome("Another call was made under this id, so nothing was done here.", "error")
        if claim.outcome is not None:
            return claim.outcome
        return Outcome(
            f"This was started before and nobody saw its outcome (#{claim.id[:6]}). It was not started again; check at"
            " the service whether it happened.",
            "error",
        )

    @contextmanager
    def bound(self, examined: Examined) -> Iterator[dict[str, Any]]:
        """Lend the call its tokens while the tool runs; yields what the tool is invoked with."""
        assert examined.tool is not None and examined.bound is not None and examined.tokens is not None
        call = examined.call
        lent = Binding(
            needs=examined.tool.needs,
            tokens=dict(examined.tokens),
            idempotency_key=effect_id(self._tenant, call.message_id, call.id),
            secrets=tuple(Secret(token.reveal()) for token in examined.tokens.values()),
            principal=examined.session.principal if examined.session is not None else None,
        )
        reset = binding.set(lent)
        try:
            arguments = examined.tool.spelled(examined.bound.arguments)
            yield {"type": "tool_call", "id": call.known_as, "name": call.name, "args": arguments}
        finally:
            binding.reset(reset)

    def finish(self, examined: Examined, result: ToolMessage) -> ToolMessage:
        """Record what a claimed call came to."""
        if examined.claim is not None:
            content = result.content if isinstance(result.content, str) else json.dumps(result.content, default=str)
            try:
                self._ledger.finish(self._tenant, examined.claim, Outcome(content, result.status), self._clock())
            except StoreError as error:
                # The effect is there, and its outcome goes into the history. The row stays claimed: never run again.
                _log.warning("The outcome of effect %s was not recorded: %s", examined.claim.id[:6], error)
        return result

    # -- people go on talking --------------------------------------------------------------------------------------

    def answer_open(
        self, messages: Sequence[AnyMessage], config: Mapping[str, Any], of: CallsOf | None = None
    ) -> list[AnyMessage]:
        """The history with every call answered once, right behind its ``AIMessage``; what answers no call is left out.

        A call that is open gets its outcome. One that a person is asked about, or has just agreed to, is deferred; any other
        is withdrawn.

        Args:
            of: as for :func:`open_calls`.
        """
        place = self.place(config)
        whose = self._whose(place, self._session(place, config))
        history: list[AnyMessage] = []
        turn: int | None = None
        given: dict[str, ToolMessage] = {}
        rest: list[AnyMessage] = []

        def close() -> None:
            if turn is not None:
                history.append(messages[turn])
                for call in (of or calls_of)(messages, turn):
                    told = given.pop(call.known_as, None)
                    history.append(told or answer(call, self._closed(call, place, whose)))
            history.extend(rest)

        for index, message in enumerate(messages):
            if isinstance(message, AIMessage):
                close()
                turn, given, rest = index, {}, []
            elif isinstance(message, ToolMessage):
                given.setdefault(message.tool_call_id, message)  # of this turn: providers use ids again in later ones
            else:
                rest.append(message)
        close()
        return history

    def _closed(self, call: OpenCall, place: Place, whose: str) -> Outcome:
        """What an open call is answered with, when it cannot stay open."""
        request = self._ledger.of_calls(place, call.message_id).get(call.id)
        if request is not None and self._defers and request.state in ("pending", "approved"):
            if call.id not in self._ledger.effects(self._tenant, call.message_id):
                return self._defer(request)
        elif request is not None and request.state in ("denied", "expired"):
            refused = decide(Facts(needs_approval=True, approval=request.state, approval_reason=request.reason))
            assert isinstance(refused, Deny)
            return self.close(call, Outcome(refused.reason, "error"), whose, request)
        if request is not None:
            self._ledger.decide(request, "withdrawn", now=self._clock())
        withdrawn = "Withdrawn: the conversation went on before this was decided. It was not carried out."
        return self.close(call, Outcome(withdrawn, "error"), whose, request)

    def close(self, call: OpenCall, outcome: Outcome, whose: str, request: Request | None) -> Outcome:
        """Answer a call for good that was not made; what the ledger says instead, if it was.

        With the claim taken the answer stays true: no run that is still going, and no old checkpoint, makes the call later.
        """
        try:
            claim = self._claim(call, whose, request)
        except UsageError:  # its arguments have no digest, so it could never be carried out
            return outcome
        if not claim.first:
            return self._settled(call, claim, whose)
        self._ledger.finish(self._tenant, claim, outcome, self._clock())
        return outcome

    def _defer(self, request: Request) -> Outcome:
        self._ledger.defer(request, self._clock())
        return Outcome(f"Asked for approval (#{request.short_id}). It goes on when that is decided.", "success")

    def deferred(self, config: Mapping[str, Any]) -> list[Request]:
        """What was answered with "asked for approval" on this thread, and whose outcome has not been told since."""
        return self._ledger.deferred(self.place(config)) if self._defers else []

    def told(self, requests: Sequence[Request]) -> None:
        """The outcomes of these requests stand in the conversation."""
        self._ledger.settled(requests, self._clock())

    def deferred_call(self, request: Request) -> OpenCall | None:
        """The call that a request is about, as the model made it; ``None`` if its row was changed meanwhile."""
        try:
            asked = self._ledger.payload(request)
        except SealError as error:
            _log.error("Request %s cannot be gone on with: %s", request.short_id, error)
            return None
        return OpenCall(request.message_id, request.tool_call_id, asked["tool"], asked["given"])

    def settle(self, request: Request, call: OpenCall, answered: ToolMessage, config: Mapping[str, Any]) -> ToolMessage:
        """The last word about a deferred call, which nothing can change any more."""
        if answered.status != "error":
            return answered
        place = self.place(config)
        whose = self._whose(place, self._session(place, config))
        return answer(call, self.close(call, Outcome(str(answered.content), "error"), whose, request))


def _effect_digest(call: OpenCall, whose: str) -> str:
    return digest({"tool": call.name, "arguments": dict(call.arguments), "whose": whose})


def _keyed(needs: Needs) -> list[tuple[str, Resource]]:
    return [(need.key, need) for need in needs.tokens.values()]
