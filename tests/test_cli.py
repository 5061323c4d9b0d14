"""``deputize`` from its front door: light, one line for a failure, and keys that are made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from joserfc.jwk import ECKey

from identity.cli import main
from identity.keyring import load_client, load_keyring
from identity.store import Database

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings of a deployment that nothing was made for yet."""
    for name, value in {
        "ISSUER": "https://issuer.example",
        "CLIENT_ID": "agent",
        "CLIENT_KEY_FILE": tmp_path / "keys" / "client.json",
        "DATA_DIR": tmp_path / "data",
        "KEY_FILE": tmp_path / "keys" / "keyring.json",
    }.items():
        monkeypatch.setenv(f"DEPUTIZE_{name}", str(value))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def refused(result: Result, exit_code: int, told: str) -> None:
    assert result.exit_code == exit_code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("deputize: ")
    assert told in line


def test_help_loads_no_graph_library_no_model_and_no_database() -> None:
    """Half a second that everybody would wait for at every command."""
    program = (
        "import sys, identity.cli\n"
        "try: identity.cli.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'langgraph', 'langchain_core', 'langchain_openai', 'httpx', 'joserfc', 'sqlite_utils', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "Identity for AI agents" in shown.stdout
    assert shown.stderr == "[]\n"


def test_new_keys_are_private_and_only_the_public_part_of_the_agents_is_printed(installation: Path) -> None:
    made = run("keys", "new")
    assert made.exit_code == 0
    assert str(installation / "keys" / "keyring.json") in made.stdout
    assert "backup" in made.stdout
    load_keyring(installation / "keys" / "keyring.json", installation / "data")
    printed = run("keys", "client")
    assert printed.exit_code == 0
    (public,) = json.loads(printed.stdout)["keys"]
    assert set(public) == {"kty", "crv", "x", "y", "use", "alg", "kid"}
    private = load_client("agent", installation / "keys" / "client.json").key
    assert ECKey.import_key(public).thumbprint() == private.thumbprint()
    for path in (installation / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        for secret in (key.get("k") or key.get("d") for key in _keys(path)):
            assert secret not in made.output + printed.output


def _keys(path: Path) -> list[dict[str, str]]:
    held = json.loads(path.read_text())
    return held.get("keys", [held])  # type: ignore[no-any-return]


@pytest.mark.case("F3")
@pytest.mark.parametrize(("command", "file"), [("new", "keyring.json"), ("client", "client.json")])
def test_keys_that_exist_are_not_made_anew(installation: Path, command: str, file: str) -> None:
    assert run("keys", command).exit_code == 0
    path = installation / "keys" / file
    before = path.read_bytes()
    refused(run("keys", command), 2, "exists already and is not overwritten. Move it away first")
    assert path.read_bytes() == before


@pytest.mark.case("F3")
def test_no_new_key_ring_is_made_for_a_database_that_another_one_sealed(installation: Path) -> None:
    Database(installation / "data" / "deputize.db").close()
    before = (installation / "data" / "deputize.db").read_bytes()
    refused(run("keys", "new"), 2, "Restore the key ring that belongs to it, or move the database away")
    assert not (installation / "keys").exists()
    assert (installation / "data" / "deputize.db").read_bytes() == before


def test_a_place_where_no_file_can_be_written_is_told(installation: Path) -> None:
    (installation / "keys").write_text("a file where the folder should be")
    for command in ("new", "client"):
        refused(run("keys", command), 2, "cannot be used")
