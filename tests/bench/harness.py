"""What a gate is, how gates are run, and what is told about them.

A gate is an async function of a :class:`~tests.bench.stage.Stage` that returns a :class:`Result`; the result's name is the
function's. :func:`run` gives each a stage of its own, so that none measures what another one left behind.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.stage import Stage, stage

__all__ = ["Gate", "Result", "at_most", "exactly", "interleaved", "run", "table", "written"]

Turn = Callable[[], Awaitable[object]]
"""One unit of work that is timed."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a gate measured.

    Args:
        value: in ``unit``; ``x`` is a ratio of two times measured in the same run.
        goal: as the table shows it.
        note: what stands behind the value, for the table only.
    """

    name: str
    value: float
    unit: str
    goal: str
    met: bool
    note: str = field(default="", compare=False)


Gate = Callable[[Stage], Awaitable[Result]]


def at_most(name: str, value: float, unit: str, limit: float, note: str = "") -> Result:
    """Met when ``value`` is not above ``limit``; a value that is not a number is never met."""
    return Result(name, round(value, 3), unit, f"<= {limit:g}", value <= limit, note)


def exactly(name: str, value: float, unit: str, wanted: float, note: str = "") -> Result:
    """Met when ``value`` is ``wanted``."""
    return Result(name, round(value, 3), unit, f"= {wanted:g}", value == wanted, note)


async def interleaved(ours: Callable[[], Awaitable[Turn]], bare: Callable[[], Awaitable[Turn]], pairs: int) -> Pairs:
    """Time two kinds of work A B, B A, A B …, after one pair that only warms up.

    Each factory makes ready (not timed) what its turn then does (timed). Within a pair both are made ready in the order in which
    they are timed, so that neither finds what it needs warmer than the other does.
    """
    found = Pairs([], [])
    for index in range(pairs + 1):
        order = [(ours, found.ours), (bare, found.bare)]
        if index % 2:
            order.reverse()
        for turn, times in [(await ready(), times) for ready, times in order]:
            times.append(await _timed(turn))
    del found.ours[0], found.bare[0]
    return found


@dataclass(frozen=True, slots=True)
class Pairs:
    """Times in seconds, pair by pair."""

    ours: list[float]
    bare: list[float]

    @property
    def ratio(self) -> float:
        """The median of the pairwise ratios: what slowed the machine down slowed down both of a pair."""
        return statistics.median(a / b for a, b in zip(self.ours, self.bare, strict=True))

    def __str__(self) -> str:
        ours, bare = (statistics.median(times) * 1_000 for times in (self.ours, self.bare))
        return f"{ours:.1f} ms against {bare:.1f} ms, {len(self.ours)} pairs"


async def _timed(turn: Turn) -> float:
    started = time.perf_counter()
    await turn()
    return time.perf_counter() - started


def run(
    gates: Sequence[Gate], *, quick: bool = False, done: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Run the gates one after the other; ``done`` is called with each result as it comes."""
    results = []
    for gate in gates:
        gc.collect()  # else the next gate pays for what this one threw away
        with tempfile.TemporaryDirectory(prefix="deputize-bench-") as home:
            results.append(asyncio.run(_run(gate, Path(home), quick)))
        done(results[-1])
    return results


async def _run(gate: Gate, home: Path, quick: bool) -> Result:
    async with stage(home, quick=quick) as on:
        return await gate(on)


def table(results: Sequence[Result]) -> str:
    """The results for people."""
    rows = [("", "gate", "value", "goal", "measured")]
    rows += [("ok" if r.met else "NOT MET", r.name, f"{r.value:g} {r.unit}", r.goal, r.note) for r in results]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def written(results: Sequence[Result], path: Path) -> None:
    """The results for machines: a list of ``{"name", "value", "unit", "goal", "met"}``."""
    told = [{name: value for name, value in asdict(result).items() if name != "note"} for result in results]
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
