"""What ``deputize doctor`` has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from ..errors import DeputizeError
from ..keyring import KeyRing
from ..oauth.client import Client
from ..oauth.metadata import ServerMetadata
from ..settings import Settings
from .steps import Step

__all__ = ["Examination", "Finding", "Report"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        fix: what to do about it; only what is wrong has one.
        code: a stable word for machines.
    """

    level: Literal["ok", "note", "fail"]
    what: str
    message: str
    fix: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found."""

    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. A step that this issuer cannot do is no mistake."""
        return all(finding.level != "fail" for finding in self.findings)


@dataclass
class Examination:
    """What is known so far. Each check adds to it.

    Args:
        clock: unix seconds.
        mount: replaces the network.
        folder: where the command was called: what lies there says what was forgotten.
    """

    clock: Callable[[], float]
    mount: httpx.AsyncBaseTransport | None
    folder: Path
    findings: list[Finding] = field(default_factory=list)
    settings: Settings | None = None
    ring: KeyRing | None = None
    client: Client | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    server: ServerMetadata | None = None

    def ok(self, what: str, message: str) -> None:
        self.findings.append(Finding("ok", what, message))

    def note(self, what: str, message: str) -> None:
        self.findings.append(Finding("note", what, message))

    def fail(self, what: str, code: str, message: str, fix: str) -> None:
        self.findings.append(Finding("fail", what, message, fix, code))

    @contextmanager
    def failing(self, what: str, code: str = "", fix: str = "") -> Iterator[None]:
        """What the block raises is wrong; ``fix`` in place of the error's own hint."""
        try:
            yield
        except DeputizeError as error:
            self.fail(what, code or error.code, error.message, fix or error.hint)
