"""``@needs``: what a tool declares, who is asked, and where its tokens can and cannot be seen."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import StrEnum
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from langchain_core.messages import ToolMessage
from langchain_core.tools import StructuredTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, ValidationError

from identity import may, signed_in
from identity.access import AccessToken
from identity.errors import GateError, NeedsError
from identity.needs import (
    NOTHING,
    Approval,
    Binding,
    approval,
    binding,
    idempotency_key,
    needs,
    needs_of,
    origin_of,
    resource,
)
from identity.secret import Secret
from tests.support import Clock, spelled

VALUE = "at-that-nobody-may-see"
API = resource("https://trading.example", "orders:write")


@contextlib.contextmanager
def gate(target: object, **tokens: Any) -> Iterator[Binding]:
    """As the gate does around one call: lend ``target`` its tokens."""
    declared = needs_of(target)
    lent = tokens or {name: AccessToken(Secret(VALUE), need, Clock()() + 300) for name, need in declared.tokens.items()}
    bound = Binding(declared, lent, "effect-1", tuple(Secret(each.reveal()) for each in lent.values()))
    reset = binding.set(bound)
    try:
        yield bound
    finally:
        binding.reset(reset)


def bound(*secrets: str) -> Binding:
    return Binding(NOTHING, {}, "effect-1", tuple(Secret(secret) for secret in secrets or (VALUE,)))


# -- resources -----------------------------------------------------------------------------------------------------------


def test_a_resource_is_an_audience_with_sorted_scopes_and_one_origin() -> None:
    found = resource("https://Trading.example/v1?x=1", "b", "a", "b")
    assert (found.audience, found.scopes, found.scope) == ("https://Trading.example/v1?x=1", ("a", "b"), "a b")
    assert found.key == "https://Trading.example/v1?x=1 a b"
    assert found.origins == ("https://trading.example:443",)


def test_an_audience_that_is_no_url_says_where_its_token_may_go() -> None:
    found = resource("api://orders", "a", hosts=["https://a.example/v1", "https://b.example:8443"])
    assert found.origins == ("https://a.example:443", "https://b.example:8443")
    assert resource("urn:example:orders", hosts=["https://a.example"]).origins == ("https://a.example:443",)


@pytest.mark.parametrize(
    ("audience", "hosts"),
    [
        ("", None),
        ("trading.example", None),
        ("/trading", None),
        ("//trading.example", None),
        ("https://trading.example#top", None),
        ("https://trading.example#", None),
        ("https://trading.example/a b", None),
        ("https://trading.example/a\tb", None),
        ("https://trading.example/\x00", None),
        ("https://b\u00fccher.example", None),
        ("https://ban\u212a.example", None),
        ("https://[::1", None),
        ("https://[nonsense]", None),
        ("https://", None),
        ("https://user@trading.example", None),
        ("https://trading.example:99999", None),
        ("https://trading.example", ["https://trading.example"]),
        ("https://trading.example", []),
        ("api://orders", None),
        ("api://orders", []),
        ("api://orders", ["a.example"]),
        ("api://orders", ["ftp://a.example"]),
        ("api://orders", ["https://a.example", "https://user:password@b.example"]),
    ],
)
def test_an_audience_that_cannot_be_asked_for_or_sent_to_is_refused(audience: str, hosts: Any) -> None:
    with pytest.raises(NeedsError):
        resource(audience, "orders:write", hosts=hosts)


@pytest.mark.parametrize("scope", ["", " ", "a b", "a\tb", 'a"', "a\\b", "ä", "a\n", "a\x7f", "\u200b"])
def test_what_is_not_one_scope_is_refused(scope: str) -> None:
    with pytest.raises(NeedsError, match="is not one scope"):
        resource("https://trading.example", "orders:write", scope)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://a.example", "https://a.example:443"),
        ("HTTPS://A.Example:443/x", "https://a.example:443"),
        ("https://a.example:", "https://a.example:443"),
        ("http://a.example", "http://a.example:80"),
        ("http://127.0.0.1:2024/x", "http://127.0.0.1:2024"),
        ("https://[2001:DB8::1]/x", "https://[2001:db8::1]:443"),
        ("https://[fe80::1%25eth0]:8443/", "https://[fe80::1%25eth0]:8443"),
        ("https://a.example./", "https://a.example.:443"),  # another host, as far as an origin goes
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example:443"),
    ],
)
def test_an_origin_is_lower_case_with_its_port(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.case("C9", "E28")
@pytest.mark.parametrize(
    "url",
    [
        "https://trading.example\\@evil.example",
        "https://evil.example\\.trading.example",
        "https:\\\\trading.example",
        "https://trading.example@evil.example",
        "https://@trading.example",
        "https://:@trading.example",
        " https://trading.example",
        "https://tra\nding.example",
        "https://trading.example\t",
        "https://trading.example\r\n",
        "https://trad\u200bing.example",
        "https://tr\u0430ding.example",
        "https://tradin\uff47.example",
        "https://trading\u3002example",
        "https://trading.example:0",
        "https://trading.example:+443",
        "https://trading.example:443a",
        "https://[::1]evil.example",
        "https://[::1",
        "https://]",
        "https:trading.example",
        "https:///trading.example",
        "javascript://trading.example/%0aalert(1)",
        "ws://trading.example",
        "",
    ],
    ids=ascii,
)
def test_a_url_in_which_two_readers_could_see_two_hosts_has_no_origin(url: str) -> None:
    with pytest.raises(NeedsError, match="has no origin"):
        origin_of(url)


# -- conditions: a doubt asks (B21) --------------------------------------------------------------------------------------


LARGE = approval(when=lambda quantity, limit: quantity * limit > 1_000)


@pytest.mark.parametrize(
    ("quantity", "limit", "asks"),
    [
        (5, Decimal(100), False),
        (10, Decimal(100), False),
        (11, Decimal(100), True),
        (10, Decimal("100.01"), True),
        (0, Decimal(100), False),
        (2.5, 100, False),
    ],
)
def test_a_condition_asks_for_what_it_says(quantity: Any, limit: Any, asks: bool) -> None:
    assert LARGE.asks({"quantity": quantity, "limit": limit, "symbol": "ACME"}) is asks


def test_an_approval_without_a_condition_always_asks() -> None:
    assert approval().asks({}) is True


class Line(BaseModel):
    quantity: Decimal = Field(default=Decimal(1), allow_inf_nan=True)


@dataclasses.dataclass
class Position:
    quantity: float


ODD_NUMBERS: list[Any] = [
    float("nan"),
    float("inf"),
    float("-inf"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    Decimal("-0.01"),
    -1,
    -0.01,
    -(10**400),
]


@pytest.mark.case("B21")
@pytest.mark.parametrize("odd", ODD_NUMBERS, ids=lambda odd: repr(odd)[:20])
def test_a_number_that_a_comparison_would_wave_through_asks(odd: Any) -> None:
    never = approval(when=lambda value: False)
    assert never.asks({"value": odd})
    for inside in ([1, odd], (odd,), {"a": {"b": odd}}, {"a": [[odd]]}, deque([odd]), Position(odd)):
        assert never.asks({"value": inside}), inside
    if isinstance(odd, Decimal) and not odd.is_snan():
        assert never.asks({"value": Line(quantity=odd)})
        assert never.asks({"value": [Line(quantity=odd)]})


@pytest.mark.case("B21")
def test_a_negative_number_does_not_make_a_large_order_small() -> None:
    assert LARGE.asks({"quantity": -100, "limit": Decimal(100)})
    assert LARGE.asks({"quantity": 100, "limit": Decimal("NaN")})


def test_ordinary_values_ask_nothing_by_themselves() -> None:
    never = approval(when=lambda value: False)
    for value in (
        0,
        10**400,
        1.5,
        Decimal("1E+5"),
        -0.0,
        True,
        None,
        "-5",
        b"-5",
        "NaN",
        [1],
        Line(),
        Position(1),
        {"a": "-1"},
    ):
        assert never.asks({"value": value}) is False, value


@pytest.mark.case("B21")
@pytest.mark.parametrize(
    "returned", [True, 1, 0, "yes", "", "False", None, [], {}, 0.0, Decimal(0), object()], ids=spelled
)
def test_anything_but_the_false_of_python_asks(returned: Any) -> None:
    assert approval(when=lambda: returned).asks({}) is True


@pytest.mark.case("B21")
@pytest.mark.parametrize("error", [ValueError, KeyError, ZeroDivisionError, RecursionError, StopIteration, NeedsError])
def test_a_condition_that_fails_asks(error: type[Exception]) -> None:
    def when(quantity: int) -> bool:
        raise error("boom")

    assert approval(when=when).asks({"quantity": 1}) is True


@pytest.mark.case("B21")
def test_a_condition_about_an_argument_that_is_not_there_asks() -> None:
    assert LARGE.asks({"quantity": 1}) is True
    assert LARGE.asks({}) is True


@pytest.mark.case("B21")
def test_arguments_nested_deeper_than_anyone_looks_ask() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert approval(when=lambda value: False).asks({"value": deep}) is True


@pytest.mark.case("B21")
@given(st.integers() | st.floats() | st.decimals(), st.integers() | st.floats() | st.decimals())
def test_no_pair_of_numbers_passes_as_small_when_it_is_not(quantity: Any, limit: Any) -> None:
    if LARGE.asks({"quantity": quantity, "limit": limit}):
        return
    assert quantity >= 0
    assert limit >= 0
    assert quantity * limit <= 1_000


async def _later(quantity: int) -> bool:
    return False


@pytest.mark.parametrize(
    "when",
    [
        lambda *args: False,
        lambda **named: False,
        lambda quantity, /: False,
        lambda quantity, *more: False,
        _later,
        "quantity > 5",
        5,
        dict,
    ],
)
def test_a_condition_that_cannot_be_asked_by_name_is_refused_where_it_is_written(when: Any) -> None:
    with pytest.raises(NeedsError, match=r"approval\(when=…\)"):
        approval(when=when)


@pytest.mark.parametrize("kind", ["", "stock\norder", "a\x1b[1m"])
def test_an_approval_needs_a_type_that_can_be_shown(kind: str) -> None:
    with pytest.raises(NeedsError, match="needs a name"):
        approval(type=kind)


# -- declaring -----------------------------------------------------------------------------------------------------------


def test_needs_stack_into_one_declaration() -> None:
    other = resource("https://calendar.example", "read")
    second = approval(type="second")

    @needs(LARGE, token=API)
    @needs(second, calendar=other, read_only=True)
    def buy(quantity: int, limit: Decimal, token: AccessToken, calendar: AccessToken) -> str:
        """Buy."""
        return f"{token!r} {calendar!r}"

    declared = needs_of(buy)
    assert declared.approvals == (LARGE, second)
    assert dict(declared.tokens) == {"token": API, "calendar": other}
    assert (declared.read_only, declared.user, declared.primary) == (True, True, API)
    assert list(inspect.signature(buy).parameters) == ["quantity", "limit"]
    with gate(buy):
        told = buy(quantity=1, limit=Decimal(1))
    assert told == f"AccessToken({API.audience!r}, ***) AccessToken({other.audience!r}, ***)"


def test_the_first_condition_that_asks_is_the_one() -> None:
    small, large = approval(when=lambda quantity: quantity < 5), approval(when=lambda quantity: quantity > 10)

    @needs(small, large)
    def buy(quantity: int) -> None: ...

    assert needs_of(buy).approval_for({"quantity": 1}) is small
    assert needs_of(buy).approval_for({"quantity": 11}) is large
    assert needs_of(buy).approval_for({"quantity": 7}) is None


def test_conditions_of_all_kinds_stack_and_each_needs_a_user() -> None:
    buying, always = may("can_buy", "instrument:{symbol}"), approval()

    @needs(may("can_trade", "desk:equities"), signed_in(), always, read_only=True)
    @needs(buying)
    def buy(symbol: str) -> None: ...

    declared = needs_of(buy)
    assert [condition.relation for condition in declared.relations] == ["can_trade", "can_buy"]
    assert (declared.approvals, declared.signed_in, declared.read_only) == ((always,), True, True)
    for condition in (buying, always, signed_in()):

        @needs(condition)
        def one(symbol: str) -> None: ...

        assert needs_of(one).user
        assert dict(needs_of(one).tokens) == {}


async def test_an_existing_tool_is_given_relations_too_and_its_own_schema_names_them() -> None:
    existing = StructuredTool.from_function(
        lambda **arguments: "bought",
        name="buy",
        description="Buy.",
        args_schema={"type": "object", "properties": {"symbol": {"type": "string"}}},
    )
    wrapped = needs(may("can_buy", "instrument:{symbol}"))(existing)
    (condition,) = needs_of(wrapped).relations
    assert condition.objects({"symbol": "ACME"}) == ("instrument:ACME",)
    assert needs_of(existing) is NOTHING


def test_a_tool_that_declares_nothing_needs_nobody_and_is_not_read_only() -> None:
    @tool
    def plain(symbol: str) -> str:
        """Plain."""
        return symbol

    assert needs_of(plain) is NOTHING
    assert (NOTHING.user, NOTHING.read_only, NOTHING.primary, NOTHING.approval_for({})) == (False, False, None, None)


def no_token(symbol: str) -> None: ...


def only_positional(token: AccessToken, /, symbol: str) -> None: ...


def takes(symbol: str, token: AccessToken) -> None: ...


@pytest.mark.parametrize(
    ("declared", "function", "why"),
    [
        (lambda: needs(token=API), no_token, "no parameter 'token'"),
        (lambda: needs(token=API), only_positional, "no parameter 'token'"),
        (lambda: needs(LARGE), no_token, "looks at 'quantity'"),
        (lambda: needs(approval(when=lambda token: True), token=API), takes, "looks at 'token'"),
        (lambda: needs(approval(when=lambda sybmol: True)), no_token, "no_token.. has: symbol"),
        (lambda: needs(may("can_buy", "instrument:{sybmol}")), no_token, r"may\(…\) of no_token.. looks at 'sybmol'"),
        (lambda: needs(may("can_buy", lambda sybmol: "x:y")), no_token, "no_token.. has: symbol"),
        (lambda: needs(may("can_buy", "instrument:{token}"), token=API), takes, "looks at 'token'"),
        (lambda: needs("yes"), no_token, "takes conditions"),  # type: ignore[arg-type]
        (lambda: needs(token="https://trading.example"), takes, "takes a resource"),  # type: ignore[arg-type]
        (lambda: needs(token=API), "takes", "goes around a function or a tool"),
        (lambda: needs(token=API), object(), "goes around a function or a tool"),
    ],
)
def test_a_declaration_that_does_not_fit_the_tool_is_refused_where_it_is_written(
    declared: Callable[[], Any], function: Any, why: str
) -> None:
    with pytest.raises(NeedsError, match=why):
        declared()(function)


def test_a_token_parameter_is_declared_once() -> None:
    with pytest.raises(NeedsError, match="'token' is declared twice"):
        needs(token=API)(needs(token=API)(takes))


@pytest.mark.parametrize(
    "schema", [None, {"type": "object", "properties": {"symbol": {"type": "string"}, "token": {"type": "string"}}}]
)
@pytest.mark.case("E27")
def test_an_existing_tool_whose_model_would_see_the_token_parameter_is_refused(schema: Any) -> None:
    def buy(symbol: str, token: str) -> str:
        """Buy."""
        return symbol

    more = {} if schema is None else {"args_schema": schema}
    existing = StructuredTool.from_function(buy, **more)
    with pytest.raises(NeedsError, match="already takes token"):
        needs(token=API)(existing)


async def test_an_existing_tool_is_wrapped_with_both_its_functions() -> None:
    def sell(quantity: int) -> str:
        """Sell."""
        return f"sold {quantity}"

    async def asell(quantity: int) -> str:
        return f"asold {quantity}"

    existing = StructuredTool.from_function(sell, asell)
    guarded = needs(approval(when=lambda quantity: quantity > 5))(existing)
    assert needs_of(existing) is NOTHING
    with pytest.raises(GateError):
        guarded.invoke({"quantity": 1})
    with pytest.raises(GateError):
        await guarded.ainvoke({"quantity": 1})
    with gate(guarded):
        assert guarded.invoke({"quantity": 1}) == "sold 1"
        assert await guarded.ainvoke({"quantity": 2}) == "asold 2"


# -- token parameters are no tool arguments (E27) ------------------------------------------------------------------------


@tool
@needs(LARGE, token=API)
def buy_stock(symbol: str, quantity: int, limit: Decimal, token: AccessToken) -> str:
    """Buy shares."""
    return f"{symbol} with {token.reveal()[:2]}… under {idempotency_key()}"


@tool
@needs(LARGE, token=API)
async def abuy_stock(symbol: str, quantity: int, limit: Decimal, token: AccessToken) -> str:
    """Buy shares."""
    return f"{symbol} with {token.reveal()[:2]}… under {idempotency_key()}"


GOOD = {"symbol": "ACME", "quantity": 5, "limit": "10"}
BOTH = pytest.mark.parametrize("stock", [buy_stock, abuy_stock], ids=["sync", "async"])


async def called(stock: Any, arguments: dict[str, Any]) -> Any:
    return await stock.ainvoke(arguments) if stock is abuy_stock else stock.invoke(arguments)


async def directly(stock: Any, arguments: dict[str, Any]) -> Any:
    """Around LangChain: the tool's function itself."""
    return await stock.coroutine(**arguments) if stock is abuy_stock else stock.func(**arguments)


