"""``python -m agent demo``: the whole story in processes of its own, and that it does not succeed when a step does not hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DEPUTIZE_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def with_a_change(change: str) -> tuple[str, str]:
    """The demo's own command, in a process where something was changed before it starts."""
    return (
        "-c",
        f"import sys\n{change}\nfrom agent.__main__ import main\nsys.argv[1:] = ['demo', '--json']\nsys.exit(main())",
    )


@pytest.mark.case("B18", "E11", "E13", "E18")
def test_the_story_is_verified_step_by_step(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "agent", "demo", "--json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    story = json.loads(done.stdout)
    assert story["ok"] is True
    assert [step["step"] for step in story["steps"]] == list(range(1, 11))
    assert all(step["ok"] and len(step["verified"]) >= 2 and "failed" not in step for step in story["steps"])
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []  # it lives in a folder of its own, and takes that with it


@pytest.mark.parametrize(
    ("change", "steps", "failed"),
    [
        ("import agent.world.trading as t; t.PRICES['ACME'] = '97.00'", 1, "the price was answered"),
        (
            "import agent.world.person as p\n"
            "async def sign_in(self, request): raise RuntimeError('the page has changed')\n"
            "p.Person.sign_in = sign_in",
            2,
            "RuntimeError: the page has changed",
        ),
        # What the story is there to notice.
        (
            "import agent.tools as t; from identity import approval\n"
            "t.approval = lambda *a, **k: approval(when=lambda quantity: False)",
            4,
            "an approval was asked for",
        ),
        (
            "import logging, identity.broker as b\n"
            "exchange = b.Broker._exchange\n"
            "async def leaks(*given, **more):\n"
            "    issued = await exchange(*given, **more)\n"
            "    logging.getLogger('x').debug('got %s', issued.access_token.reveal())\n"
            "    return issued\n"
            "b.Broker._exchange = leaks",
            10,
            "a token is in demo.log",
        ),
    ],
    ids=["a wrong price", "a page that nobody can use", "an agent that does not ask", "a token in the log"],
)
def test_a_step_that_does_not_hold_ends_the_story_with_exit_code_1(
    tmp_path: Path, change: str, steps: int, failed: str
) -> None:
    done = run(tmp_path, *with_a_change(change))
    assert done.returncode == 1, done.stderr[-3000:]
    story = json.loads(done.stdout)
    assert story["ok"] is False
    assert [step["ok"] for step in story["steps"]] == [True] * (steps - 1) + [False]
    assert story["steps"][-1]["failed"] == failed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case("G7")
def test_the_settings_of_a_deployment_end_it_in_one_line_with_exit_code_2(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "agent", "demo", DEPUTIZE_ISSUER="https://issuer.example")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("deputize: ")
    assert done.stderr.count("\n") == 1
    assert "DEPUTIZE_ISSUER" in done.stderr
