"""LangGraph: what checkpoints hold in clear, and what reading one may run."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import types
from typing import Any, TypedDict

import ormsgpack
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_SINGLE_ARG, JsonPlusSerializer
from langgraph.constants import START
from langgraph.graph import StateGraph
from pydantic import SecretStr

PLANTED = "at_planted_value"


class State(TypedDict, total=False):
    value: Any


def stored(saver: InMemorySaver) -> bytes:
    """Every byte that a saver holds."""
    return repr((saver.storage, saver.writes, saver.blobs)).encode()


def run(node: Any, given: Any, config: Any = None, **more: Any) -> bytes:
    saver = InMemorySaver()
    graph = StateGraph(State, **more).add_node("node", node).add_edge(START, "node").compile(checkpointer=saver)
    configurable = {"thread_id": "t", **(config or {}).pop("configurable", {})}
    with contextlib.suppress(ZeroDivisionError):
        graph.invoke({"value": given}, {"configurable": configurable, **(config or {})})
    return stored(saver)


def test_a_secret_str_in_state_is_stored_in_clear() -> None:
    assert PLANTED.encode() in run(lambda state: {}, SecretStr(PLANTED))


def test_metadata_and_configurable_of_a_run_are_stored_in_clear() -> None:
    assert PLANTED.encode() in run(lambda state: {}, 1, {"metadata": {"user_token": PLANTED}})
    assert PLANTED.encode() in run(lambda state: {}, 1, {"configurable": {"user_token": PLANTED}})


def test_the_text_of_an_exception_is_stored_in_clear() -> None:
    def fails(state: State) -> State:
        raise ZeroDivisionError(PLANTED)

    assert PLANTED.encode() in run(fails, 1)


def test_the_runtime_context_is_not_stored() -> None:
    saver = InMemorySaver()
    graph = StateGraph(State, context_schema=dict)  # type: ignore[type-var]
    graph.add_node("node", lambda state: {})
    graph.add_edge(START, "node")
    config: Any = {"configurable": {"thread_id": "t"}}
    graph.compile(checkpointer=saver).invoke({"value": 1}, config, context={"token": PLANTED})
    assert PLANTED.encode() not in stored(saver)


class Planted:
    """What somebody who can write to the checkpoint database stores."""

    ran: list[str] = []

    def __init__(self, how: str = "") -> None:
        Planted.ran.append(how)

    def __reduce__(self) -> Any:
        return Planted, ("pickle",)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("planted")
    module.Planted = Planted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planted", module)
    Planted.ran.clear()


def as_pickle() -> tuple[str, bytes]:
    return "pickle", pickle.dumps(object.__new__(Planted))


def as_msgpack() -> tuple[str, bytes]:
    inner = ormsgpack.packb(("planted", "Planted", "msgpack"))
    return "msgpack", ormsgpack.packb(ormsgpack.Ext(EXT_CONSTRUCTOR_SINGLE_ARG, inner))


def as_json() -> tuple[str, bytes]:
    return "json", b'{"lc": 2, "type": "constructor", "id": ["planted", "Planted"], "args": ["json"]}'


def test_pickle_runs_with_the_fallback_which_is_off_by_default() -> None:
    with pytest.raises(NotImplementedError):
        JsonPlusSerializer().loads_typed(as_pickle())
    assert Planted.ran == []
    JsonPlusSerializer(pickle_fallback=True).loads_typed(as_pickle())
    assert Planted.ran == ["pickle"]


def test_with_the_pickle_fallback_strict_msgpack_does_not_help() -> None:
    JsonPlusSerializer(pickle_fallback=True, allowed_msgpack_modules=None).loads_typed(as_pickle())
    assert Planted.ran == ["pickle"]


def test_msgpack_calls_any_constructor_unless_it_is_strict() -> None:
    JsonPlusSerializer().loads_typed(as_msgpack())
    assert Planted.ran == ["msgpack"]  # with a warning in the log
    Planted.ran.clear()
    JsonPlusSerializer(allowed_msgpack_modules=None).loads_typed(as_msgpack())
    assert Planted.ran == []


def test_allowed_json_modules_guards_the_older_json_form_only() -> None:
    """``langgraph.json`` allows none. Checkpoints are written as msgpack, which has a switch of its own."""
    JsonPlusSerializer(allowed_json_modules=True).loads_typed(as_json())
    assert Planted.ran == ["json"]
    Planted.ran.clear()
    JsonPlusSerializer(allowed_json_modules=None).loads_typed(as_json())
    assert Planted.ran == []
    JsonPlusSerializer(allowed_json_modules=None).loads_typed(as_msgpack())
    assert Planted.ran == ["msgpack"]


def test_strict_msgpack_is_switched_by_the_environment() -> None:
    """``LANGGRAPH_STRICT_MSGPACK`` is read when LangGraph is imported, so a graph cannot set it for itself."""
    code = (
        "from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer;"
        "print(JsonPlusSerializer()._allowed_msgpack_modules)"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **more}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for more in ({}, {"LANGGRAPH_STRICT_MSGPACK": "true"})
    ]
    assert told == ["True", "None"]
