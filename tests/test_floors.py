"""Imports point down: the floors of the house, and what may not be imported on each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Each floor may import itself and what is below it.
FLOORS = [
    {
        "errors",
        "messages",
        "text",
        "secret",
        "principal",
        "canonical",
        "redaction",
        "conditions",
        "needs",
        "policy",
        "access",
        "sealing",
    },
    {"oauth"},
    {"settings", "files", "transport", "keyring", "store"},
    {"sessions", "vault", "ledger", "inbound", "relations", "visitors", "authority"},
    {"broker"},
    {"binding", "following", "signout"},
    {"asking"},
    {"calls"},
    {"guarded"},
    {"gate"},
    {"running"},
    {"turn"},
    {"nodes", "middleware", "toolnode", "documents", "identity", "server", "terminal", "cli"},
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
GROUND = FLOORS[0] | FLOORS[1]
# Network, database, clock, environment, graphs: none of it on the ground floor.
NOT_ON_THE_GROUND = {
    "socket",
    "sqlite3",
    "sqlite_utils",
    "time",
    "os",
    "threading",
    "asyncio",
    "langgraph",
    "langchain_core",
}


def modules() -> Iterator[tuple[str, Path]]:
    """``(name of the module or package inside identity, file)``; the public face has no floor."""
    for path in sorted((ROOT / "identity").rglob("*.py")):
        parts = path.relative_to(ROOT / "identity").parts
        if parts != ("__init__.py",):
            yield parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, absolutely spelled, also inside functions; not those for the type checker only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *(node.module.split(".") if node.module else [])])


def test_every_module_stands_on_a_floor() -> None:
    assert {name for name, _ in modules()} == set(HEIGHT)


def test_imports_point_down() -> None:
    wrong = []
    for name, path in modules():
        for imported in imports(path):
            parts = imported.split(".")
            if parts[0] == "identity" and len(parts) > 1 and HEIGHT.get(parts[1], 99) > HEIGHT[name]:
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    assert wrong == []


def test_the_library_knows_nothing_of_the_demo_and_the_compositions() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for _, path in modules()
        for imported in imports(path)
        if imported.split(".")[0] in ("agent", "graphs", "tests")
    ]
    assert wrong == []


def test_the_ground_floor_has_no_network_database_clock_environment_or_graph() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for name, path in modules()
        if name in GROUND
        for imported in imports(path)
        if imported.split(".")[0] in NOT_ON_THE_GROUND
    ]
    assert wrong == []


def test_only_settings_reads_the_environment_and_only_transport_sends() -> None:
    reads = {"os.environ", "os.getenv"}
    sends = {"httpx.AsyncClient", "httpx.Client", "httpx.get", "httpx.post", "httpx.request"}
    for name, path in modules():
        used = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert name == "settings" or not used & reads, path
        assert name == "transport" or not used & sends, path
