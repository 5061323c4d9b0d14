"""The command line as its users meet it, for tests of what it says when something is wrong."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from identity.cli import main

__all__ = ["ROOT", "deputize", "files", "refused"]

ROOT = Path(__file__).parents[1]


def deputize(*arguments: str, **settings: object) -> Result:
    """Run the command line with these settings: ``home`` for DEPUTIZE_HOME and so on."""
    environment = {f"DEPUTIZE_{name.upper()}": str(value) for name, value in settings.items()}
    result = CliRunner().invoke(main, arguments, env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(result: Result, exit_code: int, *told: str) -> None:
    """One line on standard error, nothing else, and the exit code."""
    lines = result.stderr.splitlines()
    assert (result.exit_code, len(lines), result.stdout) == (exit_code, 1, ""), result.stderr
    assert lines[0].startswith("deputize: ")
    assert lines[0].isprintable()
    for words in told:
        assert words in lines[0]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