@pytest.mark.case("E27")
@BOTH
def test_a_token_parameter_is_in_no_schema_that_a_model_or_a_trace_sees(stock: Any) -> None:
    assert set(stock.args) == {"symbol", "quantity", "limit"}
    seen = [
        stock.args_schema.model_json_schema(),
        stock.tool_call_schema.model_json_schema(),
        stock.get_input_schema().model_json_schema(),
        convert_to_openai_tool(stock),
    ]
    assert "token" not in json.dumps(seen).lower()
    function = stock.func or stock.coroutine
    assert "token" not in inspect.signature(function).parameters
    assert "token" not in function.__annotations__


@pytest.mark.case("E27")
@BOTH
async def test_the_gate_lends_the_token_beside_the_arguments(stock: Any) -> None:
    with gate(stock):
        assert await called(stock, GOOD) == "ACME with at… under effect-1"


@pytest.mark.case("E27")
@BOTH
@pytest.mark.parametrize(
    "arguments", [{**GOOD, "quantity": "many"}, {"symbol": "ACME"}, {**GOOD, "limit": [VALUE[:4]]}]
)
async def test_no_validation_error_prints_the_token(stock: Any, arguments: dict[str, Any]) -> None:
    with gate(stock), pytest.raises(ValidationError) as refused:
        await called(stock, arguments)
    assert VALUE not in f"{refused.value} {refused.value!r} {refused.value.errors()}"


