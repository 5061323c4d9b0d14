"""The LangGraph server: what the guard costs, and how soon a thread goes on once its request is decided.

``guard_overhead`` and ``wake_start_s`` run the real ``langgraph dev``; ``wake_enqueue_ms`` has a real issuer, with pages and pings
over loopback, and a queue that only takes the time; ``idle_1000_cpu_pct`` has a ledger full of requests that nobody decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph_sdk import get_client

from agent.world import Running, running
from graphs.assistant import build_assistant
from identity import AccessToken, Visitor, approval, needs, resource
from identity.asking import SAFETY_INTERVAL
from identity.ledger import Request
from identity.server import Waker
from identity.sessions import Place
from tests.bench.harness import Result, at_most
from tests.bench.stage import Stage, config
from tests.interop.server import Server, laid_out, say, settled
from tests.interop.server import requests as asked_for
from tests.support import Scripted, calls, requests

__all__ = ["guard_overhead", "idle_1000_cpu_pct", "wake_enqueue_ms", "wake_start_s"]

_WITHOUT = """
from starlette.middleware import Middleware
from identity.server import Guard

app.user_middleware = [m for m in app.user_middleware if m.cls is not Guard]
"""


@contextlib.asynccontextmanager
async def _dev(change: Callable[[Path], None] = lambda folder: None) -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="deputize-bench-dev-") as home:
        server = Server(await asyncio.to_thread(laid_out, Path(home)))
        change(server.folder)
        server.start()
        try:
            await server.ready()
            yield server
        finally:
            await asyncio.to_thread(server.stop)


async def guard_overhead(on: Stage) -> Result:
    """A streamed run on the real server, with the guard and without it."""

    def unguarded(folder: Path) -> None:
        app = folder / "agent" / "app.py"
        app.write_text(app.read_text(encoding="utf-8") + _WITHOUT, encoding="utf-8")

    async with _dev() as guarded, _dev(unguarded) as bare:

        async def streamed(server: Server) -> tuple[float, float]:
            """Seconds of a run: without its wait in the queue, and with it."""
            # Without the guard nobody mints a visitor: Studio's header stands for one on both.
            who = {"x-auth-scheme": "langsmith"}
            asked = {"messages": [{"role": "user", "content": "What can you do?"}]}
            async with httpx.AsyncClient(base_url=server.url, headers=who, trust_env=False, timeout=30) as client:
                thread = (await client.post("/threads", json={})).json()["thread_id"]
                body = {"assistant_id": "assistant", "input": asked, "stream_mode": ["values"]}
                started, told, chunks = time.perf_counter(), b"", []
                async with client.stream("POST", f"/threads/{thread}/runs/stream", json=body) as answer:
                    created = time.perf_counter()
                    async for chunk in answer.aiter_raw():
                        chunks.append(time.perf_counter())
                        told += chunk
                ended = time.perf_counter()
            if answer.status_code != 200 or b"event: values" not in told or b"event: error" in told:
                raise RuntimeError(f"The run that is measured went wrong: HTTP {answer.status_code}")
            return created - started + ended - chunks[0], ended - started

        await streamed(guarded), await streamed(bare)
        ours, theirs = [], []
        for index in range(on.samples(30)):
            for server in (guarded, bare) if index % 2 else (bare, guarded):
                (ours if server is guarded else theirs).append(await streamed(server))
    # The queue looks every half second, so each run waits up to that, by chance: what is compared is the rest, and how much of
    # a whole run the difference is.
    with_guard, without = (statistics.median(active for active, _ in times) for times in (ours, theirs))
    whole = statistics.median(total for _, total in theirs)
    note = f"{with_guard * 1_000:.1f} ms against {without * 1_000:.1f} ms beside the queue, of {whole * 1_000:.0f} ms in all"
    return at_most("guard_overhead", 1 + (with_guard - without) / whole, "x", 1.05, note)


async def wake_enqueue_ms(on: Stage) -> Result:
    """From the moment that a person opens the page to decide, to the run in the server's queue, by ping."""
    queue, waits = _Queue(), []
    with tempfile.TemporaryDirectory(prefix="deputize-bench-wake-") as home:
        wakers: list[Waker] = []

        async def decided(request: Request) -> None:
            await wakers[0].wake([request])

        async with running(Path(home), decided=decided, delivery="ping", pending_limit=1_000) as world:
            wakers.append(Waker(world.identity, queue))
            alice, ask = world.person("alice"), _asker(world)
            with world.identity.caller(Visitor("alice, before she signs in")):
                await alice.sign_in(await ask("signing in"))
                await world.identity.transport.acall(world.identity.asking.wait, place("signing in"))
            with world.identity.caller(alice.principal):
                for number in range(on.samples(40)):
                    thread = f"t{number}"
                    request = await ask(thread)
                    if request["kind"] == "login":
                        raise RuntimeError("alice was to be signed in")
                    pressed = time.perf_counter()
                    await alice.approve(request)
                    async with asyncio.timeout(10):
                        waits.append((await queue.come(thread) - pressed) * 1_000)
    note = f"{len(waits)} decisions, median {statistics.median(waits):.0f} ms; the page's two answers are in it"
    return at_most("wake_enqueue_ms", _p99(waits), "ms", 200, note)


