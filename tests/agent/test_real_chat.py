"""``python -m agent chat`` in a process of its own, with a pipe for a keyboard and people at browsers."""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from agent.world.installation import PersonRecord
from agent.world.person import Person
from identity import Principal

ROOT = Path(__file__).parents[2]
SECONDS = 60.0


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DEPUTIZE_", "OPENAI_"))}
    return {**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **more}


def command(home: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "agent", "chat", "--home", str(home), "--port", str(port), "--no-browser"]


class Chat:
    """A running chat: type lines, wait for what it prints."""

    def __init__(self, home: Path, port: int, **settings: str) -> None:
        self.home, self.url = home, f"http://127.0.0.1:{port}"
        self.said: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            command(home, port),
            cwd=home.parent,
            env=environment(**settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line that matches; what comes before it is read over."""
        while True:
            try:
                line = self._lines.get(timeout=SECONDS)
            except queue.Empty:
                raise AssertionError(f"{pattern!r} did not come:\n" + "\n".join(self.said)) from None
            self.said.append(line)
            if found := re.search(pattern, line):
                return found

    @asynccontextmanager
    async def person(self, username: str) -> AsyncIterator[Person]:
        known = json.loads((self.home / "world" / "people.json").read_text())[username]
        record = PersonRecord(username, known["name"], known["sub"], known["password"])
        person = Person(record, Principal("default", f"{self.url}/issuer", known["sub"], known["name"]))
        try:
            yield person
        finally:
            await person.close()


@contextmanager
def chatting(home: Path, **settings: str) -> Iterator[Chat]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chat = Chat(home, port, **settings)
    try:
        yield chat
    finally:
        chat.stop()


async def test_from_a_quote_to_an_approved_order_without_another_key_pressed(tmp_path: Path) -> None:
    with chatting(tmp_path / "home") as chat:
        chat.wait_for(r"deputize chat on the embedded world at http://127\.0\.0\.1:\d+ \(model: deputize-offline\)")
        chat.type("What is ACME trading at?")
        chat.wait_for(r"^bot> ACME: 98\.40 USD$")

        chat.type("Show my portfolio")
        chat.wait_for(r"^bot> Sign in:$")
        link = chat.wait_for(r"^ +(http\S+)$")[1]
        assert link.startswith(f"{chat.url}/issuer/authorize?")  # in one piece, however narrow the terminal
        async with chat.person("alice") as alice, httpx.AsyncClient(trust_env=False) as browser:
            came_back = await alice.sign_in({"url": link, "code": ""})
            page = await browser.get(came_back)
            assert (page.status_code, "Signed in" in page.text) == (200, True)
            chat.wait_for(r"^bot> You own:$")
            chat.wait_for(r"^bot> 12 ACME")
            again = await browser.get(came_back)
            assert (again.status_code, "unknown, used or expired" in again.text) == (400, True)

            chat.type("Buy 50 ACME at 100")
            code = chat.wait_for(r"^bot> This needs your approval: +\(code ([A-Z]{3}-\d{3})\)$")[1]
            link = chat.wait_for(r"^ +(http\S+)$")[1]
            assert code in await alice.read(link)
            await alice.approve({"url": link})
            chat.wait_for(r"^bot> Bought 50 ACME at 98\.40")
        chat.type("")
        chat.wait_for(r"^Bye\.$")
        assert chat.process.wait(SECONDS) == 0
        assert "Traceback" not in "\n".join(chat.said)


def test_the_end_of_the_input_is_a_goodbye(tmp_path: Path) -> None:
    with chatting(tmp_path / "home") as chat:
        assert chat.process.stdin is not None
        chat.process.stdin.close()
        chat.wait_for(r"^Bye\.$")
        assert chat.process.wait(SECONDS) == 0


def test_a_model_that_cannot_be_reached_is_told_and_the_conversation_goes_on(tmp_path: Path) -> None:
    nowhere = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "sk-x", "NO_PROXY": "127.0.0.1"}
    with chatting(tmp_path / "home", **nowhere) as chat:
        chat.wait_for(r"\(model: openai-chat\)")
        for _ in range(2):
            chat.type("hello")
            chat.wait_for(r"^The run failed\. .*Connection error")
        chat.type("")
        chat.wait_for(r"^Bye\.$")
        assert chat.process.wait(SECONDS) == 0
        assert "Traceback" not in "\n".join(chat.said)


def refused(home: Path, port: int, **more: str) -> str:
    """The one line that the chat ends with when it is used wrongly."""
    done = subprocess.run(
        command(home, port), cwd=home.parent, env=environment(**more), input="", capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("deputize: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused(tmp_path / "home", port)
    assert f"port {port} is taken" in told
    assert "another" in told


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1", "OPENAI_API_KEY is not"),
        ("DEPUTIZE_ISSUER", "https://issuer.example", "DEPUTIZE_ISSUER"),
    ],
)
def test_settings_that_contradict_each_other_are_told_in_one_line(
    tmp_path: Path, setting: str, value: str, told: str
) -> None:
    assert told in refused(tmp_path / "home", 0, **{setting: value})
