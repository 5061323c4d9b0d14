"""What ``deputize init`` writes, served by the real ``langgraph dev``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a new project, with settings of its own and keys that were made for it."""
    project = tmp_path_factory.mktemp("project")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("DEPUTIZE_", "OPENAI_", "LANG"))}
    environment |= {"LANGSMITH_TRACING": "false", "PYTHONDONTWRITEBYTECODE": "1"}

    def deputize(*args: str) -> None:
        subprocess.run([BIN / "deputize", *args], cwd=project, env=environment, check=True, capture_output=True)

    deputize("init")
    example = (project / ".env.example").read_text()
    (project / ".env").write_text(example.replace("API_KEY=", "API_KEY=any").replace(":2024", f":{port}"))
    deputize("--env-file", ".env", "keys", "new")
    deputize("--env-file", ".env", "keys", "client")
    command = [BIN / "langgraph", "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)]
    with (project / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if httpx.get(f"{url}/ok", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                assert server.poll() is None, (project / "log").read_text()[-3000:]
            time.sleep(0.25)
        else:
            raise AssertionError((project / "log").read_text()[-3000:])
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_a_real_server_serves_the_assistant_and_tells_visitors_apart(served: str) -> None:
    owners = set()
    for _ in range(2):
        with httpx.Client(base_url=served, trust_env=False) as visitor:
            (assistant,) = visitor.post("/assistants/search", json={}).json()
            assert assistant["graph_id"] == "assistant"
            owners.add(visitor.post("/threads", json={}).json()["metadata"]["owner"])
    assert len(owners) == 2


def test_a_real_server_lets_nobody_in_with_a_token_that_is_none(served: str) -> None:
    answer = httpx.post(f"{served}/threads", json={}, headers={"authorization": "Bearer x.y.z"}, trust_env=False)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/store/items"), ("POST", "/runs/crons"), ("POST", "/mcp"), ("POST", "/a2a/x")]
)
def test_a_real_server_has_nothing_on_that_is_not_guarded(served: str, method: str, path: str) -> None:
    assert httpx.request(method, served + path, json={}, trust_env=False).status_code in (403, 404)
