"""Bad input at the front door, where real sockets are needed: one line, the right exit code, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from agent.world import running
from identity.keyring import create_client_key
from tests.front_door import ROOT, deputize, files, refused
from tests.support import listening


def login(home: Path, url: str, **settings: object) -> Result:
    return deputize("login", "--device", embedded=1, url=url, home=home, **settings)


def test_an_issuer_that_is_not_there(tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        create_client_key(tmp_path / "world" / "agent-client.json")
        refused(login(tmp_path, url), 1, "did not answer", "Check the address and the network")


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (200, "<h1>Welcome</h1>", "text/html", "answered with a web page"),
        (404, "<h1>Not found</h1>", "text/html", "answered with a web page"),
        (502, "<h1>Bad gateway</h1>", "text/html", "unavailable (HTTP 502)"),
        (404, '{"detail": "not found"}', "application/json", "not the JSON object that it must"),
        (200, "[]", "application/json", "not the JSON object that it must"),
        (200, '{"issuer": "https://another.example"}', "application/json", "for another issuer"),
        (302, "", "text/plain", "HTTP 302"),
    ],
)
def test_an_issuer_that_answers_something_else(tmp_path: Path, status: int, body: str, kind: str, told: str) -> None:
    create_client_key(tmp_path / "world" / "agent-client.json")
    with listening(status, body, content_type=kind, location="https://elsewhere.example") as (url, _):
        before = files(tmp_path)
        refused(login(tmp_path, url), 1, told)
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before


def _missing(path: Path) -> None:
    path.unlink()


def _public_mode(path: Path) -> None:
    path.chmod(0o644)


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:20])


def _public_part(path: Path) -> None:
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "d"}))


def _another_key(path: Path) -> None:
    path.unlink()
    create_client_key(path)


def _nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "more", "exit_code", "told"),
    [
        (_missing, {}, 2, ("The agent's key", "is missing", "deputize keys client")),
        (_public_mode, {}, 2, ("read by others", "chmod 600")),
        (_cut, {}, 2, ("is not a private JWK", "backup")),
        (_public_part, {}, 2, ("public key only", "DEPUTIZE_CLIENT_KEY_FILE")),
        (_another_key, {}, 1, ("invalid_client",)),
        (_nothing, {"client_id": "stranger"}, 1, ("invalid_client",)),
    ],
)
async def test_an_agent_that_its_issuer_does_not_know(
    tmp_path: Path, harm: Callable[[Path], None], more: dict[str, Any], exit_code: int, told: tuple[str, ...]
) -> None:
    async with running(tmp_path / "served") as world:
        home, key = tmp_path / "home", tmp_path / "home" / "client.json"
        home.mkdir()
        key.write_bytes((tmp_path / "served" / "world" / "agent-client.json").read_bytes())
        key.chmod(0o600)
        harm(key)
        before = files(home)
        result = await asyncio.to_thread(login, home, world.url, client_key_file=key, **more)
        refused(result, exit_code, *told)
        after = files(home)
        assert {name: after[name] for name in before} == before


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with listening() as (url, _):
        port = url.rsplit(":", 1)[1]
        process = subprocess.run(
            [sys.executable, "-m", "agent", "chat", "--no-browser", "--port", port, "--home", str(tmp_path / "home")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        f"deputize: The port {port} is taken. Stop what listens there, or choose another one: PORT=…\n"
    )
    assert not (tmp_path / "home").exists()


def test_a_redirect_port_that_is_taken(tmp_path: Path) -> None:
    with listening() as (url, _):
        result = deputize("login", "--no-browser", embedded=1, home=tmp_path / "home", redirect_uri=f"{url}/callback")
    refused(result, 2, "of DEPUTIZE_REDIRECT_URI is taken")
