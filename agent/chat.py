"""``make chat``: a terminal chat with the assistant, on an embedded world of its own."""

from __future__ import annotations

import asyncio
import sys
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
        self._config: Any = {"configurable": {"thread_id": f"chat-{world.identity.clock():.0f}"}}

    def greet(self, model: str) -> None:
        say = self._console.print
        say(f"deputize chat on the embedded world at {self._world.url} (model: {model})", markup=False)
        say("People you can sign in as:")
        for person in self._world.world.installation.people.values():
            say(f"  {person.username:6}  {person.password}   {person.name}", markup=False)
        say(_HELP)

    async def run(self) -> int:
        while True:
            try:
                text = (await asyncio.to_thread(self._read)).strip()
            except EOFError:
                text = ""
            if not text:
                self._console.print("Bye.")
                return 0
            try:
                await self._turn(text)
            except DeputizeError as error:
                self._console.print(f"deputize: {error}", style="red", markup=False)

    def _read(self) -> str:
        if sys.stdin.isatty():
            return self._console.input("\nyou> ")
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        self._console.print(f"\nyou> {line.strip()}", markup=False)
        return line

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
