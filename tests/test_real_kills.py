"""Real processes that are killed at every boundary of an effect, and started again: no order is made twice (casebook E6)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.world import Running, running
from identity.sessions import Place
from tests.kills import BOUNDARIES

ROOT = Path(__file__).parents[1]
SWEEP = os.environ.get("HYPOTHESIS_PROFILE") == "sweep"
TRIALS = 400 if SWEEP else len(BOUNDARIES)
LATER = ("checkpoint", "writes")
"""Boundaries that a turn passes several times."""


class Turns:
    """The process that takes turns."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.killed = 0

    def take(self, **asked: Any) -> dict[str, Any] | None:
        """What a turn ended with; ``None`` if it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that takes turns has ended"
        ended: dict[str, Any] | None = json.loads(line)
        self.killed += ended is None
        return ended


@contextmanager
def turns(home: Path) -> Iterator[Turns]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kills", str(home)],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield Turns(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0


async def sign_in(up: Running) -> dict[str, Any]:
    """alice signs in, once: her grant serves the threads that she begins. Her principal's fields."""
    identity, alice = up.identity, up.person("alice")
    place = Place("default", "assistant", "sign-in")
    scopes = ("portfolio:read", "orders:write")
    request = await identity.transport.acall(identity.asking.login, place, alice.principal, "m1", scopes)
    await alice.sign_in(request.shown())
    await identity.transport.acall(identity.asking.wait, place)
    assert identity.sessions.of(place) is not None
    return {name: getattr(alice.principal, name) for name in ("tenant", "issuer", "subject", "name")}


@pytest.mark.case("E6", "E24")
async def test_a_process_killed_at_any_boundary_and_started_again_makes_no_order_twice(tmp_path: Path) -> None:
    chance = random.Random(20261125)
    async with running(tmp_path) as up:
        principal = await sign_in(up)
        outcomes: Counter[str] = Counter()
        with turns(tmp_path) as process:
            for number in range(TRIALS):
                boundary = BOUNDARIES[number % len(BOUNDARIES)]
                how = "queued" if number // len(BOUNDARIES) % 2 == number % 2 else "program"
                # With "exit" nothing is stored on the way: a program that says its message again has said it twice. A server
                # starts the same run again.
                durabilities = ["async", "sync", "exit"] if how == "queued" else ["async", "sync"]
                asked = {
                    "url": up.url,
                    "thread": f"kill-{number}",
                    "text": "Buy 2 ACME at 100",
                    "principal": principal,
                    "how": how,
                    "durability": chance.choice(durabilities) if SWEEP else "async",
                }
                before = len(up.orders())
                left = [(boundary, nth(boundary, chance))]
                if SWEEP and chance.random() < 0.3:  # and once more, while it recovers
                    again = chance.choice(BOUNDARIES)
                    left.append((again, nth(again, chance)))
                ended = None
                for where, times in left:
                    ended = await asyncio.to_thread(process.take, boundary=where, nth=times, **asked)
                    if ended is not None:
                        break
                if ended is None:
                    ended = await asyncio.to_thread(process.take, boundary="", nth=0, **asked)
                assert ended is not None
                made = len(up.orders()) - before
                sent = (tmp_path / "sent.txt").read_text().split().count(asked["thread"])
                where_it_was = f"{left} {asked['how']} {asked['durability']}: {ended}"
                assert made <= 1, f"bought twice: {where_it_was}"
                assert sent <= 1, f"sent twice: {where_it_was}"
                assert ended["next"] == [], where_it_was
                assert ended["told"], where_it_was
                bought = any("Bought 2 ACME" in told for told in ended["told"])
                assert made == 1 or not bought, f"told that it was bought: {where_it_was}"
                outcomes["done" if bought else "unknown"] += 1
            assert process.killed >= TRIALS * 3 // 4, "they were not killed where they should have been"
        states = Counter(row[0] for row in up.identity.database.read("SELECT state FROM effects"))
        assert set(states) <= {"done", "unknown"}
        assert outcomes["done"]
        assert outcomes["unknown"]


def nth(boundary: str, chance: random.Random) -> int:
    return chance.randint(1, 6) if boundary.endswith(LATER) else 1