@pytest.mark.case("E27", "E15")
@BOTH
async def test_a_token_that_the_model_passes_lands_nowhere(stock: Any) -> None:
    planted = {**GOOD, "token": "planted", "kwargs": {"token": "planted"}}
    with gate(stock):
        assert await called(stock, planted) == "ACME with at… under effect-1"
    with gate(stock), pytest.raises(TypeError, match="multiple values") as refused:
        await directly(stock, {**GOOD, "token": "planted"})
    assert VALUE not in str(refused.value)


@pytest.mark.case("E27")
@BOTH
async def test_called_outside_a_gate_the_tool_refuses(stock: Any) -> None:
    with pytest.raises(GateError, match="called outside its gate"):
        await called(stock, GOOD)
    with pytest.raises(GateError, match="called outside its gate"):
        await directly(stock, GOOD)
    with pytest.raises(GateError, match="outside a tool call"):
        idempotency_key()


@pytest.mark.case("E27")
def test_a_tool_that_only_waits_for_an_approval_refuses_outside_a_gate_too() -> None:
    @needs(approval())
    def act() -> str:
        return "acted"

    with pytest.raises(GateError):
        act()
    with gate(act):
        assert act() == "acted"


@pytest.mark.case("E27")
@BOTH
async def test_a_tool_called_from_inside_another_one_does_not_inherit_its_binding(stock: Any) -> None:
    @needs(token=API)  # even though it declares the very same token
    async def outer(token: AccessToken) -> str:
        return str(await called(stock, GOOD))

    with gate(outer), pytest.raises(GateError, match="called outside its gate"):
        await outer()


