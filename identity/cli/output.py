"""What commands print. Facts go to standard output, as lines or as one JSON document; everything else to standard error.

A failure is one line on standard error and the exit code of its error: 2 for a wrong use, 1 for anything else. With
``--json`` the document then is ``{"ok": false, "error": …, "message": …, "hint": …}``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import click

from ..errors import DeputizeError
from ..text import printable

__all__ = ["Group", "json_option", "left", "note", "table", "tell", "waiting"]

_JSON = "deputize.json"
_INTERRUPTED = 130

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class Group(click.Group):
    """A group whose commands fail with one line."""

    group_class = type  # groups in this one are of this kind too

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Whether failures are told as JSON is known before anything can fail."""
        ctx.meta.setdefault(_JSON, "--json" in args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except DeputizeError as error:
            _fail(ctx, error.code, error.message, error.hint, error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted", "Stopped", "", _INTERRUPTED)
        except click.UsageError as error:
            if ctx.meta[_JSON]:
                _fail(ctx, "usage", error.format_message(), "", error.exit_code)
            raise


def _fail(ctx: click.Context, code: str, message: str, hint: str, exit_code: int) -> NoReturn:
    if ctx.meta[_JSON]:
        click.echo(json.dumps({"ok": False, "error": code, "message": message, "hint": hint}, indent=2))
    click.echo(f"deputize: {message}. {hint}".rstrip() if hint else f"deputize: {message}", err=True)
    ctx.exit(exit_code)


def tell(as_json: bool, facts: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Print what a command found out: ``facts`` for a program, or ``lines`` for a person."""
    if as_json:
        click.echo(json.dumps({"ok": True, **facts}, indent=2))
    else:
        for line in lines:
            click.echo(line)


def note(line: str) -> None:
    """Say something beside the facts: what to do meanwhile."""
    click.echo(line, err=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows below their headings, in columns. Cells are shown as they are: escape what others wrote."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def left(seconds: float) -> str:
    """A length of time, for people."""
    whole = max(0, int(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


@asynccontextmanager
async def waiting(what: str, until: float, clock: Callable[[], float]) -> AsyncIterator[None]:
    """Say that something is waited for, until the block ends: a clock on a terminal, one line anywhere else."""
    if not sys.stderr.isatty():
        note(f"Waiting for {what}, at most {left(until - clock())}. Ctrl-C stops.")
        yield
        return

    async def tick() -> None:
        while True:
            click.echo(f"\r\x1b[KWaiting for {what}, {left(until - clock())} left. Ctrl-C stops.", err=True, nl=False)
            await asyncio.sleep(1)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        click.echo("\r\x1b[K", err=True, nl=False)


def shown(text: str, limit: int = 60) -> str:
    """What somebody else wrote, for a line of ours; something visible even if it is empty."""
    return printable(text, limit=limit) or "-"
