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
from agent.tools import research_tools, trading_tools
from agent.world import Running, running
from graphs.assistant import build_assistant
from identity import DeputizeError
from identity.terminal import Callback
from identity.text import printable

__all__ = ["chat"]

_LOOK = 1.0
_HELP = "Ask for a quote, a forecast, your portfolio, or to buy shares. An empty line or Ctrl-D ends."


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
            tools = [*trading_tools(world.url), *research_tools(identity)]
            graph = build_assistant(model, tools, identity, saver)
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
        self._shown: set[str] = set()
        self._deferred: set[str] = set()

    def greet(self, model: str) -> None:
        lines = [f"deputize chat on the embedded world at {self._world.url} (model: {model})"]
        lines.append("People you can sign in as:")
        for person in self._world.world.installation.people.values():
            lines.append(f"  {person.username:6}  {person.password}   {person.name}")
        for line in [*lines, _HELP]:
            self._console.print(line, markup=False, soft_wrap=True)

    async def run(self) -> int:
        while True:
            text = (await self._next()).strip()
            if not text:
                self._console.print("Bye.")
                return 0
            await self._turn([{"role": "user", "content": text}])

    async def _next(self) -> str:
        """The next line. What was asked for and not waited for is told as soon as it is decided."""
        line = asyncio.create_task(self._line())
        try:
            while not line.done():
                await asyncio.wait({line}, timeout=_LOOK if self._deferred else None)
                if self._deferred and not line.done():
                    await self._look()
            return line.result()
        finally:
            line.cancel()

    async def _look(self) -> None:
        try:
            decided = await self._world.identity.poll()
        except DeputizeError as error:
            self._console.print(f"deputize: {error}", style="red", markup=False)
            return
        if ours := self._deferred & {request.id for request in decided}:
            self._deferred -= ours  # if the run fails, the person's next message brings it
            await self._turn([])

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

    async def _turn(self, messages: list[dict[str, str]]) -> None:
        try:
            await self._run({"messages": messages})
        except DeputizeError as error:
            self._console.print(f"deputize: {error}", style="red", markup=False)
        except Exception as error:  # the model's provider: no key, no network, too many requests
            told = printable(f"{type(error).__name__}: {error}", limit=300)
            self._console.print(f"The run failed. {told}", style="red", markup=False, soft_wrap=True)

    async def _run(self, given: dict[str, Any]) -> None:
        state = await self._graph.ainvoke(given, self._config)
        while interrupts := state.get("__interrupt__"):
            self._show([request for item in interrupts for request in item.value["requests"]])
            with self._console.status("waiting for you in the browser ..."):
                state = await self._world.identity.resume(self._graph, self._config)
        for line in str(state["messages"][-1].text).splitlines():
            self._console.print(f"bot> {printable(line, limit=2_000)}", markup=False)
        deferred = state.get("requests") or []
        self._deferred = {request["id"] for request in deferred}
        self._show(deferred)

    def _show(self, requests: list[dict[str, Any]]) -> None:
        for request in requests:
            if request["id"] in self._shown:
                continue
            self._shown.add(request["id"])
            what = "Sign in" if request["kind"] == "login" else "This needs your approval"
            code = f"   (code {request['code']})" if request["code"] else ""
            self._console.print(f"bot> {what}:{code}", markup=False)
            self._console.print(f"     {request['url']}", markup=False, soft_wrap=True)
            if self._open_browser and sys.stdout.isatty():
                webbrowser.open(request["url"])
