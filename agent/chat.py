"""``make chat``: a terminal chat with the assistant, on an embedded world of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import uuid
import webbrowser
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from rich.console import Console

from agent.model import chat_model
from agent.tools import trading_tools
from agent.world import Running, running
from graphs.assistant import build_assistant
from identity import DeputizeError
from identity.terminal import Callback
from identity.text import printable

__all__ = ["chat"]

_HELP = "Ask for a quote, your portfolio, or to buy shares. An empty line or Ctrl-D ends."


async def chat(home: Path, port: int, *, open_browser: bool) -> int:
    """Talk until the person has had enough; returns the exit code."""
    console = Console(highlight=False)
    model = await asyncio.to_thread(chat_model)
    with Callback() as callback:
        async with (
            running(home, port, login="browser", redirect_uri=callback.redirect_uri, visitor="terminal") as world,
            AsyncSqliteSaver.from_conn_string(str(home / "chat.db")) as saver,
        ):
            identity = world.identity
            callback.finish = lambda query: identity.transport.call(identity.asking.browser_callback, query)
            graph = build_assistant(model, trading_tools(world.url), identity, saver)
            talk = _Talk(console, world, graph, open_browser=open_browser)
            talk.greet(model._llm_type)
            return await talk.run()


class _Talk:
    def __init__(self, console: Console, world: Running, graph: Any, *, open_browser: bool) -> None:
        self._console = console
        self._world = world
        self._graph = graph
        self._open_browser = open_browser
        self._config: Any = {"configurable": {"thread_id": str(uuid.uuid4())}}

    def greet(self, model: str) -> None:
        lines = [f"deputize chat on the embedded world at {self._world.url} (model: {model})"]
        lines.append("People you can sign in as:")
        for person in self._world.world.installation.people.values():
            lines.append(f"  {person.username:6}  {person.password}   {person.name}")
        for line in [*lines, _HELP]:
            self._console.print(line, markup=False, soft_wrap=True)

    async def run(self) -> int:
        while True:
            text = (await self._line()).strip()
            if not text:
                self._console.print("Bye.")
                return 0
            try:
                await self._turn(text)
            except DeputizeError as error:
                self._console.print(f"deputize: {error}", style="red", markup=False)

    async def _line(self) -> str:
        """What the person types; empty at the end. From a pipe, the lines are shown too."""
        if not sys.stdin.isatty():
            piped: str = await asyncio.to_thread(sys.stdin.readline)
            if piped:
                self._console.print(f"\nyou> {piped.strip()}", markup=False)
            return piped
        loop = asyncio.get_running_loop()
        typed: asyncio.Future[str] = loop.create_future()

        def hear(line: str) -> None:
            if not typed.done():  # Ctrl-C was faster
                typed.set_result(line)

        def read() -> None:
            try:
                line = self._console.input("\nyou> ")
            except EOFError:
                line = ""
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(hear, line)

        # A thread that nobody waits for: asyncio's own would hold Ctrl-C up until the next Enter.
        threading.Thread(target=read, name="deputize-prompt", daemon=True).start()
        return await typed

    async def _turn(self, text: str) -> None:
        state = await self._graph.ainvoke({"messages": [{"role": "user", "content": text}]}, self._config)
        while interrupts := state.get("__interrupt__"):
            self._show([request for item in interrupts for request in item.value["requests"]])
            with self._console.status("waiting for you in the browser ..."):
                state = await self._world.identity.resume(self._graph, self._config)
        for line in str(state["messages"][-1].text).splitlines():
            self._console.print(f"bot> {printable(line, limit=2_000)}", markup=False)

    def _show(self, requests: list[dict[str, Any]]) -> None:
        for request in requests:
            what = "Sign in" if request["kind"] == "login" else "This needs your approval"
            code = f"   (code {request['code']})" if request["code"] else ""
            self._console.print(f"bot> {what}:{code}", markup=False)
            self._console.print(f"     {request['url']}", markup=False, soft_wrap=True)
            if self._open_browser and sys.stdout.isatty():
                webbrowser.open(request["url"])