@pytest.mark.case("E27")
def test_a_tool_that_runs_itself_again_needs_a_gate_again() -> None:
    # Attack: a tool hands its work to a sub-agent that has the same tool; the approval was for the outer call only.
    ran: list[int] = []

    @needs(approval())
    def act(quantity: int) -> str:
        ran.append(quantity)
        return act(quantity=1_000_000) if quantity == 1 else "acted"

    with gate(act):
        with pytest.raises(GateError, match="called outside its gate"):
            act(quantity=1)
        assert ran == [1]
        assert act(quantity=2) == "acted"  # a retry around the tool is the gate's own call


@pytest.mark.case("E27")
async def test_the_binding_is_not_lent_to_what_runs_beside_the_call() -> None:
    @needs(token=API)
    async def act(token: AccessToken) -> list[Any]:
        inner = asyncio.create_task(abuy_stock.ainvoke(GOOD))
        thread = asyncio.to_thread(buy_stock.invoke, GOOD)
        again = asyncio.create_task(act())
        return await asyncio.gather(inner, thread, again, return_exceptions=True)

    with gate(act):
        found = await act()
    assert [type(each) for each in found] == [GateError, GateError, GateError]


# -- what comes back (E25) -----------------------------------------------------------------------------------------------


class Color(StrEnum):
    RED = VALUE


