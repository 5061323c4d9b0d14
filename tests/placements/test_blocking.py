"""Nothing in a placement blocks the event loop: a LangGraph server refuses calls that do (``BlockingError``)."""

from __future__ import annotations

from typing import Any

from blockbuster import blockbuster_ctx
from langchain_core.tools import tool

from identity import AccessToken, approval, needs, resource
from tests.placements.placing import Placement, answers
from tests.support import Inside, Scripted, as_caller, calls, config, last, requests, say


async def test_no_step_of_a_conversation_blocks_the_loop(world: Inside, placement: Placement) -> None:
    @tool
    @needs(approval(when=lambda quantity: quantity > 10), token=resource(f"{world.url}/trading", "orders:write"))
    async def order(quantity: int, token: AccessToken) -> str:
        """Order, at an API of its own."""
        return f"ordered {quantity}"

    small, large = ("order", {"quantity": 1}), ("order", {"quantity": 50})
    model = Scripted(calls(small), "One.", calls(small, large), "Two.", calls(large), "Never mind.")
    graph = placement.build(world, model=model, tools=[order])
    alice = world.person("alice")
    world.identity.close()  # opening the database is a part of it

    async def run(step: Any) -> Any:
        with blockbuster_ctx("identity"):
            return await step

    state = await run(say(graph))
    await alice.sign_in(requests(state)[0])
    assert last(await run(world.identity.resume(graph, config()))) == "One."
    with as_caller(world, "alice"):
        state = await run(say(graph))
        await alice.approve(requests(state)[0])
        assert last(await run(world.identity.resume(graph, config()))) == "Two."
        await run(say(graph))
        state = await run(say(graph, "No"))
    assert last(state) == "Never mind."
    assert sorted(text for text in answers(state) if "ordered" in text) == ["ordered 1", "ordered 1", "ordered 50"]
