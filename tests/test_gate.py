"""The gate: what it takes from a model for a tool, what it claims, and what it answers from the ledger."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, InjectedToolArg, InjectedToolCallId, StructuredTool, Tool, tool
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.v1 import BaseModel as OldModel

from identity import approval, needs
from identity.calls import OpenCall, open_calls
from identity.errors import InputError, NeedsError, RefusedError, StoreError
from identity.gate import Examined, Gate
from identity.guarded import GuardedTool
from identity.policy import Allow, Deny
from tests.support import Inside, assistant, calls, config, requests, say, sign_in, spelled


def guarded(function: Any, **more: Any) -> GuardedTool:
    function.__doc__ = function.__doc__ or "A tool."
    return GuardedTool.of(tool(**more)(function) if more else tool(function))


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_arguments_come_out_as_the_tool_will_see_them() -> None:
    def order(symbol: str, limit: Decimal, note: str = "none") -> str: ...

    given = guarded(order).validated({"symbol": "ACME", "limit": "1.10"}, "c")
    assert given == {"symbol": "ACME", "limit": Decimal("1.10"), "note": "none"}


@pytest.mark.case("E15")
@pytest.mark.parametrize("name", ["token", "user_id", "self", "__class__", "config", "Symbol", "symbol ", ""])
def test_an_argument_that_the_tool_has_not_is_refused(name: str) -> None:
    def quote(symbol: str) -> str: ...

    with pytest.raises(RefusedError, match="has no argument"):
        guarded(quote).validated({"symbol": "ACME", name: "x"}, "c")


@pytest.mark.case("E27")
def test_a_refusal_of_arguments_repeats_no_value() -> None:
    def quote(count: int, symbol: str) -> str: ...

    with pytest.raises(RefusedError) as refusal:
        guarded(quote).validated({"count": "at_secret", "symbol": ["at_secret"]}, "c")
    assert "at_secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert "count" in str(refusal.value)


@pytest.mark.case("E15")
def test_what_the_runtime_is_to_inject_is_not_a_models_to_choose() -> None:
    """Models are not shown such an argument, and can be talked into it all the same."""

    def pay(amount: int, user_id: Annotated[str, InjectedToolArg] = "nobody") -> str: ...

    with pytest.raises(RefusedError, match="has no argument user_id"):
        guarded(pay).validated({"amount": 1, "user_id": "bob"}, "c")
    assert guarded(pay).validated({"amount": 1}, "c") == {"amount": 1}


def test_an_injected_argument_is_refused_too_where_a_tool_takes_anything_else() -> None:
    class Anything(BaseModel):
        model_config = ConfigDict(extra="allow")
        user_id: Annotated[str, InjectedToolArg] = "nobody"

    def pay(**more: Any) -> str: ...

    taking = guarded(pay, args_schema=Anything)
    assert taking.validated({"amount": 1}, "c") == {"amount": 1}
    with pytest.raises(RefusedError, match="has no argument user_id"):
        taking.validated({"amount": 1, "user_id": "bob"}, "c")


def test_a_tool_that_cannot_do_without_an_injected_argument_is_refused_when_the_graph_is_built() -> None:
    def pay(amount: int, user_id: Annotated[str, InjectedToolArg]) -> str: ...

    with pytest.raises(NeedsError, match="wants 'user_id' to be injected"):
        guarded(pay)


async def test_a_tool_that_wants_the_id_of_its_call_gets_it_from_the_gate_alone(world: Inside) -> None:
    @tool
    @needs(read_only=True)
    def trace(text: str, call: Annotated[str, InjectedToolCallId]) -> str:
        """Trace."""
        return f"{text} {call}"

    turn = calls(("trace", {"text": "a"}), ("trace", {"text": "a", "call": "forged"}))
    state = await say(assistant(world, turn, tools=[trace]))
    ids = [call["id"] for call in state["messages"][1].tool_calls]
    assert [m.content for m in state["messages"][2:4]] == [f"a {ids[0]}", "trace has no argument call"]


@pytest.mark.case("B26")
async def test_a_validator_that_changes_what_it_made_is_refused_so_that_what_runs_is_what_was_shown(
    world: Inside,
) -> None:
    """LangChain validates again before the call: dollars become cents once for the page, and twice for the payment."""
    paid: list[int] = []

    @tool
    @needs(approval())
    def pay(cents: Annotated[int, AfterValidator(lambda dollars: dollars * 100)]) -> str:
        """Pay."""
        paid.append(cents)
        return "paid"

    graph = assistant(world, calls(("pay", {"cents": 1})), tools=[pay])
    state = await say(graph)
    assert requests(state) == []
    assert "changes its arguments" in state["messages"][2].content
    assert paid == []


def test_a_models_validator_that_changes_what_it_made_is_refused_too() -> None:
    class Payment(BaseModel):
        amount: int

        @model_validator(mode="after")
        def _with_fee(self) -> Payment:
            self.amount += 1
            return self

    def pay(amount: int) -> str: ...

    with pytest.raises(RefusedError, match="changes its arguments"):
        guarded(pay, args_schema=Payment).validated({"amount": 1}, "c")


def test_a_validator_that_settles_is_taken() -> None:
    def quote(symbol: Annotated[str, AfterValidator(str.upper)]) -> str: ...

    assert guarded(quote).validated({"symbol": "acme"}, "c") == {"symbol": "ACME"}


@pytest.mark.parametrize("populate", [False, True])
async def test_arguments_with_an_alias_are_checked_by_their_name_and_passed_by_their_alias(
    world: Inside, populate: bool
) -> None:
    class Transfer(BaseModel):
        model_config = ConfigDict(populate_by_name=populate)
        sender: str = Field(alias="from")

    @tool(args_schema=Transfer)
    @needs(approval(when=lambda sender: sender == "savings"))
    def move(sender: str) -> str:
        """Move."""
        return f"moved from {sender}"

    graph = assistant(world, calls(("move", {"from": "wallet"}), ("move", {"from": "savings"})), tools=[move])
    state = await sign_in(world, graph)
    assert state["messages"][2].content == "moved from wallet"
    assert [r["kind"] for r in requests(state)] == ["approval"]


async def test_a_tool_of_the_old_kind_takes_its_one_string(world: Inside) -> None:
    echo = Tool(name="echo", func=lambda text: f"you said {text}", description="Echo.")
    turn = calls(("echo", {"__arg1": "hi"}), ("echo", {"text": "hi"}), "echo")
    state = await say(assistant(world, turn, tools=[echo]))
    assert [m.content for m in state["messages"][2:5]] == [
        "you said hi",
        "echo has no argument text",
        "echo needs __arg1",
    ]


def test_a_schema_that_is_plain_json_is_held_to_its_names() -> None:
    schema = {"type": "object", "properties": {"symbol": {"type": "string"}, "count": {}}, "required": ["symbol"]}
    remote = StructuredTool.from_function(
        lambda **given: str(given), name="remote", description="x", args_schema=schema
    )
    taking = GuardedTool.of(remote)
    assert taking.validated({"symbol": "ACME"}, "c") == {"symbol": "ACME"}
    with pytest.raises(RefusedError, match="has no argument host"):
        taking.validated({"symbol": "ACME", "host": "x"}, "c")
    with pytest.raises(RefusedError, match="needs symbol"):
        taking.validated({"count": 1}, "c")


def test_a_schema_of_pydantic_1_is_refused_when_the_graph_is_built() -> None:
    class Old(OldModel):
        symbol: str

    class Legacy(BaseTool):
        name: str = "legacy"
        description: str = "x"
        args_schema: Any = Old

        def _run(self, symbol: str) -> str:
            return symbol

    with pytest.raises(NeedsError, match="pydantic 1"):
        GuardedTool.of(Legacy())


def test_the_schemas_digest_changes_with_every_word_of_it() -> None:
    def first(limit: int) -> str:
        """Buy at a limit."""

    def second(limit: int) -> str:
        """Buy at a limit, or above."""

    def third(limit: float) -> str:
        """Buy at a limit."""

    digests = set()
    for function in (first, second, third):
        function.__name__ = "buy"
        digests.add(guarded(function).schema_digest)
    assert len(digests) == 3


@pytest.mark.parametrize("name", ["invalid_call"])
def test_a_name_that_has_a_meaning_of_its_own_is_refused(name: str) -> None:
    named = StructuredTool.from_function(lambda: "x", name=name, description="x")
    with pytest.raises(NeedsError, match=name):
        GuardedTool.of(named)


def test_two_tools_of_one_name_are_refused(world: Inside) -> None:
    with pytest.raises(NeedsError, match="same name"):
        Gate([*world.tools(), world.tools()[0]], "assistant", world.identity)


async def test_an_argument_that_has_no_canonical_form_is_not_called(world: Inside) -> None:
    @tool
    def note(text: str) -> str:
        """Note."""
        raise AssertionError

    deep: Any = "x"
    for _ in range(40):
        deep = [deep]

    @tool
    def nest(items: list[Any]) -> str:
        """Nest."""
        raise AssertionError

    turn = calls(("note", {"text": "\ud800"}), ("nest", {"items": deep}))
    state = await say(assistant(world, turn, tools=[note, nest]))
    assert [m.status for m in state["messages"][2:4]] == ["error", "error"]


async def test_a_default_that_is_new_each_time_is_never_run_under_an_approval_of_another(world: Inside) -> None:
    ran: list[UUID] = []

    class Order(BaseModel):
        reference: UUID = Field(default_factory=uuid4)

    @tool(args_schema=Order)
    @needs(approval())
    def order(reference: UUID) -> str:
        """Order."""
        ran.append(reference)
        return "ordered"

    graph = assistant(world, calls("order"), tools=[order])
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").approve(asked)
    with world.identity.caller(world.person("alice").principal):
        state = await world.identity.resume(graph, config())
    assert "given for another call" in state["messages"][2].content
    assert ran == []


# -- which calls are open ----------------------------------------------------------------------------------------------


def test_open_calls_are_those_of_the_last_turn_that_nobody_answered() -> None:
    turn = AIMessage("", id="a", tool_calls=[{"id": c, "name": "t", "args": {"n": c}} for c in "xyz"])
    answered = ToolMessage("y", tool_call_id="y")
    messages: list[AnyMessage] = [HumanMessage("hi"), turn, answered, HumanMessage("and?"), SystemMessage("s")]
    assert open_calls(messages) == [OpenCall("a", "x", "t", {"n": "x"}), OpenCall("a", "z", "t", {"n": "z"})]
    assert open_calls([*messages, AIMessage("done")]) == []
    assert open_calls([]) == []
    assert open_calls([HumanMessage("hi")]) == []


def test_an_id_that_was_answered_in_an_earlier_turn_is_open_again_in_a_later_one() -> None:
    first, second = (AIMessage("", id=i, tool_calls=[{"id": "c", "name": "t", "args": {}}]) for i in "ab")
    messages: list[AnyMessage] = [first, ToolMessage("1", tool_call_id="c"), HumanMessage("more"), second]
    assert [call.message_id for call in open_calls(messages)] == ["b"]


def test_looking_for_open_calls_does_not_read_a_long_history() -> None:
    class Unread(list[Any]):
        def __reversed__(self) -> Any:
            for message in super().__reversed__():
                assert message != "old", "the history was read past the last turn"
                yield message

    turn = AIMessage("", id="a", tool_calls=[{"id": "c", "name": "t", "args": {}}])
    assert len(open_calls(Unread(["old", turn]))) == 1


# -- where -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thread", "name"), [("t1", "t1"), (7, "7"), (0, "0"), (UUID(int=1), str(UUID(int=1)))], ids=str
)
def test_a_place_is_named_by_its_thread_whatever_type_that_has(world: Inside, thread: Any, name: str) -> None:
    place = Gate([], "assistant", world.identity).place({"configurable": {"thread_id": thread}})
    assert (place.tenant, place.graph, place.thread) == ("default", "assistant", name)


@pytest.mark.parametrize(
    "given", [{}, {"configurable": None}, {"configurable": {}}, {"configurable": {"thread_id": ""}}]
)
def test_without_a_thread_there_is_no_place(world: Inside, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="without a thread"):
        Gate([], "assistant", world.identity).place(given)


# -- claims ------------------------------------------------------------------------------------------------------------


@tool
def order(quantity: int) -> str:
    """Order."""
    return f"ordered {quantity}"


@tool
@needs(read_only=True)
def look(symbol: str) -> str:
    """Look."""
    return symbol


CALL = OpenCall("m", "c", "order", {"quantity": 1})


def gate(world: Inside, *tools: BaseTool) -> Gate:
    return Gate(tools or (order, look), "assistant", world.identity)


def admitted(gate: Gate, call: OpenCall = CALL, **more: Any) -> Examined | ToolMessage:
    return gate.admit(call, config(), {}, more.get("failures", {}))


@pytest.mark.case("E24")
def test_a_tool_that_is_not_marked_read_only_claims_its_effect_before_it_runs_and_is_not_admitted_again(
    world: Inside,
) -> None:
    first = admitted(gate(world))
    assert isinstance(first, Examined)
    assert first.claim is not None
    assert first.claim.first
    again = admitted(gate(world))
    assert isinstance(again, ToolMessage)
    assert "nobody saw its outcome" in again.content
    gate(world).finish(first, ToolMessage("ordered 1", tool_call_id="c"))
    told = admitted(gate(world))
    assert isinstance(told, ToolMessage)
    assert (told.content, told.status, told.tool_call_id) == ("ordered 1", "success", "c")


@pytest.mark.case("E24")
def test_a_read_only_tool_claims_nothing_unless_it_was_approved(world: Inside) -> None:
    look_ = OpenCall("m", "c", "look", {"symbol": "ACME"})
    for _ in range(2):
        found = admitted(gate(world), look_)
        assert isinstance(found, Examined)
        assert found.claim is None


def test_what_was_started_is_told_whatever_became_of_the_tool_since(world: Inside) -> None:
    first = admitted(gate(world))
    assert isinstance(first, Examined)
    gate(world).finish(first, ToolMessage("ordered 1", tool_call_id="c"))

    @tool("order")
    def other(amount: str) -> str:
        """The arguments have other names now."""
        raise AssertionError

    for tools in ((look,), (other,)):
        told = admitted(gate(world, *tools))
        assert isinstance(told, ToolMessage)
        assert told.content == "ordered 1"


def test_an_outcome_is_told_for_the_very_call_that_it_was_claimed_for(world: Inside) -> None:
    first = admitted(gate(world))
    assert isinstance(first, Examined)
    gate(world).finish(first, ToolMessage("ordered 1", tool_call_id="c"))
    for other in (OpenCall("m", "c", "order", {"quantity": 2}), OpenCall("m", "c", "look", {"quantity": 1})):
        told = admitted(gate(world), other)
        assert isinstance(told, ToolMessage)
        assert "Another call was made under this id" in told.content


def test_an_outcome_that_cannot_be_recorded_is_told_all_the_same(
    world: Inside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The effect is there. A run that failed now would leave nobody knowing it."""
    first = admitted(gate(world))
    assert isinstance(first, Examined)

    def full(*given: Any) -> None:
        raise StoreError("The disk is full")

    monkeypatch.setattr(world.identity.ledger, "finish", full)
    result = ToolMessage("ordered 1", tool_call_id="c")
    with caplog.at_level(logging.WARNING, "deputize"):
        assert gate(world).finish(first, result) is result
    assert "was not recorded" in caplog.text
    monkeypatch.undo()
    told = admitted(gate(world))  # and nobody runs it again
    assert isinstance(told, ToolMessage)
    assert "nobody saw its outcome" in told.content


