"""An offline stand-in for a model, so that the demo needs no account. It says what it is.

It understands a few kinds of requests, by patterns, and calls the tools that they stand for. It reads requests in messages
of a person only: nothing that a tool returns can make it call one.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
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
_SYMBOL = r"\b(" + "|".join(COMPANIES) + r")\b"
_SHARES = r"(?:(?:shares?|stocks?)\b|of\b|" + _SYMBOL + r")"
_MONEY = r"(?:\$|usd\s*)?(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?!\w|[.,]\d)(?!\s*" + _SHARES + r")"

_POLITE = (
    r"(?:please|now|first|next|ok(?:ay)?|yes|so|just|kindly|hi|hello|hey|go ahead|let'?s|let me|help me(?: to)?"
    r"|i(?:'d| would) like (?:you )?to|i want (?:you )?to|i'?ll|i will|(?:can|could|will) you)"
)
# A wish to buy begins a sentence or its part. "Did you buy", "my order of", "I own what I bought" are none.
_BUY = re.compile(rf"\W*(?:{_POLITE}\W+)*(?:buy|purchase|order|get me)\b", re.I)
_BUYING = re.compile(r"\b(?:buy(?:s|ing)?|bought|purchas(?:e|es|ed|ing)|order(?:s|ed|ing)?)\b", re.I)
_NOT = re.compile(
    r"\b(?:don'?t|do not|never|not|shouldn'?t|won'?t|can'?t|cannot|wouldn'?t|cancel|if|when|(?<!at )once|unless|until"
    r"|without|instead|later|tomorrow|nothing|or)\b",
    re.I,
)
_CONDITION = re.compile(r"\W*(?:if|when|once|unless|until|should|suppose)\b", re.I)
_CANNOT = re.compile(r"\b(?:sell|transfer|withdraw|deposit|give away)\b", re.I)
_NO_DOLLARS = re.compile(r"\b(?:eur|euros?|gbp|pounds?|chf|francs?|jpy|yen)\b|[€£¥]", re.I)
_MORE = re.compile(rf"\W*-?{_NUMBER}\s+(?:more\s+)?(?:(?:shares?|stocks?)\s+(?:of|in)\s+)?{_SYMBOL}", re.I)
_NAME = re.compile(rf"\W*{_SYMBOL}\W*", re.I)
_QUOTE = re.compile(
    r"\b(?:price|quotes?|trading at|costs?|worth|how much|how is|how's|what(?:'s| is) .* at|check|look up)\b", re.I
)
_PORTFOLIO = re.compile(
    r"\b(?:portfolio|holdings|positions|(?:my|our) (?:stocks|shares)|do i (?:still )?(?:own|have|hold))\b", re.I
)
_FORECAST = re.compile(r"\b(?:forecasts?|analysts?|outlook)\b", re.I)
_LEAVE = re.compile(r"\b(?:don'?t|do not|never|no need to) (?:\w+ )?(?:show|list|quote|check|look|tell|give)\b", re.I)
_WHO = re.compile(r"\b(?:who are you|what are you|what can you do|help|hello|hi|hey)\b", re.I)
_LIMIT = re.compile(
    r"(?:\bat or below|\bat most|\b(?:(?:at|for) )?(?:no|not) (?:more|higher) than|\bnot (?:above|over)|\b(?:for )?up to"
    r"|\bfor at most|\bat|\bfor|\bunder|\bbelow|\blimit(?: of)?|\bmax(?:imum)?(?: of)?|@)\s*" + _MONEY,
    re.I,
)
_QUANTITY = re.compile(r"(?<![\w.$])(-?" + _NUMBER + r")(?![\w.])", re.I)

_ABOUT = (
    "I am deputize's offline model: a few patterns, no intelligence. I can quote ACME, NOVA, ORBT and HALO, tell what"
    " analysts say about them, show your portfolio, and buy shares. Set OPENAI_API_KEY for a real model."
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
        wishes = [w if not w.tool or w.tool in self.bound else _NO_TOOL for w in _wishes(text)]
        called = [call for m in since if isinstance(m, AIMessage) for call in m.tool_calls]
        results = {m.tool_call_id: m for m in since if isinstance(m, ToolMessage)}
        said = max((i for i, m in enumerate(since) if isinstance(m, AIMessage) and not m.tool_calls), default=None)
        later = [call for m in since[said:] if isinstance(m, AIMessage) for call in m.tool_calls]
        if said is not None and later:  # the outcomes of what was asked for before
            return AIMessage(_told([], later, results))
        if not wishes and not called:
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
        if due:
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
            price = re.match(r"\s*(\d{1,9}(?:\.\d{1,9})?)(?![\w.])", str(answer.text).partition(":")[2])
            if price:
                found[call["args"]["symbol"]] = Decimal(price[1])
    return found


def _told(wishes: Sequence[_Wish], called: Sequence[Any], results: dict[str, ToolMessage]) -> str:
    lines = list(dict.fromkeys(wish.question for wish in wishes if wish.question))
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
    "get_forecast": lambda a: f"The forecast for {a.get('symbol')}",
    "show_portfolio": lambda a: "Showing the portfolio",
    "buy_stock": lambda a: f"Buying {a.get('quantity')} {a.get('symbol')} at up to {a.get('limit')}",
}


def _wishes(text: str) -> list[_Wish]:
    """The requests in a message, in order. What is not understood is said, and never guessed into an order."""
    found: list[_Wish] = []
    kind: Callable[[str], list[_Wish]] | None = None
    unread: list[str] = []  # names of stocks, before it is known what about them: "What are ACME and HALO worth?"
    # Never split inside a number: "1,000" and "98.40" hold a comma and a point.
    for sentence in re.split(r"[.;!?]+(?=\s|$)|\n+", text):
        negated = False
        kind = None if kind is _buys else kind
        for part in re.split(r",(?!\d)|(?=\bbut\b)|\b(?:and|then|also|plus|as well as)\b", sentence, flags=re.I):
            told = re.sub(r"^but\b", "", part, flags=re.I)
            negated = (negated and told == part) or bool(_CONDITION.match(told))
            asked, kind, unclear = _understood(told, kind, negated=negated)
            negated = negated or asked == [_NOT_BOUGHT]
            if unclear:
                unread.append(part)
                continue
            if kind is _quotes or kind is _forecasts:
                asked = [wish for name in unread for wish in kind(name)] + asked
                unread.clear()
            found += [wish for wish in asked if wish not in found]
    if not found and unread and all(_NAME.fullmatch(part) for part in unread):
        return _quotes(text)
    if found and unread:
        found.append(_Wish(question=f"I did not understand: {'; '.join(part.strip() for part in unread)}"))
    return found


def _understood(
    part: str, kind: Callable[[str], list[_Wish]] | None, *, negated: bool
) -> tuple[list[_Wish], Callable[[str], list[_Wish]] | None, bool]:
    """A part's requests, the kind that the next part may go on with, and whether it names stocks for no known reason."""
    patterns = ((_FORECAST, _forecasts), (_PORTFOLIO, _portfolio), (_QUOTE, _quotes))
    reads = next((reader for pattern, reader in patterns if pattern.search(part)), None)
    names_stock = bool(re.search(_SYMBOL, part, re.I))
    if _CANNOT.search(part):
        return [_Wish(question="I can quote, show the portfolio and buy; I cannot do that.")], None, False
    if _BUY.match(part) and not (reads and not re.match(r".*\b(?:buy|purchase|order)\b", part, re.I)):
        if negated or _NOT.search(_LIMIT.sub("", part)):
            return [_NOT_BOUGHT], None, False
        wishes = _buys(part)
        # A question ends the chain: "one hundred and fifty ACME" must not become fifty.
        return wishes, None if any(wish.question for wish in wishes) else _buys, False
    if reads is not None:
        if _LEAVE.search(part):
            return [_Wish(question="Then I leave that.")], None, False
        return reads(part), reads, False
    if _BUYING.search(part):
        return [_NOT_BOUGHT], None, False
    if names_stock and (kind is _quotes or kind is _forecasts):
        return kind(part), kind, False
    if names_stock and kind is _buys and (_MORE.match(part) or _NAME.fullmatch(part)):
        wishes = _buys(part)
        return wishes, None if any(wish.question for wish in wishes) else _buys, False
    return [], kind, names_stock and not negated


