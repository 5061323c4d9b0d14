"""The story, from anonymous chatbot to approved order. Each step prints what was verified, not what was intended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from joserfc import jws
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph.state import CompiledStateGraph

from agent.offline import OfflineModel
from agent.tools import research_tools, trading_tools
from agent.world import Running, running
from agent.world.person import Person
from graphs.assistant import build_assistant
from identity import Identity, Principal, RefusedError
from identity.settings import load_settings
from identity.text import printable

__all__ = ["demo", "part"]

Graph = CompiledStateGraph[Any, Any, Any, Any]
_KILLED_THREAD = "killed"


class _FailedError(Exception):
    """A step that did not hold."""


class _Story:
    def __init__(self, world: Running, home: Path, graph: Graph, *, quiet: bool) -> None:
        self.world, self.home, self.graph, self.quiet = world, home, graph, quiet
        self.steps: list[dict[str, Any]] = []
        self.said: list[str] = []

    def step(self, title: str) -> None:
        self.steps.append({"step": len(self.steps) + 1, "title": title, "verified": [], "ok": True})
        self._print(f"\n{len(self.steps):2}  {title}")

    def verify(self, holds: bool, what: str) -> None:
        """Record a fact that was checked; a false one ends the story."""
        if not holds:
            self.steps[-1]["ok"] = False
            self.steps[-1]["failed"] = what
            self._print(f"    FAILED  {what}")
            raise _FailedError(what)
        self.steps[-1]["verified"].append(what)
        self._print(f"    ok  {what}")

    def _print(self, line: str) -> None:
        self.said.append(line)
        if not self.quiet:
            print(line, flush=True)

    async def say(self, text: str, thread: str = "alice") -> dict[str, Any]:
        """A message of a person; returns the state that the run ends with."""
        self._print(f"    > {text}")
        state = await self.graph.ainvoke({"messages": [{"role": "user", "content": text}]}, config(thread))
        return self.heard(state)

    async def go_on(self, thread: str = "alice") -> dict[str, Any]:
        """Wait for the decision, and let the thread go on."""
        return self.heard(await self.world.identity.resume(self.graph, config(thread)))

    def heard(self, state: dict[str, Any]) -> dict[str, Any]:
        if waiting := requests(state):
            self._print(f"    . waits for a person: {waiting[0]['url']}  code {waiting[0]['code']}")
        elif text := str(state["messages"][-1].text):
            self._print("    < " + " | ".join(printable(line, limit=300) for line in text.splitlines()))
        return state


def config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


def requests(state: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run ended waiting for."""
    interrupts = state.get("__interrupt__") or ()
    return [request for item in interrupts for request in item.value["requests"]]


def last(state: dict[str, Any]) -> str:
    return str(state["messages"][-1].text)


@contextlib.asynccontextmanager
async def assistant(identity: Identity, home: Path, url: str) -> AsyncIterator[Graph]:
    """The assistant with its checkpoints in a database beside the others. The model is the offline one, so that the
    story is the same everywhere."""
    async with AsyncSqliteSaver.from_conn_string(str(home / "checkpoints.db")) as saver:
        tools = [*trading_tools(url), *research_tools(identity)]
        yield build_assistant(OfflineModel(), tools, identity, saver)


