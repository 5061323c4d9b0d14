"""An offline stand-in for a model, so that the demo needs no account. It says what it is.

It understands a few kinds of requests, by patterns, and calls the tools that they stand for. It reads requests in messages
of a person only: nothing that a tool returns can make it call one.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal, InvalidOperation
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

__all__ = ["OfflineModel"]

COMPANIES = {"acme": "ACME", "nova": "NOVA", "orbit": "ORBT", "orbt": "ORBT", "halo": "HALO"}

_WORDS = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100, "a hundred": 100, "one hundred": 100,
    "two hundred": 200, "three hundred": 300, "five hundred": 500, "a thousand": 1000, "one thousand": 1000, "a dozen": 12,
    "dozen": 12,
}  # fmt: skip
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+|" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")"
_MONEY = r"(?:\$|usd\s*)?(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
_SYMBOL = r"\b(" + "|".join(COMPANIES) + r")\b"

_BUY = re.compile(r"\b(buy|purchase|get me|order)\b", re.I)
_NOT = re.compile(
    r"\b(don'?t|do not|never|not|shouldn'?t|should i|would you|could i|can i|what if|if i|cancel)\b", re.I
)
_QUOTE = re.compile(
    r"\b(price|quote|quotes|trading at|cost|worth|how much|how is|how's|what(?:'s| is) .* at|check|look up)\b", re.I
)
_PORTFOLIO = re.compile(
    r"\b(portfolio|holdings|positions|(?:my|our) (?:stocks|shares)|what do i (?:own|have|hold))\b", re.I
)
_WHO = re.compile(r"\b(who are you|what are you|what can you do|help|hello|hi|hey)\b", re.I)
_LIMIT = re.compile(
    r"(?:\bat(?: or below| most)?|\blimit(?: of)?|\bfor(?: no more than| at most| up to)?|\bunder|\bbelow"
    r"|\bmax(?:imum)?(?: of)?|@)\s*" + _MONEY + r"(?!\s*(?:shares|stocks))",
    re.I,
)  # fmt: skip
_QUANTITY = re.compile(r"(?<![\w.$])(-?" + _NUMBER + r")(?![\w.])", re.I)

_ABOUT = (
    "I am deputize's offline model: a few patterns, no intelligence. I can quote ACME, NOVA, ORBT and HALO, show your"
    " portfolio, and buy shares. Set OPENAI_API_KEY for a real model."
)


@dataclass(frozen=True, slots=True)
class _Wish:
    """One request: the call that it stands for, or a question back.

    ``needs_price``: the quote of this symbol has to be known first, for the bound of an order without a limit.
    """

    tool: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    question: str = ""
    needs_price: str = ""

    def call(self) -> dict[str, Any]:
        return {"type": "tool_call", "id": f"call_{uuid.uuid4().hex}", "name": self.tool, "args": dict(self.arguments)}


class OfflineModel(BaseChatModel):
    """A deterministic chat model with tool calling for the demo's requests."""

    bound: tuple[str, ...] = ()
    """Names of the tools that it may call."""

    @property
    def _llm_type(self) -> str:
        return "deputize-offline"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        """This model, with these tools to call."""
        names = tuple(t.name if isinstance(t, BaseTool) else str(t.get("name") or t["function"]["name"]) for t in tools)
        return OfflineModel(bound=names)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._reply(messages))])

    def _reply(self, messages: Sequence[BaseMessage]) -> AIMessage:
        asked = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=None)
        if asked is None:
            return AIMessage(_ABOUT)
        text, since = str(messages[asked].text), messages[asked + 1 :]
        wishes = [wish for wish in _wishes(text) if not wish.tool or wish.tool in self.bound or not self.bound]
        called = [call for m in since if isinstance(m, AIMessage) for call in m.tool_calls]
        results = {m.tool_call_id: m for m in since if isinstance(m, ToolMessage)}
        if not wishes:
            return AIMessage(_ABOUT if _WHO.search(text) else f"I did not understand that. {_ABOUT}")
        prices = _prices(called, results)
        due: list[_Wish] = []
        seen = [(c["name"], tuple(c["args"].items())) for c in called]
        for wish in wishes:
            if not wish.tool:
                continue
            step = _next_step(wish, prices, seen)
            if step is not None and step not in due:
                due.append(step)
        if due and self.bound:
            return AIMessage("", tool_calls=[wish.call() for wish in due])
        return AIMessage(_told(wishes, called, results))


def _next_step(
    wish: _Wish, prices: dict[str, Decimal], seen: list[tuple[str, tuple[tuple[str, Any], ...]]]
) -> _Wish | None:
    if wish.needs_price:
        quote = _Wish("get_quote", (("symbol", wish.needs_price),))
        if (quote.tool, quote.arguments) not in seen:
            return quote
        if wish.needs_price not in prices:
            return None  # the quote failed; that is told
        # The bound goes into the arguments, so that what is approved bounds what runs (casebook B26).
        limit = (prices[wish.needs_price] * Decimal("1.02")).quantize(Decimal("0.01"), ROUND_UP)
        wish = _Wish(wish.tool, (*wish.arguments, ("limit", str(limit))))
    return None if (wish.tool, wish.arguments) in seen else wish


