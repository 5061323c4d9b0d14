"""A process that takes turns of the assistant and kills itself on the way; ``tests/test_real_kills.py`` starts it.

It forks for each turn, so that a turn costs no start of Python. Standard input has one JSON object a line; the answer to
each is a line: what the turn ended with, or ``null`` when it was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from agent.offline import OfflineModel
from agent.tools import trading_tools
from graphs.assistant import build_assistant
from identity import Identity, Principal
from identity.ledger import Ledger
from identity.settings import load_settings

__all__ = ["BOUNDARIES"]

BOUNDARIES = (
    "before claim", "after claim", "before sending", "after answer", "before finish", "after finish", "before checkpoint",
    "after checkpoint", "before writes", "after writes",
)  # fmt: skip


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(boundary: str, nth: int) -> None:
    """Have this process end, without any clearing up, the ``nth`` time that it gets to the boundary."""
    when, _, what = boundary.partition(" ")
    owner, name, asynchronous = {
        "claim": (Ledger, "claim", False),
        "finish": (Ledger, "finish", False),
        "sending": (httpx.AsyncClient, "send", True),
        "answer": (httpx.AsyncClient, "send", True),
        "checkpoint": (AsyncSqliteSaver, "aput", True),
        "writes": (AsyncSqliteSaver, "aput_writes", True),
    }[what]
    inner: Callable[..., Any] = getattr(owner, name)
    left = nth

    def reached(moment: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if moment == when and (owner is not httpx.AsyncClient or _is_order(arguments[1])):
            left -= 1
            if left == 0:
                _kill()

    async def around(*arguments: Any, **more: Any) -> Any:
        reached("before", arguments)
        result = await inner(*arguments, **more)
        reached("after", arguments)
        return result

    def sync_around(*arguments: Any, **more: Any) -> Any:
        reached("before", arguments)
        result = inner(*arguments, **more)
        reached("after", arguments)
        return result

    setattr(owner, name, around if asynchronous else sync_around)


def _is_order(request: httpx.Request) -> bool:
    return request.method == "POST" and request.url.path == "/trading/orders"


def _count_orders(file: Path, thread: str) -> None:
    """Note each order that leaves, before it does, where a kill cannot undo it."""
    inner = httpx.AsyncClient.send

    async def noted(self: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
        if _is_order(request):
            with file.open("a") as out:
                out.write(thread + "\n")
        return await inner(self, request, **more)

    httpx.AsyncClient.send = noted  # type: ignore[method-assign,assignment]


async def _turn(asked: dict[str, Any], home: Path) -> dict[str, Any]:
    identity = Identity(load_settings(embedded=True, url=asked["url"], home=home))
    async with AsyncSqliteSaver.from_conn_string(str(home / "checkpoints.db")) as saver:
        graph = build_assistant(OfflineModel(), trading_tools(asked["url"]), identity, saver)
        given: Any = {"messages": [{"role": "user", "content": asked["text"]}]}
        config: Any = {"configurable": {"thread_id": asked["thread"]}}
        if asked["how"] == "queued":  # as a server does it: the same run, with its input
            config["configurable"]["run_id"] = f"run-of-{asked['thread']}"
        elif (await graph.aget_state(config)).values:
            given = None  # as a program does it that finds its thread begun
        with identity.caller(Principal(**asked["principal"])):
            await graph.ainvoke(given, config, durability=asked["durability"])
        state = await graph.aget_state(config)
        identity.close()
        told = [str(message.content) for message in state.values["messages"] if message.type == "tool"]
        said = sum(message.type == "human" for message in state.values["messages"])
        return {"told": told, "said": said, "next": list(state.next)}


def _child(asked: dict[str, Any], home: Path, out: int) -> None:
    if asked["boundary"]:
        _arm(asked["boundary"], asked["nth"])
    _count_orders(home / "sent.txt", asked["thread"])
    os.write(out, json.dumps(asyncio.run(_turn(asked, home))).encode())


def main() -> None:
    home = Path(sys.argv[1])
    for line in sys.stdin:
        readable, writable = os.pipe()
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.close(readable)
                _child(json.loads(line), home, writable)
                code = 0
            finally:
                os._exit(code)
        os.close(writable)
        with os.fdopen(readable) as answer:
            ended = answer.read()
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise SystemExit("a turn failed: see above")
        print(ended or "null", flush=True)


if __name__ == "__main__":
    main()
