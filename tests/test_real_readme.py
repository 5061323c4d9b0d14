"""The runnable examples of the README, run as it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(
    r"^<!-- runnable -->\n```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S
)


def test_there_is_one() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_a_runnable_example_does_what_the_readme_says(code: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DEPUTIZE_", "OPENAI_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert kinds == ["login", "approval", "Bought"]  # "It prints a login, an approval, and the filled order."
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["example.py"]
