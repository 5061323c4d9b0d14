"""``python -m tests.docs``: write the parts of the documentation that are generated. ``tests/test_docs.py`` compares them.

A generated part stands between ``<!-- name:start -->`` and ``<!-- name:end -->``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

from identity.cli import main

__all__ = ["GENERATED", "ROOT", "rewritten"]

ROOT = Path(__file__).parents[1]
_WIDTH = 80


def commands() -> Iterator[tuple[str, str]]:
    """``(name, help text)`` of every command, as they are printed on a terminal of 80 columns."""

    def walk(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
        yield context.command_path, command.get_help(context)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                if found is not None and not found.hidden:
                    yield from walk(found, _context(found, name, context))

    yield from walk(main, _context(main, "deputize", None))


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    wide = {"terminal_width": _WIDTH, "max_content_width": _WIDTH}
    return click.Context(command, info_name=name, parent=parent, **{**command.context_settings, **wide})


def cli() -> str:
    """Every command's help, each under a heading of its own."""
    return "\n\n".join(f"### {name}\n\n```text\n{told}\n```" for name, told in commands())


def example(name: str) -> str:
    """What an example has that the same program without identity has not."""
    programs = [(ROOT / "examples" / f"{before}{name}.py").read_text(encoding="utf-8") for before in ("plain_", "")]
    changed = difflib.unified_diff(*(program.splitlines() for program in programs), n=1, lineterm="")
    shown = ("@@" if line.startswith("@@") else line.rstrip() for line in list(changed)[3:])
    return "```diff\n" + "\n".join(shown) + "\n```"


GENERATED: dict[str, dict[str, Callable[[], str]]] = {
    "docs/cli.md": {"cli": cli},
    "docs/placements.md": {name: partial(example, name) for name in ("create_agent", "tool_node")},
}
"""By file: the names of its generated parts, and what writes them."""


def rewritten(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """``text`` with its generated parts as they are now.

    Raises:
        ValueError: a part's markers are missing.
    """
    for name, write in parts.items():
        start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"there is not one {start} … {end}")
        inside = f"{start}\n\n{write()}\n\n{end}"
        text = re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _, new=inside: new, text, flags=re.S)
    return text


def write() -> None:
    for name, parts in GENERATED.items():
        path = ROOT / name
        path.write_text(rewritten(path.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    write()