def _prices(called: Sequence[Any], results: dict[str, ToolMessage]) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for call in called:
        answer = results.get(call["id"])
        if call["name"] == "get_quote" and answer is not None and answer.status == "success":
            price = re.search(r"(\d+(?:\.\d+)?)", str(answer.text).partition(":")[2])
            if price:
                found[call["args"]["symbol"]] = Decimal(price[1])
    return found


def _told(wishes: Sequence[_Wish], called: Sequence[Any], results: dict[str, ToolMessage]) -> str:
    lines = [wish.question for wish in wishes if wish.question]
    for call in called:
        answer = results.get(call["id"])
        if answer is None:
            continue
        what = _SUBJECTS[call["name"]](call["args"]) if call["name"] in _SUBJECTS else call["name"]
        text = str(answer.text).strip()
        if answer.status == "success":
            lines.append(text if call["name"] != "show_portfolio" else f"You own:\n{text}")
        else:
            lines.append(f"{what} was not done: {text}")
    return "\n".join(lines)


_SUBJECTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "get_quote": lambda a: f"The quote of {a.get('symbol')}",
    "show_portfolio": lambda a: "Showing the portfolio",
    "buy_stock": lambda a: f"Buying {a.get('quantity')} {a.get('symbol')} at up to {a.get('limit')}",
}


def _wishes(text: str) -> list[_Wish]:
    """The requests in a message, in order."""
    found: list[_Wish] = []
    kind: Callable[[str], list[_Wish]] | None = None
    # Never split inside a number: "1,000" and "98.40" hold a comma and a point.
    for part in re.split(r"[.;!?\n]+(?=\s|$)|,(?!\d{3}\b)|\b(?:and|then|also|plus|as well as)\b", text):
        if not part.strip():
            continue
        if _BUY.search(part) and _NOT.search(part):
            found.append(_Wish(question="I only buy when you tell me to, so I bought nothing."))
            kind = None  # what follows "don't buy ACME and" is not bought either
            continue
        if _BUY.search(part):
            kind = _buys
        elif _PORTFOLIO.search(part):
            kind = _portfolio
        elif _QUOTE.search(part):
            kind = _quotes
        elif kind is None or not re.search(_SYMBOL, part, re.I):
            continue  # "please", "thanks": nothing on its own; "and NOVA" goes on with the kind before it
        found += [wish for wish in kind(part) if wish not in found]
    if not found and re.fullmatch(r"\s*(?:\$?\s*)" + _SYMBOL + r"\s*\??\s*", text, re.I):
        found = _quotes(text)
    return found


def _symbols(part: str) -> list[str]:
    return list(dict.fromkeys(COMPANIES[name.lower()] for name in re.findall(_SYMBOL, part, re.I)))


def _quotes(part: str) -> list[_Wish]:
    symbols = _symbols(part)
    if not symbols:
        return [_Wish(question="Which stock do you mean? I know ACME, NOVA, ORBT and HALO.")]
    return [_Wish("get_quote", (("symbol", symbol),)) for symbol in symbols]


def _portfolio(part: str) -> list[_Wish]:
    return [_Wish("show_portfolio")]


def _buys(part: str) -> list[_Wish]:
    symbols = _symbols(part)
    if len(symbols) != 1:
        return [_Wish(question="Which stock should I buy? I know ACME, NOVA, ORBT and HALO.")]
    limit = _LIMIT.search(part)
    rest = part[: limit.start()] + part[limit.end() :] if limit else part
    quantities = [_count(number) for number in _QUANTITY.findall(rest)]
    exact = [count for count in quantities if count is not None]
    if len(exact) > 1:  # "a share" beside "5": articles are no second quantity
        exact = [c for c, n in zip(exact, _QUANTITY.findall(rest), strict=False) if n.lower() not in ("a", "an")]
    if len(exact) != 1 or exact[0] <= 0:
        return [_Wish(question=f"How many shares of {symbols[0]} should I buy?")]
    arguments = (("symbol", symbols[0]), ("quantity", exact[0]))
    if limit is None:
        return [_Wish("buy_stock", arguments, needs_price=symbols[0])]
    try:
        bound = Decimal(limit[1].replace(",", ""))
    except InvalidOperation:
        bound = Decimal(0)
    if bound <= 0:
        return [_Wish(question="The limit has to be a positive amount.")]
    return [_Wish("buy_stock", (*arguments, ("limit", str(bound))))]


def _count(number: str) -> int | None:
    spelled = number.lower().strip()
    if spelled in _WORDS:
        return _WORDS[spelled]
    digits = spelled.replace(",", "")
    return int(digits) if re.fullmatch(r"-?\d{1,9}", digits) else None
