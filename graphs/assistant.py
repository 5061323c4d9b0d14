"""The assistant: the whole graph, composed from the public nodes of deputize. This is the file to read first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Checkpointer

from identity import Identity
from identity.nodes import INTAKE_ROUTES, ROUTES, Input, State, new_messages_only


def build_assistant(
    model: BaseChatModel, tools: Sequence[BaseTool], identity: Identity, checkpointer: Checkpointer = None
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A chat agent whose tools run for the person who is talking, with login and approval where tools need them."""
    nodes = identity.nodes(model, tools, graph="assistant")
    graph = StateGraph(State, input_schema=Input)
    graph.add_node("model", nodes.model)
    graph.add_node("login", nodes.login)
    graph.add_node("approval", nodes.approval)
    graph.add_node("await_user", nodes.await_user)
    graph.add_node("token_exchange", nodes.token_exchange)
    graph.add_node("tool_call", nodes.tool_call)
    graph.add_node("tidy", nodes.tidy)
    graph.add_node("settle", nodes.settle)
    graph.add_conditional_edges(START, nodes.intake, INTAKE_ROUTES)
    graph.add_edge("tidy", "settle")
    graph.add_edge("settle", "model")
    graph.add_conditional_edges("model", nodes.authorize, ROUTES)
    graph.add_edge("login", "await_user")
    graph.add_edge("approval", "await_user")
    graph.add_conditional_edges("await_user", nodes.authorize, ROUTES)
    graph.add_conditional_edges("token_exchange", nodes.authorize, ROUTES)
    graph.add_edge("tool_call", "model")
    return new_messages_only(graph.compile(checkpointer=checkpointer, name="assistant"))
