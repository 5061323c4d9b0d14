"""The real ``langgraph dev`` with the application's own sign-in: a visitor comes back with a bearer token."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from identity.visitors import cookie_name
from tests.interop.server import Server, laid_out
from tests.interop.test_real_attacks import TEXT, Agent, Waiting, asked_in, run

COOKIE = cookie_name("http://127.0.0.1")

LOGIN = "https://app.example/sign-in"


@pytest_asyncio.fixture
async def there(tmp_path: Path) -> AsyncIterator[Waiting]:
    server = Server(laid_out(tmp_path), DEPUTIZE_LOGIN_URL=LOGIN)
    server.start()
    try:
        await server.ready()
        yield Waiting(server)
    finally:
        await asyncio.to_thread(server.stop)


@pytest.mark.case("A17", "A18", "E12", "E19")
async def test_a_visitors_thread_becomes_the_persons_who_signs_in_in_the_same_browser_and_nobody_elses(
    there: Waiting,
) -> None:
    alices = (await Agent(there.server).sign_in("alice"))["access_token"]
    bobs = (await Agent(there.server).sign_in("bob"))["access_token"]
    alice = there.server.person("alice").principal
    async with there.client(None) as browser:
        thread = (await browser.post("/threads", json={})).json()["thread_id"]
        (asked,) = asked_in(await there.say(browser, "Show my portfolio", thread))
        assert (asked["kind"], asked["url"]) == ("login", LOGIN)
        cookie = browser.cookies[COOKIE]

    # The visitor passes the link, the thread's id and all that is shown on to bob, who is signed in.
    for with_cookie in (None, "forged"):
        async with there.client(with_cookie, authorization=f"Bearer {bobs}") as bob:
            assert (await run(bob, thread, command={"resume": True})).status_code == 404
            assert (await run(bob, thread, input=TEXT)).status_code == 404
    async with there.client(cookie) as browser:
        assert (await browser.get(f"/threads/{thread}")).json()["metadata"]["owner"].startswith("visitor:")

    # alice signs in in that browser.
    async with there.client(cookie, authorization=f"Bearer {alices}") as browser:
        answer = await run(browser, thread, command={"resume": True})
        assert answer.status_code == 200, answer.text
        assert "12 ACME" in answer.json()["messages"][-1]["content"]
        metadata = (await browser.get(f"/threads/{thread}")).json()["metadata"]
        assert metadata["owner"] == alice.key
        assert "visitor" not in metadata
    async with there.client(cookie) as browser:  # whoever knew the cookie before is nobody now
        assert (await browser.get(f"/threads/{thread}/state")).status_code == 404
    async with there.client(None, authorization=f"Bearer {alices}") as elsewhere:  # at another machine of hers
        assert "12 ACME" in (await elsewhere.get(f"/threads/{thread}/state")).text
    async with there.client(cookie, authorization=f"Bearer {bobs}") as browser:  # bob, later, in the same browser
        assert (await browser.get(f"/threads/{thread}/state")).status_code == 404

    # Her sign-in ends; who has the cookie is the visitor again, and the thread is not theirs.
    with sqlite3.connect(there.server.folder / ".deputize" / "data" / "deputize.db") as db:
        db.execute("UPDATE sessions SET ended_at = ?", (time.time(),))
    async with there.client(cookie) as browser:
        assert (await browser.get(f"/threads/{thread}/state")).status_code == 404
        assert (await run(browser, thread, input=TEXT)).status_code == 404


@pytest.mark.case("G6")
async def test_who_floods_runs_is_told_to_wait(there: Waiting) -> None:
    async with there.client(None) as browser:
        thread = (await browser.post("/threads", json={})).json()["thread_id"]

        async def status() -> int:
            given = {"assistant_id": "assistant", "command": {"resume": 1}}
            answer: httpx.Response = await browser.post(f"/threads/{thread}/runs", json=given)
            return answer.status_code

        found = [await status() for _ in range(130)]  # two minutes may be touched
        assert set(found) == {200, 429}
        assert found.count(200) <= 120
