"""What a guarded call costs a turn, against the same turn with a bare ``ToolNode``."""

from __future__ import annotations

from functools import partial

from tests.bench.harness import Pairs, Result, Turn, at_most, interleaved
from tests.bench.stage import Stage, turn

__all__ = ["guarded_cold_sqlite", "guarded_warm_sqlite", "thread_growth_500"]


async def guarded_warm_sqlite(on: Stage) -> Result:
    """The call's token is in graph state already."""
    pairs = await _warm(on, 2, on.samples(300))
    return at_most("guarded_warm_sqlite", pairs.ratio, "x", 1.25, f"{pairs}")


async def guarded_cold_sqlite(on: Stage) -> Result:
    """The first guarded call of a thread: ``token_exchange`` goes to the issuer."""

    async def ours() -> Turn:
        return partial(turn, on.ours, await on.thread())

    async def bare() -> Turn:
        return partial(turn, on.bare, await on.thread())

    asked = len(on.issuer.asked)
    pairs = await interleaved(ours, bare, on.samples(150))
    exchanges = on.issuer.asked[asked:].count("token-exchange")
    if exchanges != len(pairs.ours) + 1:
        raise RuntimeError(f"{exchanges} token exchanges in {len(pairs.ours) + 1} turns: this is not cold")
    return at_most("guarded_cold_sqlite", pairs.ratio, "x", 2.0, f"{pairs}")


async def thread_growth_500(on: Stage) -> Result:
    """(our turn / bare turn) at turn 500, over the same at turn 5: what we add must not grow with the thread."""
    young = await _warm(on, 5, on.samples(60))
    old = await _warm(on, 500, on.samples(60))
    return at_most("thread_growth_500", old.ratio / young.ratio, "x", 1.2, f"turn 5: {young}; turn 500: {old}")


async def _warm(on: Stage, nth: int, count: int) -> Pairs:
    """Pairs of the ``nth`` turn of a thread, with the token of the turn before it in state."""

    async def warmed(graph: object) -> Turn:
        thread = await on.thread(nth - 2)
        await turn(graph, thread)
        return partial(turn, graph, thread)

    asked = len(on.issuer.asked)
    pairs = await interleaved(partial(warmed, on.ours), partial(warmed, on.bare), count)
    exchanges = on.issuer.asked[asked:].count("token-exchange")
    if exchanges != count + 1:
        raise RuntimeError(f"{exchanges} token exchanges for {count + 1} threads: this is not warm")
    return pairs