def place(thread: str) -> Place:
    return Place("default", "assistant", thread)


def _asker(world: Running) -> Callable[[str], Any]:
    """Asks for an order that needs approval, in a thread; returns what that waits for."""

    @tool
    @needs(approval(), token=resource(f"{world.url}/trading", "orders:write"))
    async def order(symbol: str, token: AccessToken) -> str:
        """Order something."""
        return f"Ordered {symbol}."

    saver = InMemorySaver()

    async def ask(thread: str) -> dict[str, Any]:
        graph = build_assistant(Scripted(calls(("order", {"symbol": thread}))), [order], world.identity, saver)
        return requests(await graph.ainvoke({"messages": ["go"]}, config(thread)))[0]

    return ask


class _Queue:
    """Stands where the server's in-process client is, and takes the time at which a run is put into the queue."""

    def __init__(self) -> None:
        self.threads = self.runs = self
        self._queued: dict[str, asyncio.Future[float]] = {}

    def come(self, thread: str) -> asyncio.Future[float]:
        return self._queued.setdefault(thread, asyncio.get_running_loop().create_future())

    async def get(self, thread: str) -> dict[str, Any]:
        return {"status": "interrupted"}

    async def get_state(self, thread: str) -> dict[str, Any]:
        return {"next": ["await_user"]}

    async def create(self, thread: str, graph: str, **asked: Any) -> None:
        now, found = time.perf_counter(), self._queued.get(thread)
        if found is None:
            return
        loop = found.get_loop()  # the server's loop is another one than the bench's
        loop.call_soon_threadsafe(lambda: found.done() or found.set_result(now))

    async def update(self, thread: str, **changed: Any) -> None: ...


async def wake_start_s(on: Stage) -> Result:
    """On the real ``langgraph dev``: from the decision to the run that goes on with it."""
    waits = []
    async with _dev() as server:
        client = get_client(url=server.url)
        alice = server.person("alice")
        thread = (await client.threads.create())["thread_id"]
        await alice.sign_in(asked_for(await say(client, thread, "Show my portfolio"))[0])
        await settled(client, thread, "12 ACME")
        for number in range(on.samples(20)):
            asked = asked_for(await say(client, thread, f"Buy {20 + number} ACME at 100"))[0]
            known = {run["run_id"] for run in await client.runs.list(thread)}
            await alice.approve(asked)
            pressed = time.perf_counter()
            async with asyncio.timeout(20):
                while True:
                    new = [r for r in await client.runs.list(thread) if r["run_id"] not in known]
                    if new and new[0]["status"] != "pending":
                        break
                    await asyncio.sleep(0.01)
            waits.append(time.perf_counter() - pressed)
            await settled(client, thread, f"Bought {20 + number} ACME")
        await alice.close()
    note = (
        f"{len(waits)} decisions, median {statistics.median(waits):.2f} s; the server's queue looks every half second"
    )
    return at_most("wake_start_s", _p99(waits), "s", 1.2, note)


async def idle_1000_cpu_pct(on: Stage) -> Result:
    """A thousand threads that wait for people who do nothing: the processor time of the waker beside them."""
    ledger, seconds = on.identity.ledger, 2.0 if on.quick else 10.0

    def fill() -> None:
        now = on.identity.clock()
        for number in range(1_000):
            ledger.open(
                place=place(f"t{number}"), kind="approval", owner=on.alice.key,
                issuer=on.alice.issuer, subject=on.alice.subject, message_id=f"m{number}", tool_call_id="c", digest="d",
                url="", code="", payload={}, handle={"auth_req_id": "a", "issuer": on.alice.issuer}, interval=SAFETY_INTERVAL,
                expires_at=now + 300, now=now, ping=f"token {number}",
            )  # fmt: skip

    await asyncio.to_thread(fill)
    async with Waker(on.identity, _Queue()).lifespan():
        await asyncio.sleep(1)  # to begin with
        before, started = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        used, passed = time.process_time() - before, time.perf_counter() - started
    waiting = len(on.identity.ledger.due("default", on.identity.clock() + 10_000, 2_000))
    if waiting != 1_000:
        raise RuntimeError(f"{waiting} requests wait where there should be a thousand")
    note = f"{used * 1_000:.0f} ms of processor time in {passed:.0f} s"
    return at_most("idle_1000_cpu_pct", used / passed * 100, "%", 1, note)


def _p99(values: list[float]) -> float:
    """The value that one in a hundred may pass; of fewer than a hundred, the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
