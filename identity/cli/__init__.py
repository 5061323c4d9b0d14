"""``deputize``: the command line. Light: help loads no graph library; each command imports what it needs."""

from __future__ import annotations

from pathlib import Path

import click

from .doctor import doctor
from .keys import keys
from .output import Group
from .people import approvals, login, logout, sessions, whoami
from .project import init
from .surroundings import Surroundings

__all__ = ["main"]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deputize")
@click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read settings from this file too, such as .env. The environment comes first.",
)
@click.pass_context
def main(ctx: click.Context, env_file: Path | None) -> None:
    """Identity for AI agents, on LangGraph.

    Settings come from the environment (DEPUTIZE_...); docs/settings.md lists them. Every command takes --json.
    """
    ctx.obj = ctx.obj or Surroundings()
    if env_file is not None:
        ctx.obj.env_file = env_file


for command in (init, keys, login, logout, whoami, sessions, approvals, doctor):
    main.add_command(command)
