"""``deputize init``: a project that works as it is written, beside whatever is there already."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from identity.cli import main
from identity.cli.project import FILES
from identity.settings import load_settings

ROOT = Path(__file__).parents[2]


def init(*args: object) -> Result:
    result = CliRunner().invoke(main, ["init", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_graph_is_the_one_that_this_project_runs(tmp_path: Path) -> None:
    init(tmp_path)
    own = (ROOT / "graphs" / "assistant.py").read_text()
    assert (tmp_path / "graphs" / "assistant.py").read_text() == own, (
        "run: cp graphs/assistant.py identity/cli/templates/assistant.py.txt"
    )


def test_a_new_project_has_its_files_and_the_way_on(tmp_path: Path) -> None:
    told = init(tmp_path / "new").stdout
    for name in (*FILES, ".gitignore"):
        assert (tmp_path / "new" / name).is_file()
        assert str(tmp_path / "new" / name) in told
    assert [line for line in told.splitlines() if line.startswith("  1. ")] == [f"  1. cd {tmp_path / 'new'}"]
    assert "langgraph dev" in told.splitlines()[-1]


def test_here_is_where_it_begins_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(init("--json").stdout)["written"] == list(FILES)
    assert (tmp_path / "app.py").is_file()


def test_no_existing_file_is_touched_and_each_is_named(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("mine = 1\n")
    (tmp_path / "langgraph.json").write_text('{"graphs": {}}')
    facts = json.loads(init(tmp_path, "--json").stdout)
    assert (facts["written"], facts["kept"]) == (["graphs/assistant.py", ".env.example"], ["app.py", "langgraph.json"])
    assert (tmp_path / "app.py").read_text() == "mine = 1\n"
    assert (tmp_path / "langgraph.json").read_text() == '{"graphs": {}}'
    assert any("server_auth(identity)" in step for step in facts["next"]), "what the file needs is told instead"
    assert any('"disable_studio_auth": true' in step for step in facts["next"])


def test_a_second_time_changes_nothing_and_asks_for_nothing_more(tmp_path: Path) -> None:
    init(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    facts = json.loads(init(tmp_path, "--json").stdout)
    assert (facts["written"], facts["ignored"], facts["kept"]) == ([], [], list(FILES))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not any(step.startswith("In ") for step in facts["next"])


def test_keys_and_settings_are_kept_out_of_the_repository(tmp_path: Path) -> None:
    """Attack: a key that was committed once is everybody's."""
    (tmp_path / ".gitignore").write_text("node_modules\n/.env")
    facts = json.loads(init(tmp_path, "--json").stdout)
    ignored = (tmp_path / ".gitignore").read_text().splitlines()
    assert ignored[:2] == ["node_modules", "/.env"]
    assert facts["ignored"] == ignored[2:] == [".keys/", ".data/", ".langgraph_api/"]
    example = dict(
        line.split("=", 1) for line in (tmp_path / ".env.example").read_text().splitlines() if line[:1].isalpha()
    )
    for name in ("DEPUTIZE_CLIENT_KEY_FILE", "DEPUTIZE_KEY_FILE", "DEPUTIZE_DATA_DIR"):
        assert f"{Path(example[name]).parts[0]}/" in ignored


def test_the_example_settings_are_whole_and_have_no_secret(tmp_path: Path) -> None:
    init(tmp_path)
    settings = load_settings(tmp_path / ".env.example")
    assert (settings.issuer, settings.embedded) == ("https://login.example.com", False)
    assert "OPENAI_API_KEY=\n" in (tmp_path / ".env.example").read_text()


def test_langgraph_json_switches_off_what_has_no_guard(tmp_path: Path) -> None:
    init(tmp_path)
    made, own = (json.loads((folder / "langgraph.json").read_text()) for folder in (tmp_path, ROOT))
    assert made["auth"] == {"path": "app:auth", "disable_studio_auth": True}
    off = {name for name in own["http"] if name.startswith("disable_")}
    assert {name for name, value in made["http"].items() if value is True} == off
    assert made["checkpointer"] == own["checkpointer"]
    names = {node.targets[0].id for node in ast.parse((tmp_path / "app.py").read_text()).body
             if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}  # fmt: skip
    paths = [made["auth"]["path"], made["http"]["app"], *made["graphs"].values()]
    assert {path.split(":")[0] for path in paths} == {"app"}
    assert {path.split(":")[1] for path in paths} <= names


def test_the_application_is_one_that_can_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(tmp_path)
    monkeypatch.setenv("DEPUTIZE_EMBEDDED", "1")
    monkeypatch.setenv("DEPUTIZE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    made: dict[str, Any] = {"__name__": "app"}
    source = (tmp_path / "app.py").read_text()
    exec(compile(source, str(tmp_path / "app.py"), "exec"), made)
    assert {"model", "login", "approval", "await_user", "token_exchange", "tool_call"} <= set(made["graph"].nodes)
    assert type(made["auth"]).__name__ == "Auth"
    assert type(made["app"]).__name__ == "Starlette"
    assert not (tmp_path / "home").exists(), "nothing is opened before it is needed"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "graphs").write_text("a file")
    refused = init(tmp_path)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"deputize: {tmp_path / 'graphs'} cannot be written (")
    assert refused.stderr.count("\n") == 1


def test_init_needs_no_settings_and_no_graph_library(tmp_path: Path) -> None:
    assert init(tmp_path).exit_code == 0
    assert sys.modules["identity.cli.project"]
