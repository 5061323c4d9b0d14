"""The browser login at the terminal, over loopback: a real listener, real pages, a real process that is interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from agent.world import Running, running
from identity import Principal, SettingsError
from identity.cli import main
from identity.cli.surroundings import Surroundings
from identity.sessions import Place
from identity.terminal import Callback


@pytest_asyncio.fixture
async def up(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as world:
        yield world


def around(up: Running, home: Path, browse: Any, **given: Any) -> Surroundings:
    settings = {"embedded": True, "url": up.url, "home": home, **given}
    return Surroundings(user=lambda: "sam", browse=browse, given=settings)


async def run(surroundings: Surroundings, *args: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, main, args, obj=surroundings)


def browser(up: Running, pages: list[httpx.Response], username: str = "alice") -> Any:
    """What opens a page: one of the people, who agrees there and goes back where the issuer sends the browser."""
    loop = asyncio.get_running_loop()

    async def visit(url: str) -> None:
        back = await up.person(username).sign_in({"url": url})
        async with httpx.AsyncClient(trust_env=False) as client:
            pages.append(await client.get(back))

    def browse(url: str) -> bool:
        asyncio.run_coroutine_threadsafe(visit(url), loop)
        return True

    return browse


async def test_a_real_browser_signs_in_and_is_told_so(up: Running, tmp_path: Path) -> None:
    pages: list[httpx.Response] = []
    desk = around(up, tmp_path, browser(up, pages))
    signed_in = await run(desk, "login", "--json")
    assert signed_in.exit_code == 0, signed_in.output
    assert json.loads(signed_in.stdout)["name"] == "Alice (trader)"
    assert re.search(rf"{re.escape(up.url)}/issuer/authorize\?\S*code_challenge_method=S256", signed_in.stderr)
    assert (pages[0].status_code, "Signed in" in pages[0].text) == (200, True)
    session = up.identity.sessions.of(Place("default", "terminal", "sam"))
    assert session is not None
    assert session.principal == up.person("alice").principal
    assert json.loads((await run(desk, "whoami", "--json")).stdout)["name"] == "Alice (trader)"


async def test_a_real_port_that_was_registered_is_the_one_that_is_listened_on(up: Running, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pages: list[httpx.Response] = []
    desk = around(up, tmp_path, browser(up, pages), redirect_uri=f"http://127.0.0.1:{port}/callback")
    signed_in = await run(desk, "login")
    assert signed_in.exit_code == 0, signed_in.output
    assert str(pages[0].url).startswith(f"http://127.0.0.1:{port}/callback?")


async def test_a_real_port_that_is_taken_is_told_by_login_and_doctor(up: Running, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        desk = around(up, tmp_path, lambda url: True, redirect_uri=f"http://127.0.0.1:{port}/callback")
        refused = await run(desk, "login")
        report = json.loads((await run(desk, "doctor", "--json")).stdout)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"deputize: The port {port} of DEPUTIZE_REDIRECT_URI is taken. ")
    assert [f["code"] for f in report["findings"] if f["level"] == "fail"] == ["port"]


@pytest.mark.parametrize(
    "at", ["http://192.0.2.1/callback", "https://127.0.0.1/callback", "http://127.0.0.1/callback?x=1"]
)
def test_a_real_listener_is_for_this_machine_only(at: str) -> None:
    with pytest.raises(SettingsError):
        Callback(at=at)


# -- a process of its own ----------------------------------------------------------------------------------------------


@pytest.fixture
def login(up: Running, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEPUTIZE_")}
    environment |= {"DEPUTIZE_EMBEDDED": "1", "DEPUTIZE_URL": up.url, "DEPUTIZE_HOME": str(tmp_path)}
    program = [sys.executable, "-c", "from identity.cli import main; main()", "login", "--no-browser"]
    process = subprocess.Popen(
        program,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    yield process
    process.kill()
    process.communicate()


def link(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    while line := process.stderr.readline():
        if "/authorize?" in line:
            return line.strip()
    raise AssertionError("no link was shown")


def waiting(up: Running) -> list[Any]:
    rows = up.identity.database.read("SELECT thread FROM requests WHERE state = 'pending'")
    return [row[0] for row in rows]


async def test_real_ctrl_c_leaves_nothing_half_done(up: Running, login: subprocess.Popen[str]) -> None:
    url = await asyncio.to_thread(link, login)
    assert len(waiting(up)) == 1
    login.send_signal(signal.SIGINT)
    _, told = await asyncio.to_thread(login.communicate, timeout=20)
    assert login.returncode == 130
    assert told.splitlines()[-1] == "deputize: Stopped"
    assert "Traceback" not in told
    assert waiting(up) == []
    back = await up.person("alice").sign_in({"url": url})
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(back)
    assert up.identity.vault.grants_of(up.person("alice").principal) == []


async def test_a_real_process_ends_by_itself_when_the_browser_has_come_back(
    up: Running, login: subprocess.Popen[str]
) -> None:
    back = await up.person("bob").sign_in({"url": await asyncio.to_thread(link, login)})
    async with httpx.AsyncClient(trust_env=False) as client:
        again = [await client.get(back) for _ in range(2)]
    assert [page.status_code for page in again] == [200, 400], "the link serves once"
    out, _ = await asyncio.to_thread(login.communicate, timeout=20)
    assert (login.returncode, out) == (0, "Signed in as Bob (analyst), for 7 h 59 min.\n")
    bob: Principal = up.person("bob").principal
    assert len(up.identity.vault.grants_of(bob)) == 1
