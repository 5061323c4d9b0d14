"""``deputize doctor``: what is wrong with an installation, and what its issuer can do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .output import json_option, tell
from .surroundings import Surroundings

if TYPE_CHECKING:
    from .findings import Finding, Report

__all__ = ["doctor"]


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Find what is wrong, and change nothing.

    Looks at settings, keys, database, issuer and login, all of them, and exits with 0 only if nothing is wrong.
    Says too how each step is done with this issuer: native (by it), ours (by deputize), impossible, or unknown.
    """
    from .checks import examine

    around: Surroundings = ctx.obj
    report = examine(
        env_file=around.env_file, folder=around.folder, clock=around.clock, mount=around.mount, given=around.given
    )
    facts = {
        "ok": report.ok,
        "findings": [asdict(finding) for finding in report.findings],
        "steps": {step.name: {"verdict": step.verdict, "reason": step.reason} for step in report.steps},
    }
    tell(as_json, facts, _lines(report))
    ctx.exit(0 if report.ok else 1)


def _lines(report: Report) -> list[str]:
    lines = [line for finding in report.findings for line in _finding(finding)]
    lines += ["", *(f"{step.name:10}{step.verdict:12}{step.reason}" for step in report.steps), ""]
    wrong = sum(finding.level == "fail" for finding in report.findings)
    if wrong:
        return [*lines, f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong."]
    return [*lines, "Nothing is wrong."]


def _finding(finding: Finding) -> list[str]:
    level = "FAIL" if finding.level == "fail" else finding.level
    line = f"{level:6}{finding.what:16}{finding.message}"
    return [line, f"{'':22}fix: {finding.fix}"] if finding.fix else [line]
