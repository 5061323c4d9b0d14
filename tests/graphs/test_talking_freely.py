"""Whatever people say and decide, and in whatever order: histories stay sound, nothing is done twice, nothing gets stuck."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, tool

from identity import approval, needs
from identity.asking import APPROVAL_LIFETIME
from identity.ledger import Request
from identity.needs import idempotency_key
from identity.sessions import Place
from tests.support import Clock, Inside, as_caller, assistant, calls, config, history_faults, inside, requests, sign_in

PLACE = Place("default", "assistant", "t1")

Order = tuple[str, int]
SAYS: dict[str, list[Order]] = {
    "nothing": [],
    "one": [("order", 1)],
    "another": [("order", 2)],
    "two": [("order", 1), ("order", 2)],
    "the same twice": [("order", 1), ("order", 1)],
    "deferred": [("order_later", 1)],
    "deferred, another": [("order_later", 2)],
    "deferred twice": [("order_later", 1), ("order_later", 1)],
    "both": [("order", 3), ("order_later", 3), ("look", 0)],
}


class Obedient(BaseChatModel):
    """A model that calls what the person's last message says, and otherwise only talks. It takes no faulty history."""

    @property
    def _llm_type(self) -> str:
        return "obedient"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self

    meanwhile: Any = None

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        assert history_faults(messages) == []
        turn = AIMessage("Well.")
        if isinstance(messages[-1], HumanMessage):
            made = SAYS.get(str(messages[-1].content), [("look", 0)])
            turn = calls(*((name, {"number": number}) for name, number in made), content="Well.")
        return ChatResult(generations=[ChatGeneration(message=turn)])


