"""``python -m tests.bench [--quick] [NAME …]``: measure, print a table, write ``bench.json``.

Exit code 0 if every gate is met, 1 if one is not, 2 if no gate has that name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench import concurrency, placements, serving, turns
from tests.bench.harness import Gate, run, table, written

ROOT = Path(__file__).parents[2]

# Each gate is a function that returns a Result called like itself. A new one is written beside its like, and named here.
GATES: list[Gate] = [
    turns.guarded_warm_sqlite,
    turns.guarded_cold_sqlite,
    turns.thread_growth_500,
    placements.middleware_warm,
    concurrency.single_flight_requests,
    concurrency.loop_stall_ms,
    serving.guard_overhead,
    serving.wake_enqueue_ms,
    serving.wake_start_s,
    serving.idle_1000_cpu_pct,
]


def main(
    arguments: Sequence[str] | None = None, gates: Sequence[Gate] = GATES, path: Path = ROOT / "bench.json"
) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure, as ratios inside one run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only gates whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a fifth of the samples: to look, not to judge")
    given = parser.parse_args(arguments)
    chosen = [gate for gate in gates if not given.names or any(name in gate.__name__ for name in given.names)]
    if not chosen:
        print(f"There is no such gate. There are: {', '.join(gate.__name__ for gate in gates)}", file=sys.stderr)
        return 2
    results = run(chosen, quick=given.quick, done=lambda result: print(f"measured {result.name}", file=sys.stderr))
    print(table(results))
    written(results, path)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