class Shown(BaseModel):
    text: str
    quiet: str = Field(default="", repr=False)


@dataclasses.dataclass(frozen=True)
class Quiet:
    hidden: str = dataclasses.field(repr=False)


class Slotted:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"says {self.text}"

    def __repr__(self) -> str:
        return "Slotted()"


Pair = namedtuple("Pair", "a b")


def caused(how: str) -> Exception:
    """An exception with the token somewhere behind it."""
    hidden = ValueError(f"401 for {VALUE}")
    top = RuntimeError("the call failed")
    match how:
        case "message":
            return hidden
        case "cause":
            top.__cause__ = hidden
        case "context":
            top.__context__ = hidden
        case "suppressed context":
            top.__context__, top.__suppress_context__ = hidden, True
        case "cause of a cause":
            middle = KeyError("k")
            middle.__cause__, top.__cause__, top.__context__ = hidden, middle, middle
        case "note":
            top.add_note(f"sent {VALUE}")
        case "group":
            return ExceptionGroup("several", [ValueError("fine"), ExceptionGroup("inner", [hidden])])
        case "cause in a group":
            top.__cause__ = hidden
            return ExceptionGroup("several", [ValueError("fine"), top])
        case "argument":
            return RuntimeError("failed", {"headers": [("Authorization", f"Bearer {VALUE}")]})
        case "bytes":
            return RuntimeError(VALUE.encode())
        case "request":
            request = httpx.Request("GET", f"https://trading.example/?access_token={VALUE}")
            return httpx.HTTPStatusError(f"401 for {request.url}", request=request, response=httpx.Response(401))
    return top