_NO_TOOL = _Wish(question="I was given no tool for that.")
_NOT_BOUGHT = _Wish(question="I only buy when you tell me to, at once and plainly, so I bought nothing.")


def _symbols(part: str) -> list[str]:
    return list(dict.fromkeys(COMPANIES[name.lower()] for name in re.findall(_SYMBOL, part, re.I)))


def _quotes(part: str) -> list[_Wish]:
    return _of_each("get_quote", part)


def _forecasts(part: str) -> list[_Wish]:
    return _of_each("get_forecast", part)


def _of_each(tool: str, part: str) -> list[_Wish]:
    symbols = _symbols(part)
    if not symbols:
        return [_Wish(question="Which stock do you mean? I know ACME, NOVA, ORBT and HALO.")]
    return [_Wish(tool, (("symbol", symbol),)) for symbol in symbols]


def _portfolio(part: str) -> list[_Wish]:
    return [_Wish("show_portfolio")]


def _buys(part: str) -> list[_Wish]:
    symbols = _symbols(part)
    if len(symbols) != 1:
        return [_Wish(question="Which stock should I buy? I know ACME, NOVA, ORBT and HALO.")]
    if _NO_DOLLARS.search(part):
        return [_Wish(question="What is the limit in US dollars?")]
    limit = _LIMIT.search(part)
    rest = part[: limit.start()] + part[limit.end() :] if limit else part
    numbers = _QUANTITY.findall(rest)
    if len(numbers) > 1:  # "a share" beside "5": articles are no second quantity
        numbers = [number for number in numbers if number.lower() not in ("a", "an")]
    quantity = _count(numbers[0]) if len(numbers) == 1 else None
    if quantity is None or quantity <= 0 or re.search(r"\d", _QUANTITY.sub("", rest)):
        # Also when a number is left over: "at 98,40", "at 100k", "at 9:30" are not guessed at.
        return [_Wish(question=f"How many shares of {symbols[0]} should I buy, and at what limit?")]
    arguments = (("symbol", symbols[0]), ("quantity", quantity))
    if limit is None:
        return [_Wish("buy_stock", arguments, needs_price=symbols[0])]
    bound = Decimal(limit[1].replace(",", ""))
    if bound <= 0:
        return [_Wish(question="The limit has to be a positive amount.")]
    return [_Wish("buy_stock", (*arguments, ("limit", str(bound))))]


def _count(number: str) -> int | None:
    spelled = number.lower().strip()
    if spelled in _WORDS:
        return _WORDS[spelled]
    digits = spelled.replace(",", "")
    return int(digits) if re.fullmatch(r"-?\d{1,9}", digits) else None
