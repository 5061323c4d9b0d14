"""The benches' harness: what it tells, and that its gates can fail."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from identity.broker import Broker
from tests.bench import concurrency
from tests.bench import stage as stages
from tests.bench.__main__ import GATES, main
from tests.bench.harness import Pairs, Result, at_most, exactly, interleaved
from tests.bench.stage import Stage, stage, turn


async def fast_enough(on: Stage) -> Result:
    return at_most("fast_enough", 1.10, "x", 1.25, "a note")


async def too_slow(on: Stage) -> Result:
    return at_most("too_slow", 1.30, "x", 1.25)


def test_it_writes_what_was_measured_and_succeeds_when_every_gate_is_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], [fast_enough], tmp_path / "bench.json") == 0
    assert json.loads((tmp_path / "bench.json").read_text()) == [
        {"name": "fast_enough", "value": 1.1, "unit": "x", "goal": "<= 1.25", "met": True}
    ]
    assert "fast_enough" in capsys.readouterr().out


def test_one_gate_that_is_not_met_fails_the_run_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick"], [fast_enough, too_slow], tmp_path / "bench.json") == 1
    assert [r["met"] for r in json.loads((tmp_path / "bench.json").read_text())] == [True, False]
    assert next(line for line in capsys.readouterr().out.splitlines() if "too_slow" in line).startswith("NOT MET")


def test_a_name_picks_gates_and_an_unknown_one_is_used_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fast"], [fast_enough, too_slow], tmp_path / "bench.json") == 0
    assert main(["nothing_like_it"], [fast_enough, too_slow], tmp_path / "none.json") == 2
    assert "too_slow" in capsys.readouterr().err
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("result", "met"),
    [
        (at_most("a", 1.25, "x", 1.25), True),
        (at_most("a", 1.2500001, "x", 1.25), False),
        (at_most("a", float("nan"), "x", 1.25), False),
        (exactly("a", 1, "requests", 1), True),
        (exactly("a", 0, "requests", 1), False),
    ],
)
def test_a_goal_is_compared_before_the_value_is_rounded(result: Result, met: bool) -> None:
    assert result.met is met


def test_a_ratio_is_the_median_of_its_pairs_and_not_the_ratio_of_medians() -> None:
    assert Pairs([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]).ratio == 2.0


async def test_pairs_alternate_and_the_first_one_only_warms_up() -> None:
    ran: list[str] = []

    async def ready(name: str) -> Any:
        async def work() -> None:
            ran.append(name)

        return work

    pairs = await interleaved(lambda: ready("ours"), lambda: ready("bare"), 2)
    assert ran == ["ours", "bare", "bare", "ours", "ours", "bare"]
    assert len(pairs.ours) == len(pairs.bare) == 2


def test_the_gates_of_the_issues_are_registered_once_each() -> None:
    names = [gate.__name__ for gate in GATES]
    assert len(names) == len(set(names))
    assert set(names) >= {
        "guarded_warm_sqlite",
        "guarded_cold_sqlite",
        "thread_growth_500",
        "single_flight_requests",
        "loop_stall_ms",
    }


async def test_both_graphs_do_the_same_work(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        thread = await on.thread(3)
        kinds = []
        for graph in (on.bare, on.ours):
            await turn(graph, thread)
            state = await graph.aget_state(stages.config(thread))
            kinds.append([(m.type, m.text, len(getattr(m, "tool_calls", []))) for m in state.values["messages"]])
        assert len(kinds[0]) == 16
        assert kinds[0] == kinds[1]
        assert on.issuer.asked == ["refresh_token", "token-exchange"]


async def test_the_stall_of_a_loop_that_somebody_blocks_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = stages.Stub._agenerate

    async def blocks(self: Any, messages: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.06)  # noqa: ASYNC251 - what the gate is there to find
        return await answers(self, messages)

    monkeypatch.setattr(concurrency, "_THREADS", 2)
    monkeypatch.setattr(stages.Stub, "_agenerate", blocks)
    async with stage(tmp_path) as on:
        result = await concurrency.loop_stall_ms(on)
    assert result.value > 50
    assert not result.met


@pytest.mark.parametrize("shared", [True, False])
async def test_refreshes_that_are_not_shared_are_counted(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def alone(self: Broker, key: str, start: Any) -> Any:
        return await start()

    monkeypatch.setattr(concurrency, "_THREADS", 5)
    if not shared:
        monkeypatch.setattr(Broker, "_once", alone)
    async with stage(tmp_path) as on:
        result = await concurrency.single_flight_requests(on)
    assert result.met is shared
    assert shared or result.value > 1