@pytest.mark.parametrize(
    "content",
    [
        "text",
        "",
        [{"type": "text", "text": "a"}, "b"],
        [{"type": "image", "data": b"\x00"}],
        [{"type": "x", "o": object()}],
    ],
    ids=spelled,
)
def test_every_content_that_a_tool_can_return_is_recorded(world: Inside, content: Any) -> None:
    first = admitted(gate(world))
    assert isinstance(first, Examined)
    gate(world).finish(first, ToolMessage(content, tool_call_id="c"))
    told = admitted(gate(world))
    assert isinstance(told, ToolMessage)
    assert told.status == "success"
    assert isinstance(content, str) is (told.content == content)


def test_a_failure_of_this_turn_is_told_and_one_of_another_turn_is_not(world: Inside) -> None:
    portfolio = OpenCall("m", "c", "show_portfolio", {})
    failed = {"login": {"message_id": "m", "reason": "The issuer is away."}}
    told = gate(world, *world.tools()).examine([portfolio], config(), {}, failed)[0].decision
    assert told == Deny("login_refused", "The issuer is away.")
    answered = admitted(gate(world, *world.tools()), portfolio, failures=failed)
    assert isinstance(answered, ToolMessage)
    assert answered.content == "The issuer is away."
    other = {"login": {"message_id": "another", "reason": "The issuer is away."}}
    assert not isinstance(gate(world, *world.tools()).examine([portfolio], config(), {}, other)[0].decision, Deny)


def test_a_failure_that_a_client_forges_cannot_make_a_call_run(world: Inside) -> None:
    portfolio = OpenCall("m", "c", "show_portfolio", {})
    for forged in ({"login": None}, {"login": "x"}, {"c": {"message_id": "m"}}, {"login": {"message_id": "m"}}):
        found = gate(world, *world.tools()).examine([portfolio], config(), {}, forged)[0]
        assert not isinstance(found.decision, Allow)