class Conversation:
    """A thread of alice's, what she decided, and what was done."""

    def __init__(self, world: Inside) -> None:
        self.world = world
        self.done: list[str] = []
        self.yes: set[str] = set()
        self.no: set[str] = set()
        self.model = Obedient()
        self.graph = assistant(world, model=self.model, tools=self._tools())

    def _tools(self) -> list[BaseTool]:
        @tool
        @needs(approval())
        def order(number: int) -> str:
            """Order."""
            self.done.append(idempotency_key())
            return f"ordered {number}"

        @tool
        @needs(approval(wait="defer"))
        def order_later(number: int) -> str:
            """Order."""
            self.done.append(idempotency_key())
            return f"ordered {number}"

        @tool
        @needs(approval(when=lambda number: False), read_only=True)
        def look(number: int) -> str:
            """Look."""
            return "seen"

        return [order, order_later, look]

    @property
    def pending(self) -> list[Request]:
        return [r for r in self.world.identity.ledger.pending(PLACE) if r.kind == "approval"]

    def undecided(self, which: int) -> Request | None:
        """One of the requests that a person could still decide about."""
        known, now = self.yes | self.no, self.world.clock()
        found = [r for r in self.pending if r.id not in known and r.expires_at > now]
        return found[which % len(found)] if found else None

    def poll(self) -> None:
        """While something runs: on the thread that it runs in."""
        self.world.clock.advance(10)
        self.world.identity.transport.call(self.world.identity.asking.poll_due)

    async def run(self, given: Any) -> dict[str, Any]:
        with as_caller(self.world, "alice"):
            state: dict[str, Any] = await self.graph.ainvoke(given, config())
        return state

    async def wake(self) -> dict[str, Any]:
        """As the waker does it."""
        state = await self.run(None if (await self.graph.aget_state(config())).next else {"messages": []})
        waits = (await self.graph.aget_state(config())).next
        asked = {request["id"] for request in requests(state)}
        assert bool(waits) == bool(asked), "it ends, or waits for somebody"
        assert asked <= {request.id for request in self.pending}
        return state

    async def step(self, move: str, which: int) -> None:
        request = self.undecided(which)
        match move:
            case "approve" if request is not None:
                await self.world.person("alice").approve(request.shown())
                self.yes.add(request.id)
            case "deny" if request is not None:
                await self.world.person("alice").deny(request.shown())
                self.no.add(request.id)
            case "meanwhile":
                self.model.meanwhile = self.poll
            case "wake":
                await self.wake()
            case "poll":
                self.world.clock.advance(10)
                await self.world.identity.poll()
            case "expire":
                self.world.clock.advance(APPROVAL_LIFETIME + 60)
                await self.world.identity.poll()
            case "rest":
                self.world.clock.advance(1200)
            case "go back":
                history = [old async for old in self.graph.aget_state_history(config(), limit=12) if old.next]
                if history:
                    with as_caller(self.world, "alice"):
                        await self.graph.ainvoke(None, history[which % len(history)].config)
            case text if text in SAYS:
                await self.run({"messages": [("user", text)]})

    async def check(self) -> None:
        """What must hold after every step."""
        snapshot = await self.graph.aget_state(config())
        faults = history_faults(snapshot.values["messages"])
        assert all(snapshot.next and "the history ends without" in fault for fault in faults)
        assert len(self.done) == len(set(self.done)), "no call is made twice"
        agreed = {
            row[0] for row in self.world.identity.database.read("SELECT id FROM requests WHERE state = 'approved'")
        }
        made = {
            row[0]: row[1]
            for row in self.world.identity.database.read("SELECT id, request_id FROM effects WHERE state = 'done'")
        }
        asked_for = [made[key] for key in self.done]
        assert set(asked_for) <= agreed & self.yes, "nothing is done that she did not agree to"
        assert len(asked_for) == len(set(asked_for)), "one yes, one effect"

    async def end(self, *, went_back: bool) -> None:
        """Everything is decided in the end, and then nothing waits, and what was promised has been told."""
        self.world.clock.advance(APPROVAL_LIFETIME + 60)
        await self.world.identity.poll()
        state = await self.wake()
        assert requests(state) == []
        state = await self.wake()
        await self.check()
        assert (await self.graph.aget_state(config())).next == ()
        assert self.pending == []
        assert state["requests"] == []
        assert history_faults(state["messages"]) == []
        assert self.world.identity.ledger.deferred(PLACE) == []
        if not went_back:  # to a time when it had not been told, or not promised
            told = [str(m.content) for m in state["messages"] if m.type == "tool"]
            assert sum(text.startswith("ordered") for text in told) == len(self.done)
            promised = {text.split("#")[1][:6] for text in told if text.startswith("Asked for approval (#")}
            kept = {m.id.removeprefix("settled-")[:6] for m in state["messages"] if m.id.startswith("settled-")}
            assert promised <= kept


MOVES = [*SAYS, "approve", "approve", "deny", "wake", "wake", "poll", "poll", "meanwhile", "expire", "rest"]


async def talk(moves: Sequence[tuple[str, int]], *, went_back: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with inside(Path(folder), Clock()) as world:
            conversation = Conversation(world)
            await sign_in(world, conversation.graph)
            for move, which in moves:
                await conversation.step(move, which)
                await conversation.check()
            await conversation.end(went_back=went_back)


def talks(extra: Sequence[str] = ()) -> Any:
    return st.lists(st.tuples(st.sampled_from([*MOVES, *extra]), st.integers(0, 3)), max_size=12)


@pytest.mark.case("E17", "B22")
@settings(max_examples=25)
@given(talks())
def test_whatever_is_said_and_decided_the_conversation_stays_sound_and_comes_to_its_end(
    moves: list[tuple[str, int]],
) -> None:
    asyncio.run(talk(moves))


@pytest.mark.case("E4", "E17")
@settings(max_examples=25)
@given(talks(["go back", "go back"]))
def test_from_whatever_checkpoint_it_goes_on_again_nothing_is_done_twice_or_without_a_yes(
    moves: list[tuple[str, int]],
) -> None:
    asyncio.run(talk(moves, went_back=True))
