"""The real ``langgraph dev`` with what ``docs/server.md`` says to put into a project, and settings as in production."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio
from click.testing import CliRunner
from joserfc import jwt
from joserfc.jwk import ECKey

from identity.cli import main
from identity.visitors import cookie_name
from tests.interop.server import ROOT, Server, laid_out

COOKIE = cookie_name("http://127.0.0.1")

TEXT = {"messages": [{"role": "user", "content": "Who are you?"}]}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    laid_out(tmp_path)
    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    (settings,) = re.findall(r"^```json\n(.*?)^```", page, flags=re.M | re.S)
    (tmp_path / "app.py").write_text(programs[0], encoding="utf-8")
    (tmp_path / "graph.py").write_text(programs[1], encoding="utf-8")
    (tmp_path / "langgraph.json").write_text(settings, encoding="utf-8")
    (tmp_path / "my_agent.py").write_text(
        "from agent.offline import OfflineModel\nfrom agent.tools import trading_tools\n"
        'model, tools = OfflineModel(), trading_tools("https://trading.example")\n',
        encoding="utf-8",
    )
    environment = {
        "DEPUTIZE_ISSUER": "https://login.example",
        "DEPUTIZE_CLIENT_ID": "agent",
        "DEPUTIZE_CLIENT_KEY_FILE": str(tmp_path / "keys" / "client.json"),
        "DEPUTIZE_DATA_DIR": str(tmp_path / "data"),
        "DEPUTIZE_KEY_FILE": str(tmp_path / "keys" / "ring.json"),
        "DEPUTIZE_LOGIN_URL": "https://app.example/sign-in",
    }
    for command in ("new", "client"):
        made = CliRunner().invoke(main, ["keys", command], env=environment)
        assert made.exit_code == 0, made.output
    up = Server(tmp_path, **environment)
    up.start()
    try:
        await up.ready()
        yield up
    finally:
        await asyncio.to_thread(up.stop)


async def test_a_project_made_from_the_page_serves_visitors_and_nobody_else(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        thread = (await http.post("/threads", json={})).json()["thread_id"]
        assert COOKIE in http.cookies
        run = {"assistant_id": "assistant", "input": TEXT}
        answer = await http.post(f"/threads/{thread}/runs/wait", json=run)
        assert "offline model" in answer.json()["messages"][-1]["content"]
        asked = {"messages": [{"role": "user", "content": "Show my portfolio"}]}
        answer = await http.post(f"/threads/{thread}/runs/wait", json={**run, "input": asked})
        (request,) = answer.json()["__interrupt__"][0]["value"]["requests"]
        assert request["url"] == "https://app.example/sign-in"
        assert (await http.post(f"/threads/{thread}/state", json={"values": {}})).status_code == 403
        assert (await http.post("/deputize/ping", json={"auth_req_id": "x"})).status_code == 401
        allowed = {"origin": server.url}
        assert (await http.get(f"/threads/{thread}", headers=allowed)).status_code == 200
    # The issuer cannot be reached, so nobody can tell whether this token is good.
    key = ECKey.generate_key("P-256", private=True, auto_kid=True)
    claims = {"iss": "https://login.example", "aud": "agent", "sub": "alice", "exp": int(time.time()) + 60}
    token = jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": key.kid}, claims, key, algorithms=["ES256"])
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, trust_env=False) as http:
        assert (await http.post("/threads", json={})).status_code == 503
    studio = {"x-auth-scheme": "langsmith"}
    async with httpx.AsyncClient(base_url=server.url, headers=studio, timeout=60, trust_env=False) as http:
        assert (await http.post("/threads", json={})).status_code == 401
