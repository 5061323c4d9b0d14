"""The programs in ``examples/``, started as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUOTE = '< {"symbol":"ACME","price":"98.40","currency":"USD"}'


def run(name: str, folder: Path) -> list[str]:
    """What an example prints, from another folder and with nothing set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DEPUTIZE_", "OPENAI_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    assert list(folder.iterdir()) == [], "it leaves nothing behind"
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["create_agent", "tool_node"])
def test_a_guarded_example_signs_in_asks_and_buys(name: str, tmp_path: Path) -> None:
    said = run(name, tmp_path)
    assert said[:3] == ["> What is ACME at?", QUOTE, "> Buy 50 ACME at 100"]
    assert [line.split()[1] for line in said[3:5]] == ["login", "approval"]
    filled = json.loads(said[5].removeprefix("< "))
    assert (filled["actor"], filled["symbol"], filled["quantity"]) == ("deputize-agent", "ACME", 50)
    assert len(said) == 6


@pytest.mark.parametrize("name", ["plain_create_agent", "plain_tool_node"])
def test_the_same_without_identity_is_turned_away_by_the_api(name: str, tmp_path: Path) -> None:
    said = run(name, tmp_path)
    assert said[:3] == ["> What is ACME at?", QUOTE, "> Buy 50 ACME at 100"]
    assert json.loads(said[3].removeprefix("< "))["error"] == "token_required"
    assert len(said) == 4


def test_the_whole_graph_answers_the_quote_and_makes_the_order(tmp_path: Path) -> None:
    said = run("assistant", tmp_path)
    assert [line.split()[1] for line in said if line.startswith(". ")] == ["login", "approval"]
    assert "12 ACME at 98.40" in said
    assert any(line.startswith("Bought 50 ACME at 98.40") for line in said)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_tried_here(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
    assert f'"{path.stem}"' in Path(__file__).read_text(encoding="utf-8")