HOWS = [
    "message",
    "cause",
    "context",
    "suppressed context",
    "cause of a cause",
    "note",
    "group",
    "cause in a group",
    "argument",
    "bytes",
    "request",
]

ECHOES: list[Any] = [
    VALUE,
    f"before {VALUE} after {VALUE}",
    VALUE.encode(),
    b"\xff\xfe" + VALUE.encode() + b"\x00",
    bytearray(VALUE.encode()),
    memoryview(VALUE.encode()),
    [VALUE],
    (VALUE, 1),
    {VALUE},
    frozenset({VALUE}),
    {"a": {"b": [VALUE, {"c": VALUE}]}},
    {VALUE: 1},
    {("k", VALUE): 1},
    deque([VALUE]),
    OrderedDict(a=VALUE),
    UserDict({"a": VALUE}),
    Pair(VALUE, 1),
    Color.RED,
    Shown(text=VALUE),
    Shown(text="fine", quiet=VALUE),
    Quiet(VALUE),
    [Quiet(VALUE)],
    {"a": Quiet(f"x{VALUE}")},
    Slotted(VALUE),
    [Slotted(VALUE)],
    ToolMessage("fine", tool_call_id="c", artifact={"raw": VALUE}),
    ToolMessage(VALUE, tool_call_id="c"),
    httpx.URL(f"https://trading.example/?t={VALUE}"),
    *(caused(how) for how in HOWS),
    {"errors": [caused("suppressed context")]},
]


