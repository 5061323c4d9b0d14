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
from langchain_core.tools import BaseTool, InjectedToolCallId, Tool
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .access import AccessToken
from .asking import Asking, Call, binding_digest
from .broker import SignInAgainError
from .canonical import digest
from .errors import DeputizeError, InputError, NeedsError, RefusedError, SealError, StoreError, UsageError
from .ledger import Claim, Ledger, Outcome, Request, effect_id
from .needs import Approval, Binding, Needs, Resource, binding, needs_of
from .policy import Decision, Deny, Facts, StepUp, decide
from .principal import Caller
from .secret import Secret
from .sessions import Place, Session
from .text import printable

if TYPE_CHECKING:
    from .identity import Identity

__all__ = ["INVALID_CALL", "Examined", "Gate", "GuardedTool", "OpenCall", "open_calls"]

_log = logging.getLogger("deputize")

INVALID_CALL = "invalid_call"
"""What a call is named whose arguments were no JSON. Providers want an answer to it too; no tool may be called this."""


@dataclass(frozen=True, slots=True)
class GuardedTool:
    """A tool with what it declares, a digest of its arguments' schema, and the names that a model may use.

    Args:
        names: the arguments that a model may give; ``None``: any but the injected ones.
        injected: arguments that are the runtime's to give.
        call_id: those of them in which LangChain puts the id of the call.
    """

    tool: BaseTool
    needs: Needs
    schema_digest: str
    names: frozenset[str] | None
    injected: frozenset[str] = frozenset()
    call_id: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tool: BaseTool) -> GuardedTool:
        """
        Raises:
            NeedsError: the tool cannot be called through a gate.
        """
        if tool.name == INVALID_CALL:
            raise NeedsError(f"A tool is called {INVALID_CALL!r}", "Give it another name; this one has a meaning here")
        schema = _schema(tool)
        if isinstance(schema, dict):
            of_schema = digest({"name": tool.name, "schema": schema})
            return cls(tool, needs_of(tool), of_schema, frozenset(schema.get("properties", {})))
        injected = _injected(tool, schema)
        call_id = _call_id(tool, schema, injected)
        of_schema = digest({"name": tool.name, "schema": schema.model_json_schema()})
        names = frozenset(_spelling(n, f) for n, f in schema.model_fields.items() if n not in injected)
        anything = schema.model_config.get("extra") == "allow"
        return cls(tool, needs_of(tool), of_schema, None if anything else names, injected, call_id)

    def validated(self, arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
        """The arguments as the tool will see them.

        Raises:
            RefusedError: unknown names or values that do not fit. Values are not repeated: they may be anything.
        """
        if unknown := (set(arguments) & self.injected if self.names is None else set(arguments) - self.names):
            # A token, a user id or a host that a model was talked into passing has no parameter to land in, and one that
            # the runtime is to inject is not a model's to choose (E15).
            raise RefusedError(f"{self.tool.name} has no argument {', '.join(sorted(map(str, unknown)))}")
        schema = _schema(self.tool)
        if isinstance(schema, dict):
            if missing := set(schema.get("required", ())) - set(arguments):
                raise RefusedError(f"{self.tool.name} needs {', '.join(sorted(missing))}")
            return dict(arguments)
        values = self._validated(schema, arguments, call_id)
        if self._validated(schema, self.spelled(values), call_id) != values:
            # LangChain validates again. A validator that adds a fee, or turns dollars into cents, would do it twice, and
            # what runs would not be what was shown (B26).
            raise RefusedError(
                f"{self.tool.name} changes its arguments each time that they are validated",
                "Let its validators leave alone what they have made",
            )
        return values

    def _validated(self, schema: type[BaseModel], arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
        try:
            model = schema.model_validate({**arguments, **dict.fromkeys(self.call_id, call_id)})
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RefusedError(f"{self.tool.name}: {where}: {first['msg']}") from None
        values = {name: getattr(model, name) for name in type(model).model_fields if name not in self.injected}
        return values | (model.model_extra or {})

    def spelled(self, validated: Mapping[str, Any]) -> dict[str, Any]:
        """Validated arguments as the tool is invoked with them: by alias, where it has some."""
        schema = _schema(self.tool)
        fields = {} if isinstance(schema, dict) else schema.model_fields
        return {_spelling(n, fields[n]) if n in fields else n: value for n, value in validated.items()}


def _schema(tool: BaseTool) -> type[BaseModel] | dict[str, Any]:
    if isinstance(tool.args_schema, dict):
        return tool.args_schema
    if isinstance(tool, Tool) and tool.args_schema is None:  # of the old kind: one string, which models call this
        return {"type": "object", "properties": {"__arg1": {"type": "string"}}, "required": ["__arg1"]}
    model = tool.get_input_schema()
    if not issubclass(model, BaseModel):
        raise NeedsError(f"{tool.name} has a schema of pydantic 1", "Write its arguments with pydantic 2")
    return model


def _spelling(name: str, field: FieldInfo) -> str:
    return field.validation_alias if isinstance(field.validation_alias, str) else name


def _injected(tool: BaseTool, schema: type[BaseModel]) -> frozenset[str]:
    shown: Mapping[str, Any] = getattr(tool.tool_call_schema, "model_fields", {})
    return frozenset(schema.model_fields) - frozenset(shown)


def _call_id(tool: BaseTool, schema: type[BaseModel], injected: frozenset[str]) -> frozenset[str]:
    found = set()
    for name in injected:
        field = schema.model_fields[name]
        if any(m is InjectedToolCallId or isinstance(m, InjectedToolCallId) for m in field.metadata):
            found.add(name)
        elif field.is_required():
            raise NeedsError(
                f"{tool.name} wants {name!r} to be injected, which the gate does not do",
                "Give it a default, or bind it when the tool is made",
            )
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A tool call that the model made and nobody has answered."""

    message_id: str
    id: str
    name: str
    arguments: Mapping[str, Any]


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

    @property
    def waits(self) -> bool:
        """Whether a person's decision is all that this call waits for."""
        return (
            isinstance(self.decision, StepUp)
            and self.decision.what in ("login", "approval")
            and self.request is not None
            and self.request.state == "pending"
        )


class Gate:
    """One graph's gate.

    Args:
        graph: the graph's name; sessions and seals name it, so that no other graph can use them (casebook E20).
        identity: the deployment whose database, issuer and clock count.
    """

    def __init__(self, tools: Sequence[BaseTool], graph: str, identity: Identity) -> None:
        self.tools = {tool.name: GuardedTool.of(tool) for tool in tools}
        if len(self.tools) != len(tools):
            raise NeedsError("Two tools have the same name", "Give each tool a name of its own")
        self.graph = graph
        self.scopes = sorted({s for t in self.tools.values() for need in t.needs.tokens.values() for s in need.scopes})
        self._identity = identity
        self._tenant = identity.settings.tenant

    @property
    def asking(self) -> Asking:
        """Where logins and approvals are asked for."""
        return self._identity.asking

    @property
    def _ledger(self) -> Ledger:
        return self._identity.ledger

    def caller(self) -> Caller | None:
        """For whom this run is."""
        return self._identity.current_caller()

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

    def check_owner(self, config: Mapping[str, Any]) -> None:
        """Refuse a run of anybody but the one whom this thread belongs to (casebook E13).

        The whole run, not only its guarded calls: the history that the model would be shown is somebody's.
        """
        self._session(self.place(config))

    def _session(self, place: Place) -> Session | None:
        session = self._identity.sessions.of(place)
        if session is not None:
            session.require(self.caller())
        return session

    async def token(self, place: Place, session: Session, need: Resource) -> dict[str, Any]:
        """A token for graph state; a session whose grant is spent ends, so that the next look asks for a sign-in."""
        try:
            return await self._identity.broker.token(place, session, need)
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
    ) -> list[Examined]:
        """What is to be done about each of one turn's open calls, from what the database says now.

        Args:
            tokens: graph state's sealed tokens by :attr:`identity.needs.Resource.key`.
            failures: what could not be had in this turn: ``{key: {"message_id": …, "reason": …}}``.
        """
        if not calls:
            return []
        place, now, message_id = self.place(config), self._clock(), calls[0].message_id
        session = self._session(place)
        if session is not None and not session.live(now):
            session = None
        requests = self._ledger.of_calls(self._tenant, message_id)
        effects = self._ledger.effects(self._tenant, message_id)
        told = {
            k: str(v.get("reason", ""))
            for k, v in failures.items()
            if isinstance(v, Mapping) and v.get("message_id") == message_id
        }
        login = self._login_state(place, message_id) if session is None else (None, "")
        return [
            self._examine(call, place, now, session, requests.get(call.id), effects.get(call.id), login, tokens, told)
            for call in calls
        ]

    def _login_state(self, place: Place, message_id: str) -> tuple[Request | None, str]:
        caller = self.caller()
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
            digest(dict(arguments))  # what cannot be digested cannot be bound, so it is not called
        except DeputizeError as error:
            return Examined(call, decide(Facts(problem=str(error))), tool)
        pending_login, login_refused = login
        approval, reason, evidence = "none", "", None
        if condition is not None and session is not None and request is not None:
            approval, reason, evidence = self._approval(request, bound, place, session, tool.needs, now)
        opened, missing = self._tokens(tool.needs, place, session, tokens, evidence, now)
        failed = next((failures[need.key] for need in missing if need.key in failures), "") or failures.get(call.id, "")
        decision = decide(
            Facts(
                needs_user=tool.needs.user,
                session="live" if session else "none",
                login_refused=login_refused or failures.get("login", ""),
                needs_approval=condition is not None,
                approval=approval,  # type: ignore[arg-type]
                approval_reason=reason,
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
    ) -> tuple[dict[str, AccessToken], tuple[Resource, ...]]:
        opened: dict[str, AccessToken] = {}
        missing: list[Resource] = []
        for parameter, need in needs.tokens.items():
            if approved is not None and approved.resource is need:
                opened[parameter] = approved
                continue
            token = self._identity.broker.open(place, session, need, tokens.get(need.key), now) if session else None
            if token is None:
                missing.append(need)
            else:
                opened[parameter] = token
        return opened, tuple(missing)

    # -- running ---------------------------------------------------------------------------------------------------

    def admit(
        self, call: OpenCall, config: Mapping[str, Any], tokens: Mapping[str, Any], failures: Mapping[str, Any]
    ) -> Examined | ToolMessage:
        """Right before the call: examine it again and claim its effect. A ``ToolMessage`` says why it is not made.

        Args:
            tokens, failures: as for :meth:`examine`; what a failure says can only keep the call from being made.

        Raises:
            RefusedError: the thread is somebody else's. That is no answer to this call: it stays the owner's.
        """
        self.check_owner(config)
        try:
            examined = self.examine([call], config, tokens, failures)[0]
            match examined.decision:
                case Deny(reason=reason):
                    return answer(call, Outcome(reason, "error"))
                case StepUp():
                    return answer(call, Outcome("The call is not ready any more. Ask again.", "error"))
            if examined.claim is not None:
                return answer(call, self._settled(call, self._claim(call)))
            assert examined.tool is not None and examined.bound is not None  # by Allow
            if examined.tool.needs.read_only and examined.condition is None:
                return examined  # with a condition it claims all the same: an approval serves once, whatever it is for
            claim = self._claim(call, examined.request)
            if not claim.first:
                return answer(call, self._settled(call, claim))
        except DeputizeError as error:
            return answer(call, Outcome(str(error), "error"))
        else:
            return replace(examined, claim=claim)

    def _claim(self, call: OpenCall, request: Request | None = None) -> Claim:
        return self._ledger.claim(
            tenant=self._tenant,
            message_id=call.message_id,
            tool_call_id=call.id,
            digest=_effect_digest(call),
            request_id=request.id if request else "",
            now=self._clock(),
        )

    @staticmethod
    def _settled(call: OpenCall, claim: Claim) -> Outcome:
        """How a call that was started before is answered: from the ledger, never by running it again (casebook E4-E7)."""
        if claim.digest != _effect_digest(call):
            # Attack: the arguments are edited in the history afterwards, and the outcome is read as theirs.
            return Outcome("Another call was made under this id. This one was not carried out.", "error")
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
        )
        reset = binding.set(lent)
        try:
            arguments = examined.tool.spelled(examined.bound.arguments)
            yield {"type": "tool_call", "id": call.id, "name": call.name, "args": arguments}
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

    def answer_open(self, messages: Sequence[AnyMessage], config: Mapping[str, Any]) -> list[AnyMessage]:
        """The history with every call answered once, right behind its ``AIMessage``; what answers no call is left out.

        A call that is open gets its outcome, or is withdrawn.
        """
        self.check_owner(config)
        history: list[AnyMessage] = []
        turn: AIMessage | None = None
        given: dict[str, ToolMessage] = {}
        rest: list[AnyMessage] = []

        def close() -> None:
            if turn is not None:
                history.append(turn)
                history.extend(given.get(c.id) or answer(c, self._withdraw(c)) for c in _calls(turn))
            history.extend(rest)

        for message in messages:
            if isinstance(message, AIMessage):
                close()
                turn, given, rest = message, {}, []
            elif isinstance(message, ToolMessage):
                given.setdefault(message.tool_call_id, message)  # of this turn: providers use ids again in later ones
            else:
                rest.append(message)
        close()
        return history

    def _withdraw(self, call: OpenCall) -> Outcome:
        request = self._ledger.of_calls(self._tenant, call.message_id).get(call.id)
        if request is not None:
            self._ledger.decide(request, "withdrawn", now=self._clock())
        withdrawn = Outcome(
            "Withdrawn: the conversation went on before this was decided. It was not carried out.", "error"
        )
        try:
            claim = self._claim(call, request)
        except UsageError:  # its arguments have no digest, so it could never be carried out
            return withdrawn
        if not claim.first:
            return self._settled(call, claim)
        # With the claim taken this stays true: no run that is still going, and no old checkpoint, carries it out later.
        self._ledger.finish(self._tenant, claim, withdrawn, self._clock())
        return withdrawn


def _effect_digest(call: OpenCall) -> str:
    return digest({"tool": call.name, "arguments": dict(call.arguments)})


def answer(call: OpenCall, outcome: Outcome) -> ToolMessage:
    """An outcome as the call's ``ToolMessage``."""
    return ToolMessage(outcome.content, name=call.name, tool_call_id=call.id, status=outcome.status)


def open_calls(messages: Sequence[AnyMessage]) -> list[OpenCall]:
    """The unanswered calls of the last turn. Looks back as far as that turn only, however long the history is."""
    answered: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return [call for call in _calls(message) if call.id not in answered]
    return []


def _calls(message: AIMessage) -> list[OpenCall]:
    return [OpenCall(message.id or "", c["id"] or "", c["name"], c["args"]) for c in message.tool_calls]
