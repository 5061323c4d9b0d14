"""The command line's manners: light, plain, one JSON document, one line for a failure."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from identity.cli import main
from identity.cli.output import left, table, waiting

HEAVY = ("langgraph", "langchain_core", "langchain", "authlib", "sqlite_utils", "httpx", "joserfc", "pydantic")


def commands(group: Any = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


def test_these_are_the_commands() -> None:
    assert sorted(" ".join(path) for path in COMMANDS) == [
        "approvals list",
        "approvals open",
        "doctor",
        "init",
        "keys client",
        "keys new",
        "login",
        "logout",
        "sessions end",
        "sessions list",
        "whoami",
    ]


def test_help_loads_nothing_heavy() -> None:
    calls = [["--help"], ["--version"], *([*path, "--help"] for path in COMMANDS)]
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom identity.cli import main\n"
        f"for call in {calls!r}:\n    assert CliRunner().invoke(main, call).exit_code == 0, call\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_says_what_it_does_and_has_json(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    assert len(command.get_short_help_str(200)) <= 70, "its first sentence fits into the list of commands"
    assert [o.name for o in command.params if "--json" in o.opts] == ["as_json"]
    assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.parametrize(
    "path", [path for path in COMMANDS if path not in (("init",), ("doctor",))], ids=lambda path: " ".join(path)
)
def test_a_failure_is_one_line_and_with_json_a_document_too(path: tuple[str, ...]) -> None:
    given = [*path, *(["abc"] if path[-1] in ("end", "open") else [])]
    plain, told = CliRunner().invoke(main, given), CliRunner().invoke(main, [*given, "--json"])
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert plain.stderr.startswith("deputize: deputize is not configured: nothing is set")
    assert plain.stderr.count("\n") == 1
    document = json.loads(told.stdout)
    assert (told.exit_code, told.stderr) == (2, plain.stderr)
    assert (document["ok"], document["error"]) == (False, "settings")
    assert plain.stderr == f"deputize: {document['message']}. {document['hint']}\n"


def test_a_wrong_use_is_a_document_too() -> None:
    told = CliRunner().invoke(main, ["approvals", "open", "--json"])
    assert told.exit_code == 2
    assert json.loads(told.stdout) == {
        "ok": False,
        "error": "usage",
        "message": "Missing argument 'ID'.",
        "hint": "",
    }
    plain = CliRunner().invoke(main, ["approvals", "open"])
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert "Missing argument 'ID'." in plain.stderr


def test_an_env_file_that_is_named_is_read_and_the_environment_comes_first(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = tmp_path / "keys" / "ring.json"
    (tmp_path / ".env").write_text(
        f"OPENAI_API_KEY=x\nDEPUTIZE_ISSUER=https://a.example\nDEPUTIZE_CLIENT_ID=a\nDEPUTIZE_DATA_DIR={tmp_path}/data\n"
        f"DEPUTIZE_CLIENT_KEY_FILE={tmp_path}/keys/a.json\nDEPUTIZE_KEY_FILE={tmp_path}/keys/lost.json\n"
    )
    monkeypatch.setenv("DEPUTIZE_KEY_FILE", str(ring))
    made = CliRunner().invoke(main, ["--env-file", str(tmp_path / ".env"), "keys", "new", "--json"])
    assert json.loads(made.stdout) == {"ok": True, "key_file": str(ring)}
    assert ring.exists()


def test_an_env_file_that_is_not_there_is_a_wrong_use() -> None:
    refused = CliRunner().invoke(main, ["--env-file", "/nowhere/.env", "whoami"])
    assert refused.exit_code == 2
    assert "does not exist" in refused.stderr


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_lengths_of_time_are_told_for_people(seconds: float, told: str) -> None:
    assert left(seconds) == told


def test_a_table_lines_up_its_columns_without_trailing_spaces() -> None:
    assert table(("A", "LONG", ""), [("long cell", "x", ""), ("y", "z", "end")]) == [
        "A          LONG",
        "long cell  x",
        "y          z     end",
    ]


async def test_on_a_terminal_a_clock_is_shown_and_wiped_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    async with waiting("the browser", 700.0, lambda: 100.0):
        await asyncio.sleep(0)
    assert screen.getvalue() == "\r\x1b[KWaiting for the browser, 10 min 00 s left. Ctrl-C stops.\r\x1b[K"