async def demo(*, as_json: bool = False) -> int:
    """Play the story on a world of its own. Returns 0 only if every step was verified."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="deputize-demo-") as folder:
        home = Path(folder)
        handler = logging.FileHandler(home / "demo.log")
        logging.basicConfig(level=logging.DEBUG, handlers=[handler], force=True)
        async with running(home) as world, assistant(world.identity, home, world.url) as graph:
            story = _Story(world, home, graph, quiet=as_json)
            try:
                await _play(story)
            except _FailedError:
                pass
            except Exception as error:
                story.steps[-1].update(ok=False, failed=f"{type(error).__name__}: {printable(str(error), limit=300)}")
                story._print(f"    FAILED  {story.steps[-1]['failed']}")
        logging.getLogger().removeHandler(handler)
        handler.close()
    ok = len(story.steps) == 10 and all(step["ok"] for step in story.steps)
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        print(json.dumps({"ok": ok, "seconds": seconds, "steps": story.steps}, indent=2))
    else:
        print(f"\n{'Every step was verified' if ok else 'The story did NOT hold'}, in {seconds} s.")
    return 0 if ok else 1


async def _play(story: _Story) -> None:
    world, identity = story.world, story.world.identity
    alice, bob = world.person("alice"), world.person("bob")

    story.step("An anonymous visitor asks for a quote")
    state = await story.say("What is ACME trading at?")
    story.verify("98.40" in last(state), "the price was answered")
    story.verify(
        not requests(state) and not world.issued_tokens, "nobody was asked to sign in, and no token was issued"
    )

    story.step("The portfolio needs to know who is asking")
    state = await story.say("Show my portfolio")
    asked = requests(state)
    story.verify([r["kind"] for r in asked] == ["login"], "a login was asked for, with a code to type")
    await alice.sign_in(asked[0])
    state = await story.go_on()
    story.verify("12 ACME" in last(state), "alice signed in on the real page, and her portfolio was shown")
    _verify_delegated(story, "portfolio:read", alice)

    with identity.caller(alice.principal):
        await _play_orders(story, alice)
        await _play_killed(story, alice)

    story.step("bob opens alice's thread, and then one of his own")
    with identity.caller(bob.principal):
        refused = await _refusal(story.say("Show my portfolio"))
        story.verify(refused, "bob's run was refused before the model saw anything of the conversation")
    refused = await _refusal(story.say("Show my portfolio"))
    story.verify(refused, "and so is a run of somebody who does not say who is calling")
    await _play_relations(story, alice, bob)

    story.step("A token for a small order is tried on a large one, at the API directly")
    small = [t for t in _claims(world) if t[1].get("scope") == "orders:write" and "authorization_details" not in t[1]]
    story.verify(bool(small), "the agent was issued such a token in this run")
    before = len(world.orders())
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(
            f"{world.url}/trading/orders",
            json={"symbol": "ACME", "quantity": 500, "limit": "100"},
            headers={"authorization": f"Bearer {small[-1][0]}", "idempotency-key": "an-attacker-with-a-token"},
        )
    story.verify(answer.status_code == 403, f"the API refused: {answer.json()['error_description']}")
    story.verify(len(world.orders()) == before, "nothing was bought")

    story.step("Every token of this run is looked for everywhere")
    await _look_everywhere(story)


async def _play_orders(story: _Story, alice: Person) -> None:
    world = story.world

    story.step("A small order runs with a delegated token")
    state = await story.say("Buy 5 shares of ACME")
    orders = world.orders()
    story.verify(not requests(state) and len(orders) == 1, "the order was filled, without asking")
    story.verify(orders[0].subject == alice.principal.subject, "the API saw alice as the token's sub")
    story.verify(orders[0].actor == "deputize-agent", "and the agent as its act.sub")

    story.step("A large order waits for approval")
    state = await story.say("Buy 50 ACME at 100")
    asked = requests(state)
    story.verify([r["kind"] for r in asked] == ["approval"], "an approval was asked for")
    snapshot = await story.graph.aget_state(config("alice"))
    story.verify(
        snapshot.next == ("await_user",), "the run has ended; the thread waits in its checkpoint, no worker does"
    )
    page = await alice.read(asked[0]["url"])
    shown = [line.strip() for line in page.splitlines()]
    exact = all(word in shown for word in ("Buy stock", "ACME", "50", "100", asked[0]["code"]))
    story.verify(exact, "the page shows the exact order, and the code that the chat shows")
    story.verify(not _approved_tokens(world), "no token for it exists yet")
    decided = time.time()
    await alice.approve(asked[0])
    state = await story.go_on()
    approved = _approved_tokens(world)
    story.verify(len(world.orders()) == 2 and "Bought 50 ACME" in last(state), "the order was filled, once")
    story.verify(
        len(approved) == 1 and approved[0]["iat"] >= int(decided),
        "with a token that was made after the approval, for it alone",
    )

    story.step("A second large order is declined")
    state = await story.say("Buy 60 ACME at 100")
    await alice.deny(requests(state)[0])
    state = await story.go_on()
    story.verify("declined" in last(state), "the agent says that it was declined")
    story.verify(
        len(world.orders()) == 2 and len(_approved_tokens(world)) == 1, "nothing was bought, and no token was made"
    )

    story.step("A quote and a large order in one sentence")
    state = await story.say("What's NOVA at, and buy 40 ACME at 99?")
    snapshot = await story.graph.aget_state(config("alice"))
    committed = [str(m.text) for m in snapshot.values["messages"]]
    story.verify([r["kind"] for r in requests(state)] == ["approval"], "the order waits for approval")
    story.verify("NOVA: 41.15 USD" in committed, "the quote was answered, and committed before the wait")
    await alice.approve(requests(state)[0])
    state = await story.go_on()
    story.verify(
        len(world.orders()) == 3 and "NOVA: 41.15" in last(state), "after the approval both were told; one order"
    )


async def _play_killed(story: _Story, alice: Person) -> None:
    story.step("The process is killed while an approval waits, and started again")
    world, before = story.world, len(story.world.orders())
    first = _start(story, alice.principal, "Buy 30 ACME at 100")
    line = await asyncio.to_thread(first.stdout.readline)  # type: ignore[union-attr]
    asked = json.loads(line)["requests"] if line.startswith("{") else []
    story.verify([r["kind"] for r in asked] == ["approval"], "another process asked for an approval")
    first.send_signal(signal.SIGKILL)
    story.verify(
        await asyncio.to_thread(first.wait) == -signal.SIGKILL, "it was killed (SIGKILL) while the request was open"
    )
    second = _start(story, alice.principal, "")
    await alice.approve(asked[0])
    told, _ = await asyncio.to_thread(second.communicate)
    story.verify(
        second.returncode == 0 and "Bought 30 ACME" in told, "started again, it went on after alice's approval"
    )
    story.verify(len(world.orders()) == before + 1, "the order was filled, once")


async def _play_relations(story: _Story, alice: Person, bob: Person) -> None:
    identity, orders = story.world.identity, len(story.world.orders())
    public, restricted = "growing with its market", "its largest customer is leaving"
    with identity.caller(bob.principal):
        asked = requests(await story.say("What do analysts say about NOVA?", "bob"))
        await bob.sign_in(asked[0])
        state = await story.go_on("bob")
        told = "".join(repr(m) for m in state["messages"])
        story.verify(public in told and restricted not in told, "bob was shown the forecast that is for everybody")
        state = await story.say("Buy 50 ACME at 100", "bob")
    refused = not requests(state) and "You may not buy ACME" in last(state)
    story.verify(refused, "bob may not buy, and nobody was asked to approve it")
    tokens = [
        c for _, c in _claims(story.world) if c["sub"] == bob.principal.subject and c.get("scope") == "orders:write"
    ]
    story.verify(
        not tokens and len(story.world.orders()) == orders, "no token for it was issued, and nothing was bought"
    )
    with identity.caller(alice.principal):
        told = last(await story.say("What do analysts say about NOVA?"))
    story.verify(public in told and restricted in told, "alice, who is a trader, is shown both forecasts")


def _start(story: _Story, principal: Principal, say: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agent", "demo-part", "--home", str(story.home), "--url", story.world.url]
    with (story.home / "part.log").open("a") as log:
        return subprocess.Popen(  # noqa: S603 - this very program
            [*command, "--subject", principal.subject, "--say", say], stdout=subprocess.PIPE, stderr=log, text=True
        )


async def part(home: Path, url: str, subject: str, say: str) -> int:
    """The demo's other process: asks and waits, to be killed; or, with nothing to say, goes on where that one was."""
    identity = Identity(load_settings(embedded=True, url=url, home=home))
    caller = Principal(identity.settings.tenant, identity.settings.issuer, subject)
    try:
        async with assistant(identity, home, url) as graph:
            with identity.caller(caller):
                if say:
                    message = {"messages": [{"role": "user", "content": say}]}
                    state = await graph.ainvoke(message, config(_KILLED_THREAD))
                    print(json.dumps({"requests": requests(state)}), flush=True)
                    await asyncio.Event().wait()
                state = await identity.resume(graph, config(_KILLED_THREAD))
                print(last(state), flush=True)
    finally:
        await asyncio.to_thread(identity.close)
    return 0


