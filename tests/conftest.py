"""What every test shares: an injected clock, a world without sockets, and a guard that unit tests open none."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import settings

from tests.support import Clock, Inside, inside

settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("sweep", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _no_sockets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests whose file does not say ``real`` neither listen nor connect."""
    if "real" in request.path.stem:
        return

    def refuse(self: Any, address: object, *rest: object) -> None:
        raise AssertionError(f"A unit test opened a socket to {address}")

    for name in ("bind", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests sets nothing."""
    for name in list(os.environ):
        if name.startswith(("DEPUTIZE_", "OPENAI_", "LANGSMITH_", "LANGCHAIN_")):
            monkeypatch.delenv(name)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def world(tmp_path: Path, clock: Clock) -> AsyncIterator[Inside]:
    """The embedded world in this process: real pages, tokens and databases, no sockets, and ``clock``."""
    async with inside(tmp_path, clock) as up:
        yield up
