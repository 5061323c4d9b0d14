"""``langgraph dev`` in a process of its own, for tests that say ``real``, and what they share."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from agent.world.installation import PersonRecord
from agent.world.person import Person
from identity import Principal

__all__ = ["Server", "laid_out", "requests", "say", "settled"]

ROOT = Path(__file__).parents[2]


class Server:
    """``langgraph dev`` in a process of its own, started in a copy of what it serves; ``more`` is environment."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.folder = folder
        self._more = more
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "dev.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            str(Path(sys.executable).with_name("langgraph")),
            "dev",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "DEPUTIZE_"))},
            "DEPUTIZE_URL": self.url,
            "PYTHONPATH": str(self.folder),
            **self._more,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--no-browser", "--no-reload", "--n-jobs-per-worker", "10"],
                cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    async def ready(self) -> None:
        deadline = time.monotonic() + 90
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                try:
                    if (await client.get(f"{self.url}/ok")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                assert self.process is not None
                assert self.process.poll() is None, self.log.read_text()[-4000:]
                await asyncio.sleep(0.2)
        raise AssertionError(self.log.read_text()[-4000:])

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def person(self, username: str) -> Person:
        people = json.loads((self.folder / ".deputize" / "world" / "people.json").read_text())
        found = people[username]
        record = PersonRecord(username, found["name"], found["sub"], found["password"])
        return Person(record, Principal("default", f"{self.url}/issuer", found["sub"], found["name"]))


def laid_out(folder: Path) -> Path:
    """A copy of what ``langgraph.json`` serves."""
    for name in ("identity", "agent", "graphs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("langgraph.json", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


async def say(client: Any, thread: str, text: str) -> dict[str, Any]:
    state: dict[str, Any] = await client.runs.wait(
        thread, "assistant", input={"messages": [{"role": "user", "content": text}]}
    )
    return state


async def settled(client: Any, thread: str, text: str, seconds: float = 30) -> str:
    """The last message of a thread, once it contains ``text`` by the server's own doing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = await client.threads.get_state(thread)
        last = str(state["values"]["messages"][-1]["content"])
        if text in last and not state["next"]:
            return last
        await asyncio.sleep(0.2)
    raise AssertionError(f"{text!r} did not come: {await client.threads.get_state(thread)}")


def requests(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [request for item in state.get("__interrupt__") or () for request in item["value"]["requests"]]