async def _refusal(run: Any) -> bool:
    try:
        await run
    except RefusedError:
        return True
    return False


def _claims(world: Running) -> list[tuple[str, dict[str, Any]]]:
    """The access tokens that were issued in this run, with their claims."""
    found = []
    for token in world.issued_tokens:
        if token.count(".") == 2:
            parsed = jws.extract_compact(token.encode())
            if parsed.headers().get("typ") == "at+jwt":
                found.append((token, json.loads(parsed.payload)))
    return found


def _approved_tokens(world: Running) -> list[dict[str, Any]]:
    return [claims for _, claims in _claims(world) if "authorization_details" in claims]


def _verify_delegated(story: _Story, scope: str, person: Person) -> None:
    found = [claims for _, claims in _claims(story.world) if claims.get("scope") == scope]
    ok = bool(found) and all(
        c["sub"] == person.principal.subject and c["act"]["sub"] == "deputize-agent" and c["exp"] - c["iat"] <= 300
        for c in found
    )
    story.verify(ok, "the token: sub is alice, act.sub the agent, at most five minutes, for this API alone")


async def _look_everywhere(story: _Story) -> None:
    tokens = story.world.issued_tokens
    kinds = {"rt_" if t.startswith("rt_") else "jwt" for t in tokens}
    story.verify(
        len(tokens) >= 10 and kinds == {"rt_", "jwt"}, f"{len(tokens)} tokens were issued: access, ID and refresh"
    )

    def clear(text: str) -> bool:
        return not any(token in text for token in tokens)

    steps = 0
    for thread in ("alice", "bob", _KILLED_THREAD):
        async for snapshot in story.graph.aget_state_history(config(thread)):
            steps += 1
            if not clear(repr(snapshot)):
                story.verify(False, f"a token is in the state of the thread {thread}")
    story.verify(steps > 20, f"in none of the {steps} checkpoints: messages, state, metadata, pending writes")
    story.verify(clear("\n".join(story.said)), "in nothing that was printed here")
    for handler in logging.getLogger().handlers:
        handler.flush()
    files = [path for path in story.home.rglob("*") if path.is_file()]
    for path in files:
        held = path.read_bytes()
        if any(token.encode() in held for token in tokens):
            story.verify(False, f"a token is in {path.relative_to(story.home)}")
    names = {path.name for path in files}
    expected = {"deputize.db", "checkpoints.db", "world.db", "demo.log"}
    story.verify(expected <= names, f"in none of the {len(files)} files: databases, write-ahead logs, logs at DEBUG")
