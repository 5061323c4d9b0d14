"""The terminal chat and what nobody waits for: its outcome is told between two lines of the person."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from agent import chat
from identity import approval, needs
from tests.support import Inside, Scripted, as_caller, assistant, calls, signed_in

LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})


class Told(io.StringIO):
    """What the chat prints."""

    def __init__(self) -> None:
        super().__init__()
        self.done = asyncio.Event()

    def write(self, text: str) -> int:
        if "It is done." in text:
            self.done.set()
        return super().write(text)


async def test_the_outcome_of_a_deferred_order_is_told_while_the_person_types_nothing(
    world: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = approval(type="stock_order", wait="defer")
    tools = [needs(asks)(t) if t.name == "buy_stock" else t for t in world.tools()]
    graph = assistant(world, model=Scripted(calls(LARGE), "I asked you.", "It is done."), tools=tools)
    told = Told()
    talk: Any = chat._Talk(Console(file=told, width=200), world, graph, open_browser=False)
    await signed_in(world, thread=talk._config["configurable"]["thread_id"])
    lines = iter(["Buy 50 ACME", ""])

    async def line() -> str:
        if "I asked you." in told.getvalue():
            (asked,) = world.identity.ledger.pending_of(world.person("alice").principal, world.clock())
            await world.person("alice").approve(asked.shown())
            world.clock.advance(asked.interval)
            await told.done.wait()
        return next(lines)

    monkeypatch.setattr(talk, "_line", line)
    monkeypatch.setattr(chat, "_LOOK", 0.01)
    with as_caller(world, "alice"):
        assert await asyncio.wait_for(talk.run(), 20) == 0
    said = [text.strip() for text in told.getvalue().splitlines()]
    assert next(text for text in said if text.startswith("bot>")) == "bot> I asked you."
    assert sum("This needs your approval" in text for text in said) == 1
    assert said[-2:] == ["bot> It is done.", "Bye."]
    assert len(world.orders()) == 1
