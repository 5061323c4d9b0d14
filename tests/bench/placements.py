"""What the gate costs in an agent of ``create_agent``, against the same agent without it."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from langchain.agents import create_agent

from identity import IdentityMiddleware
from tests.bench.harness import Result, Turn, at_most, interleaved
from tests.bench.stage import Stage, Stub, bare_tool, guarded_tool, saver, turn

__all__ = ["middleware_warm"]


async def middleware_warm(on: Stage) -> Result:
    """The call's token is in the agent's state already."""
    guard = IdentityMiddleware(on.identity)

    async def warmed(graph: Any) -> Turn:
        thread = uuid.uuid4().hex
        await asyncio.to_thread(on.join, thread, "agent")
        await turn(graph, thread)
        return partial(turn, graph, thread)

    asked, count = len(on.issuer.asked), on.samples(300)
    with tempfile.TemporaryDirectory(prefix="deputize-bench-") as folder:
        async with saver(Path(folder) / "bare.db") as first, saver(Path(folder) / "ours.db") as second:
            bare = create_agent(Stub(), [bare_tool], checkpointer=first)
            ours = create_agent(Stub(), [guarded_tool], middleware=[guard], checkpointer=second)
            pairs = await interleaved(partial(warmed, ours), partial(warmed, bare), count)
    exchanges = on.issuer.asked[asked:].count("token-exchange")
    if exchanges != count + 1:
        raise RuntimeError(f"{exchanges} token exchanges for {count + 1} threads: this is not warm")
    return at_most("middleware_warm", pairs.ratio, "x", 1.25, f"{pairs}")
