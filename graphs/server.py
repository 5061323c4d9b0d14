"""What ``langgraph.json`` names: the assistant with the demo's model and tools, from settings.

Compiled without a checkpointer, since the server brings its own.
"""

from __future__ import annotations

from agent.app import identity
from agent.model import chat_model
from agent.tools import research_tools, trading_tools
from graphs.assistant import build_assistant

tools = [*trading_tools(identity.settings.url), *research_tools(identity)]
graph = build_assistant(chat_model(), tools, identity)
