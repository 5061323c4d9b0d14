"""What clients may ask of the LangGraph server: every route of the real one is listed or refused, and so is each body."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import compile_path

from identity.server.guard import BODY_LIMIT
from identity.server.requests import DEPTH, OWN_METADATA, check_body, check_created_run, route

TEXT = {"messages": [{"role": "user", "content": "hi"}]}

REFUSED = """
GET /metrics
POST /assistants
PATCH /assistants/{assistant_id}
DELETE /assistants/{assistant_id}
POST /assistants/{assistant_id}/latest
POST /threads/prune
GET /threads/{thread_id}/storage
POST /threads/{thread_id}/state
POST /threads/{thread_id}/copy
DELETE /threads/{thread_id}/runs/{run_id}
POST /threads/{thread_id}/runs/crons
POST /runs
POST /runs/stream
POST /runs/wait
POST /runs/batch
POST /runs/cancel
POST /runs/crons
POST /runs/crons/search
POST /runs/crons/count
GET /runs/crons/{cron_id}
PATCH /runs/crons/{cron_id}
DELETE /runs/crons/{cron_id}
PUT /store/items
GET /store/items
DELETE /store/items
POST /store/items/search
POST /store/namespaces
GET /mcp
POST /mcp
DELETE /mcp
GET /a2a/{assistant_id}
POST /a2a/{assistant_id}
DELETE /a2a/{assistant_id}
GET /a2a/{assistant_id}/
POST /a2a/{assistant_id}/
DELETE /a2a/{assistant_id}/
GET /a2a/{assistant_id}/.well-known/agent-card.json
GET /a2a/{assistant_id}/.well-known/agent.json
GET /.well-known/agent-card.json
POST /ui/{graph_id}
MOUNT /ui
GET /profile
GET /deploy
POST /deploy
GET /deploy/{operation_id}/stream
GET /internal/debug/thread/{thread_id}
POST /internal/truncate
"""

LISTED = """
GET /
GET /ok
GET /info
GET /docs
GET /openapi.json
POST /assistants/search
POST /assistants/count
GET /assistants/{assistant_id}
GET /assistants/{assistant_id}/graph
GET /assistants/{assistant_id}/schemas
GET /assistants/{assistant_id}/subgraphs
GET /assistants/{assistant_id}/subgraphs/{namespace}
POST /assistants/{assistant_id}/versions
POST /threads
POST /threads/search
POST /threads/count
GET /threads/{thread_id}
PATCH /threads/{thread_id}
DELETE /threads/{thread_id}
GET /threads/{thread_id}/state
GET /threads/{thread_id}/state/{checkpoint_id}
POST /threads/{thread_id}/state/checkpoint
GET /threads/{thread_id}/history
POST /threads/{thread_id}/history
GET /threads/{thread_id}/stream
POST /threads/{thread_id}/stream/events
WEBSOCKET /threads/{thread_id}/stream/events
POST /threads/{thread_id}/commands
GET /threads/{thread_id}/runs
POST /threads/{thread_id}/runs
POST /threads/{thread_id}/runs/stream
POST /threads/{thread_id}/runs/wait
GET /threads/{thread_id}/runs/{run_id}
GET /threads/{thread_id}/runs/{run_id}/join
GET /threads/{thread_id}/runs/{run_id}/stream
POST /threads/{thread_id}/runs/{run_id}/cancel
"""


def lines(text: str) -> list[tuple[str, str]]:
    return [(method, path) for method, _, path in (line.partition(" ") for line in text.split("\n") if line)]


def served() -> Iterator[tuple[str, str]]:
    """``(method, path)`` of every route in the source of the installed server."""
    folders = []
    for package in ("langgraph_api", "langgraph_runtime_inmem"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folders.append(Path(spec.origin).parent)
    files = [*folders[0].glob("api/**/*.py"), folders[1] / "routes.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                continue
            if not isinstance(node.args[0], ast.Constant):
                continue
            path, methods = node.args[0].value, [k.value for k in node.keywords if k.arg == "methods"]
            match node.func.id:
                case "Route" | "ApiRoute":
                    yield from ((method, path) for method in (ast.literal_eval(methods[0]) if methods else ["GET"]))
                case "ApiWebSocketRoute" | "WebSocketRoute":
                    yield "WEBSOCKET", path
                case "Mount":
                    yield "MOUNT", path


def test_every_route_of_the_installed_server_is_known_here() -> None:
    """Red after an upgrade that brings a route: decide about it. Until then it is refused."""
    assert sorted(set(served())) == sorted(lines(LISTED) + lines(REFUSED))


@pytest.mark.case("E10")
@pytest.mark.parametrize(("method", "path"), lines(REFUSED))
def test_a_route_that_is_not_for_clients_is_refused(method: str, path: str) -> None:
    method = "GET" if method == "MOUNT" else method
    assert route(method, path.replace("{", "").replace("}", "")) is None
    assert route(method, f"{path.replace('{', '').replace('}', '')}/index.html") is None


@pytest.mark.parametrize(("method", "path"), lines(LISTED))
def test_a_route_for_clients_is_passed_and_no_other_method_or_spelling_of_it(method: str, path: str) -> None:
    path = path.replace("{", "").replace("}", "")
    assert route(method, path) is not None
    assert (route("HEAD", path) is not None) == (route("GET", path) is not None)
    known = {
        verb for verb, listed in lines(LISTED) if compile_path(listed)[0].match(path)
    }  # as the server's router does
    for other in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "WEBSOCKET", "post", ""):
        assert (route(other, path) is not None) == (other in known), other
    for spelled in (
        f"{path}/",
        f"/{path}",
        f"{path}//",
        f"{path}\n",
        f"{path}%20",
        f"{path};x",
        f"{path}/.",
        f"/x{path}",
    ):
        if path == "/" and spelled == "/":
            continue
        found = route(method, spelled)
        assert found is None or found == route(method, path), (
            spelled
        )  # an id of another spelling is an id that is not there


@pytest.mark.parametrize(
    "path",
    [
        "/threads/x/state\n",
        "/threads/x/state/",
        "/threads/x//state",
        "/threads//x/state",
        "/threads/x/./state",
        "/threads/x/y/../state",
        "/threads/x/STATE",
        "/threads/x/state;",
        "/threads/x%2Fstate",
        "/threads/x/stat%65",
        "/threads/x/copy\n",
        "/threads\\x\\state",
    ],
)
@pytest.mark.case("E2", "E5")
def test_no_spelling_of_a_path_reaches_state_or_copies(path: str) -> None:
    assert route("POST", path) is None


def test_the_page_on_the_server_lists_exactly_what_is_passed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    listed = re.findall(r"`([A-Z]+) (/[^`]*)`", page.partition("\n## What clients may send\n")[2].partition("\n## ")[0])
    assert sorted(listed) == sorted(lines(LISTED))
    assert f"nested deeper than {DEPTH} levels" in page
    assert f"larger than {BODY_LIMIT >> 20} MiB" in page


def test_the_page_on_the_server_sets_what_this_project_sets() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "server.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```json\n(.*?)^```", page, flags=re.M | re.S)
    told, ours = json.loads(block), json.loads((root / "langgraph.json").read_text(encoding="utf-8"))
    assert told["checkpointer"] == ours["checkpointer"]
    assert told["env"].items() <= ours["env"].items()
    assert {name: told["http"][name] for name in told["http"] if name.startswith("disable_")} == {
        name: ours["http"][name] for name in ours["http"] if name.startswith("disable_")
    }
    assert told["auth"]["disable_studio_auth"] is True


# -- bodies ------------------------------------------------------------------------------------------------------------

ALLOWED: list[tuple[Any, Any]] = [
    ("run", {"assistant_id": "assistant", "input": TEXT}),
    ("run", {"assistant_id": "assistant", "input": {"messages": "hi"}}),
    ("run", {"assistant_id": "assistant", "input": {"messages": {"type": "human", "content": "hi"}}}),
    ("run", {"assistant_id": "assistant", "input": {"messages": ["hi"]}, "stream_mode": ["values", "messages-tuple"]}),
    ("run", {"assistant_id": "assistant", "input": None}),
    ("run", {"assistant_id": "assistant", "command": {"resume": {"decisions": [{"type": "approve"}]}}}),
    ("run", {"assistant_id": "assistant", "command": {"resume": True, "goto": None, "update": None}, "input": None}),
    ("run", {"input": TEXT, "multitask_strategy": "enqueue", "on_disconnect": "cancel", "on_completion": "keep"}),
    ("run", {"input": TEXT, "multitask_strategy": "reject", "if_not_exists": "create", "durability": "sync"}),
    ("run", {"input": TEXT, "config": {"configurable": {"theme": "dark"}, "tags": ["a"], "recursion_limit": 50}}),
    ("run", {"input": TEXT, "config": {"configurable": {"checkpoint_ns": "", "user_id": "bob"}, "metadata": {"a": 1}}}),
    ("run", {"input": TEXT, "checkpoint": {"thread_id": "x", "checkpoint_ns": "", "checkpoint_id": None}}),
    ("run", {"input": TEXT, "interrupt_before": [], "interrupt_after": None, "webhook": None, "after_seconds": 0}),
    ("run", {"input": TEXT, "metadata": {"topic": "shares"}, "context": {"theme": "dark"}}),
    ("thread", {}),
    ("thread", {"thread_id": "x", "if_exists": "do_nothing", "metadata": {"graph_id": "assistant"}}),
    ("metadata", {"metadata": {"title": "Shares"}}),
    ("read", {"metadata": {"owner": "whoever"}, "limit": 10}),
    ("command", {"id": 1, "method": "run.start", "params": {"assistant_id": "assistant", "input": TEXT}}),
    ("command", {"id": 1, "method": "input.respond", "params": {"interrupt_id": "x", "response": {"any": ["thing"]}}}),
    ("command", {"id": 1, "method": "agent.getTree"}),
    ("command", {"id": 1, "method": "subscription.subscribe", "params": {"channels": ["values"]}}),
]  # fmt: skip

RUN: list[dict[str, Any]] = [
    # state, jumps
    {"command": {"goto": "tool_call"}},
    {"command": {"goto": {"node": "tool_call", "input": {}}}},
    {"command": {"update": {"messages": []}}},
    {"command": {"update": [["messages", []]]}},
    {"command": {"resume": True, "update": {"tokens": {}}}},
    {"command": {"resume": True, "graph": "__parent__"}},
    {"command": ["resume"]},
    # where it goes on
    {"checkpoint_id": "1ef"},
    {"checkpoint": {"checkpoint_id": "1ef"}},
    {"checkpoint": {"checkpoint_map": {"": "1ef"}}},
    {"checkpoint": {"checkpoint_ns": "tools:1"}},
    {"checkpoint": {"__pregel_resuming": True}},
    {"checkpoint": {"deputize_wake": "x"}},
    {"checkpoint": "1ef"},
    {"config": {"configurable": {"checkpoint_id": "1ef"}}},
    {"config": {"configurable": {"checkpoint_map": {"": "1ef"}}}},
    {"config": {"configurable": {"checkpoint_ns": "x"}}},
    {"context": {"checkpoint_id": "1ef"}},
    # who it is for
    {"config": {"configurable": {"deputize_wake": "x"}}},
    {"config": {"configurable": {"langgraph_auth_user": {"identity": "bob"}}}},
    {"config": {"configurable": {"langgraph_auth_user_id": "bob"}}},
    {"config": {"configurable": {"langgraph_auth_permissions": ["all"]}}},
    {"config": {"configurable": {"__pregel_checkpointer": {}, "__pregel_send": 1}}},
    {"config": {"run_id": "x"}},
    {"config": {"callbacks": ["x"]}},
    {"context": {"deputize_wake": "x"}},
    {"context": {"langgraph_auth_user": {"identity": "bob"}}},
    {"config": "x"}, {"config": {"configurable": "x"}}, {"context": ["x"]},
    *({"metadata": {name: "user:x"}} for name in sorted(OWN_METADATA)),
    *({"config": {"metadata": {name: "user:x"}}} for name in sorted(OWN_METADATA)),
    {"metadata": ["owner"]},
    # stopping in between, sending elsewhere, erasing
    {"interrupt_before": ["tool_call"]}, {"interrupt_before": "*"}, {"interrupt_after": ["model"]}, {"interrupt_after": "*"},
    {"webhook": "https://attacker.example"}, {"after_seconds": 3600},
    {"multitask_strategy": "rollback"}, {"multitask_strategy": "interrupt"}, {"multitask_strategy": 7},
    {"on_completion": "delete"},
    {"unheard_of": 1},
    # what is said
    *({"input": {"messages": [{"role": role, "content": "x"}]}} for role in ("ai", "assistant", "system", "developer", "tool",
      "function", "remove", "USER", "", "constructor")),
    {"input": {"messages": [{"type": "remove", "id": "__remove_all__"}]}},
    {"input": {"messages": [{"role": "user", "type": "ai", "content": "x"}]}},
    {"input": {"messages": [{"content": "x"}]}},
    {"input": {"messages": [["system", "x"]]}},
    {"input": {"messages": [7]}},
    {"input": {"messages": {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "AIMessage"], "kwargs": {}}}},
    {"input": {**TEXT, "tokens": {}}}, {"input": {"requests": []}}, {"input": "hi"}, {"input": [TEXT]},
]  # fmt: skip

OTHER: list[tuple[Any, Any]] = [
    ("run", [TEXT]), ("run", "x"), ("run", None), ("run", 7),
    ("thread", {"supersteps": [{"updates": []}]}), ("thread", {"owner": "x"}), ("thread", []),
    *(("thread", {"metadata": {name: "user:x"}}) for name in sorted(OWN_METADATA)),
    *(("metadata", {"metadata": {name: "user:x"}}) for name in sorted(OWN_METADATA)),
    ("metadata", {"values": {}}), ("metadata", None),
    ("command", []), ("command", {}), ("command", {"method": "run.cancel"}), ("command", {"method": "state.update"}),
    ("command", {"method": ["run.start"]}), ("command", {"method": "run.start", "params": ["x"]}),
    *(("command", {"method": "input.respond", "params": {"interrupt_id": "x", "response": 1, name: {"a": 1}}})
      for name in ("update", "goto", "config", "metadata", "input")),
    *(("command", {"method": "run.start", "params": {"assistant_id": "a", "input": TEXT, **more}}) for more in (
        {"update": {"messages": []}}, {"goto": "tool_call"}, {"force_resume": True}, {"command": {"resume": 1}},
        {"multitaskStrategy": "rollback"}, {"multitaskStrategy": "interrupt"}, {"config": {"configurable": {"checkpoint_id": "x"}}},
        {"config": {"configurable": {"deputize_wake": "x"}}}, {"config": {"metadata": {"owner": "x"}}}, {"webhook": "https://x"},
        {"metadata": {"owner": "x"}}, {"checkpoint": {"checkpoint_id": "x"}}, {"forkFrom": "x"},
    )),
    ("command", {"method": "run.start", "params": {"input": {"messages": [{"role": "system", "content": "x"}]}}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), ALLOWED)
def test_what_chat_interfaces_and_the_sdks_send_is_passed_on(kind: Any, body: Any) -> None:
    assert check_body(kind, body) is None


@pytest.mark.case("E1", "E3", "E4", "E21", "E22")
@pytest.mark.parametrize("more", RUN, ids=str)
def test_a_run_that_no_client_may_ask_for_is_refused(more: dict[str, Any]) -> None:
    body = {"assistant_id": "assistant", "input": TEXT, **more}
    refusal = check_body("run", body)
    assert refusal is not None
    assert refusal.status in (403, 422)
    assert "attacker" not in refusal.detail


@pytest.mark.case("E3", "E7", "E21", "E22")
@pytest.mark.parametrize(("kind", "body"), OTHER, ids=str)
def test_a_body_that_no_client_may_send_is_refused(kind: Any, body: Any) -> None:
    refusal = check_body(kind, body)
    assert refusal is not None
    assert refusal.status in (403, 422)


@pytest.mark.case("G6")
@pytest.mark.parametrize("kind", ["run", "thread", "metadata", "command", "read", "cancel"])
def test_a_body_that_is_nested_too_deeply_is_refused(kind: Any) -> None:
    def nested(levels: int) -> Any:
        value: Any = "x"
        for level in range(levels):
            value = [value] if level % 2 else {"a": value}
        return value

    refusal = check_body(kind, {"metadata": nested(100_000)})
    assert refusal is not None
    assert refusal.status == 400
    assert check_body("read", nested(DEPTH)) is None
    assert check_body("read", nested(DEPTH + 1)) is not None


# -- the second look, at what the server is about to create ------------------------------------------------------------


def created(**more: Any) -> dict[str, Any]:
    """What ``threads.create_run`` gets: the server has added its own keys to the configurable by then."""
    added = {"langgraph_auth_user": object(), "langgraph_request_id": "x", "__after_seconds__": 0, "x-real": "1"}
    config = {"configurable": {**added, **more.pop("configurable", {})}, "metadata": more.pop("config_metadata", None)}
    kwargs = {"input": TEXT, "command": None, "interrupt_before": None, "webhook": None, "temporary": False}
    kwargs |= {name: more.pop(name) for name in list(more) if name in kwargs or name == "interrupt_after"}
    return {"multitask_strategy": "enqueue", "after_seconds": 0, "kwargs": {**kwargs, "config": config}, **more}


def test_a_run_that_the_server_creates_is_passed() -> None:
    assert check_created_run(created()) is None


@pytest.mark.case("E1", "E3", "E4", "E21", "E22")
@pytest.mark.parametrize(
    "more",
    [
        {"input": {"messages": [{"role": "ai", "content": "x"}]}},
        {"input": {**TEXT, "tokens": {}}},
        {"command": {"goto": "tool_call"}},
        {"command": {"update": {"messages": []}}},
        {"interrupt_before": ["tool_call"]},
        {"interrupt_after": "*"},
        {"webhook": "https://attacker.example"},
        {"multitask_strategy": "rollback"},
        {"multitask_strategy": "interrupt"},
        {"after_seconds": 60},
        {"configurable": {"checkpoint_id": "x"}},
        {"configurable": {"checkpoint_map": {"": "x"}}},
        {"configurable": {"deputize_wake": "x"}},
        {"config_metadata": {"owner": "user:x"}},
    ],
    ids=str,
)
def test_what_came_past_the_guard_is_refused_when_the_run_is_created(more: dict[str, Any]) -> None:
    assert check_created_run(created(**more)) is not None


@pytest.mark.case("E20", "E21", "E6")
@pytest.mark.parametrize(
    "asked",
    [
        {"metadata": {"graph_id": "watcher"}},
        {"config": {"metadata": {"assistant_id": "x"}}},
        {"durability": "exit"},
        {"checkpoint_during": False},
        {"config": {"recursion_limit": 1}},
        {"config": {"recursion_limit": 10**9}},
        {"config": {"recursion_limit": "many"}},
        {
            "input": {
                "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1"}]}]
            }
        },
        {"input": {"messages": [{"role": "user", "content": [{"text": "no type"}]}]}},
    ],
    ids=str,
)
def test_what_would_change_a_threads_graph_its_steps_or_its_words_is_refused(asked: dict[str, Any]) -> None:
    run = {"assistant_id": "assistant", **asked}
    assert check_body("run", run) is not None
    created = {"kwargs": run, "metadata": run.get("metadata")}
    assert check_created_run(created) is not None


def test_what_chat_interfaces_send_is_passed() -> None:
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]
    run = {"input": {"messages": [{"type": "human", "content": parts}]}, "config": {"recursion_limit": 100}}
    assert check_body("run", {"assistant_id": "assistant", "durability": "sync", **run}) is None
    assert check_body("thread", {"metadata": {"graph_id": "assistant"}}) is None
    for kind in ("thread", "metadata"):
        assert check_body(kind, {"ttl": {"strategy": "delete", "ttl": 1}}) is not None