def spelled(value: Any) -> str:
    """Everything of a redacted value that anybody could read."""
    return f"{value!r} {value!s}"


@pytest.mark.case("E25")
@pytest.mark.parametrize("echo", ECHOES, ids=lambda echo: f"{type(echo).__name__}")
def test_a_result_that_repeats_the_token_comes_back_without_it(echo: Any) -> None:
    found = bound().redact(echo)
    assert VALUE not in spelled(found)
    assert VALUE.encode() not in (bytes(found) if isinstance(found, bytes) else b"")
    assert found is not echo
    assert bound().redact(found) is found


@pytest.mark.case("E25")
def test_containers_keep_their_shape_and_everything_else_in_them() -> None:
    given_ = {"n": 1, "d": Decimal("1.5"), "t": ("a", VALUE), "l": [None, True, f"Bearer {VALUE}"], "s": {VALUE, "x"}}
    assert bound().redact(given_) == {
        "n": 1,
        "d": Decimal("1.5"),
        "t": ("a", "***"),
        "l": [None, True, "Bearer ***"],
        "s": {"***", "x"},
    }
    assert bound().redact([b"a", VALUE.encode()]) == [b"a", b"***"]


CLEAN: list[Any] = [
    None,
    7,
    "fine",
    b"fine",
    [1, ["x"]],
    OrderedDict(a=1),
    Pair(1, 2),
    Shown(text="fine"),
    Slotted("fine"),
    ValueError("fine"),
    Quiet,
    len,
]


@pytest.mark.parametrize("clean", CLEAN, ids=lambda clean: type(clean).__name__)
def test_what_holds_no_secret_comes_back_as_the_same_object(clean: Any) -> None:
    assert bound().redact(clean) is clean
    assert Binding(NOTHING, {}, "e", ()).redact(VALUE) == VALUE  # nothing was lent, nothing is replaced


def test_a_structure_that_holds_itself_many_times_is_looked_through_once() -> None:
    wide: list[Any] = ["x"]
    for _ in range(200):
        wide = [wide, wide, wide]
    loop: list[Any] = [wide]
    loop.append(loop)
    assert bound().redact(loop) is loop
    error = ValueError("fine")
    for _ in range(200):
        later = ValueError("fine")
        later.__cause__ = later.__context__ = error
        error = later
    assert bound().redact(error) is error


