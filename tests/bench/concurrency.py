"""What happens when many threads of LangGraph want something at the same moment."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time

from tests.bench.harness import Result, at_most, exactly
from tests.bench.stage import Stage, turn

__all__ = ["loop_stall_ms", "single_flight_requests"]

_THREADS = 50


async def single_flight_requests(on: Stage) -> Result:
    """Fifty threads of one user at once, no token anywhere: how often her refresh token is redeemed."""
    threads = [await on.thread() for _ in range(_THREADS)]
    on.issuer.seconds = 0.5
    await asyncio.gather(*(turn(on.ours, thread) for thread in threads))
    refreshes = on.issuer.asked.count("refresh_token")
    note = f"{_THREADS} threads, {len(on.issuer.asked)} token requests in all, each answered after 500 ms"
    return exactly("single_flight_requests", refreshes, "requests", 1, note)


async def loop_stall_ms(on: Stage) -> Result:
    """Fifty guarded turns at once: the longest that the event loop kept anybody else waiting.

    What was imported is not the garbage collector's to look through meanwhile: that is 80 ms now and then, whoever's turns run.
    """
    await turn(on.ours, await on.thread())
    gc.collect()
    gc.freeze()
    try:
        rounds = [await _stalled(on) for _ in range(1 if on.quick else 3)]
    finally:
        gc.unfreeze()
    took = statistics.median(seconds for _, seconds in rounds)
    note = f"{_THREADS} turns at once in {took * 1_000:.0f} ms; the longest of {len(rounds)} rounds"
    return at_most("loop_stall_ms", max(stall for stall, _ in rounds) * 1_000, "ms", 50, note)


async def _stalled(on: Stage) -> tuple[float, float]:
    """``(longest stall, time that the turns took)``, in seconds."""
    threads = [await on.thread() for _ in range(_THREADS)]
    worst = 0.0
    watching = True

    async def watch() -> None:
        nonlocal worst
        while watching:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - due)

    watcher = asyncio.create_task(watch())
    started = time.perf_counter()
    await asyncio.gather(*(turn(on.ours, thread) for thread in threads))
    watching = False
    await watcher
    return worst, time.perf_counter() - started
