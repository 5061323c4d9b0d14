"""What ``import identity`` gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import identity

HEAVY = [
    "langchain_openai",
    "openai",
    "langgraph",
    "langchain_core",
    "sqlite_utils",
    "sqlite3",
    "httpx",
    "authlib",
    "joserfc",
]
# A command line prints its help without the libraries that its commands use.
LOADED = f"print([name for name in {HEAVY} if name in sys.modules])"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_names_are_sorted_and_importable() -> None:
    assert identity.__all__ == sorted(identity.__all__)
    for name in identity.__all__:
        assert getattr(identity, name).__module__.startswith("identity."), name


def test_nothing_public_is_left_out_of_all() -> None:
    unlisted = {
        name
        for name, value in vars(identity).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("identity.")
    }
    assert unlisted <= set(identity.__all__)


def test_another_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Broker'"):
        _ = identity.Broker


def test_importing_it_loads_no_graph_database_or_http_library() -> None:
    assert run(f"import sys, identity; {LOADED}").strip() == "[]"


def test_declaring_what_a_tool_needs_loads_none_either() -> None:
    program = """
import sys
from identity import approval, needs, resource

@needs(approval(when=lambda quantity: quantity > 5), token=resource("https://trading.example", "orders:write"))
def buy(quantity: int, token) -> str: ...
"""
    assert run(program + LOADED).strip() == "[]"


def test_the_command_line_prints_the_help_of_every_command_without_them() -> None:
    program = f"""
import sys
import click
from identity.cli import main

def show(command, path):
    main.main([*path, "--help"], prog_name="deputize", standalone_mode=False)
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            show(command.get_command(click.Context(command), name), [*path, name])

show(main, [])
{LOADED}
"""
    *told, loaded = run(program).strip().splitlines()
    assert told[0] == "Usage: deputize [OPTIONS] COMMAND [ARGS]..."
    assert loaded == "[]"