@pytest.mark.case("E25")
def test_a_secret_that_is_part_of_another_one_leaves_no_rest_of_it() -> None:
    short, long = "token-abcdef", "token-abcdef.and-the-signature"
    for order in ((short, long), (long, short)):
        assert bound(*order).redact(f"<{long}> <{short}>") == "<***> <***>"


@pytest.mark.case("E25")
def test_a_secret_is_found_as_urls_json_and_repr_spell_it() -> None:
    secret = "a+b/c==\"'\\é"
    for text in (
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    ):
        assert bound(secret).redact(f"?t={text}") == "?t=***"
    assert bound(secret).redact(Slotted(secret)) == "Slotted()"
    assert bound(secret).redact([{"t": secret}]) == [{"t": "***"}]


SECRETS = st.text(alphabet=st.sampled_from("abcXYZ012-._~+/= '\"\\%"), min_size=6, max_size=20)


@pytest.mark.case("E25")
@given(st.lists(SECRETS, min_size=1, max_size=3), st.data())
def test_no_secret_is_left_in_whatever_it_was_put_into(secrets: list[str], data: st.DataObject) -> None:
    assume(all(secret.strip() for secret in secrets))
    hidden = st.sampled_from(secrets)
    texts = st.builds(lambda a, s, b: f"{a}{s}{b}", st.text(max_size=3), hidden, st.text(max_size=3))
    leaves = texts | texts.map(str.encode) | st.text(max_size=5) | st.integers()
    leaves |= texts.map(ValueError) | texts.map(Slotted) | texts.map(lambda t: Shown(text="", quiet=t))
    value = data.draw(
        st.recursive(
            leaves,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.tuples(inner, inner)
                | st.dictionaries(st.text(max_size=3) | texts, inner, max_size=3)
            ),
            max_leaves=8,
        )
    )
    found = bound(*secrets).redact(value)
    for text in strings(found):
        assert not any(secret in text for secret in secrets), text


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, str):
        yield value
    else:
        yield from (repr(value), str(value))


def echoing(result: Any) -> Callable[[AccessToken], Any]:
    @needs(token=API)
    def act(token: AccessToken) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    return act


def aechoing(result: Any) -> Callable[[AccessToken], Any]:
    @needs(token=API)
    async def act(token: AccessToken) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    return act


@pytest.mark.case("E25")
@pytest.mark.parametrize("how", HOWS)
async def test_an_exception_that_shows_the_token_anywhere_behind_it_is_told_without_it(how: str) -> None:
    async def run_sync() -> None:
        sync()  # type: ignore[call-arg]

    sync, later = echoing(caused(how)), aechoing(caused(how))
    for act, run in ((sync, run_sync), (later, later)):
        with gate(act), pytest.raises(GateError) as told:
            await run()
        error = told.value
        assert error.code == "tool_error"
        assert VALUE not in f"{error} {error!r}"
        assert (error.__cause__, error.__context__) == (None, None)  # or whoever prints the chain prints the token


@pytest.mark.case("E25")
async def test_a_tool_that_returns_the_token_returns_it_redacted() -> None:
    sync, later = echoing({"sent": [f"Bearer {VALUE}"]}), aechoing({"sent": [f"Bearer {VALUE}"]})
    with gate(sync):
        assert sync() == {"sent": ["Bearer ***"]}  # type: ignore[call-arg]
    with gate(later):
        assert await later() == {"sent": ["Bearer ***"]}  # type: ignore[call-arg]


def test_an_exception_that_shows_nothing_is_raised_as_it_is() -> None:
    error = httpx.ConnectError("no route")
    act = echoing(error)
    with gate(act), pytest.raises(httpx.ConnectError) as told:
        act()  # type: ignore[call-arg]
    assert told.value is error


def test_a_binding_shows_no_secret_itself() -> None:
    with gate(buy_stock) as lent:
        assert VALUE not in repr(lent)


def test_an_approval_is_made_by_its_function() -> None:
    assert approval() == Approval(None, "tool_call", ())
    assert LARGE.parameters == ("quantity", "limit")
