"""Bad input at the front door: one line that says what to do, the right exit code, and nothing lost or overwritten."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool

from identity import AccessToken, DeputizeError, Identity, Principal, Secret, UsageError, approval, needs, resource
from identity.errors import NeedsError
from identity.ledger import Request
from identity.sessions import Place
from identity.settings import load_settings
from tests.front_door import ROOT, deputize, files, refused
from tests.support import URL, Inside, assistant, calls, config, requests, say, signed_in

# -- settings --------------------------------------------------------------------------------------------------------------

_DEPLOYED = {
    "issuer": "https://issuer.example",
    "client_id": "agent",
    "client_key_file": "/nowhere/client.json",
    "data_dir": "/nowhere/data",
    "key_file": "/nowhere/keyring.json",
}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ("nothing is set", "DEPUTIZE_EMBEDDED=1 for development", "docs/settings.md")),
        ({"issuer": "https://issuer.example"}, ("missing: DEPUTIZE_CLIENT_ID, DEPUTIZE_CLIENT_KEY_FILE",)),
        ({**_DEPLOYED, "issuer": "http://issuer.example"}, ("DEPUTIZE_ISSUER is", "an https URL")),
        ({**_DEPLOYED, "issuer": "issuer"}, ("DEPUTIZE_ISSUER is", "an https URL")),
        ({**_DEPLOYED, "embedded": 1}, ("DEPUTIZE_EMBEDDED and DEPUTIZE_ISSUER contradict each other",)),
        ({"embedded": 1, "url": "http://0.0.0.0:2024"}, ("loopback only",)),
        ({**_DEPLOYED, "login": "magic"}, ("DEPUTIZE_LOGIN",)),
    ],
)
def test_settings_that_are_missing_or_wrong(settings: dict[str, object], told: tuple[str, ...]) -> None:
    refused(deputize("whoami", **settings), 2, *told)


@pytest.mark.parametrize(
    ("settings", "exit_code", "told"),
    [({}, 2, "nothing is set"), ({"EMBEDDED": "1"}, 1, "is not a database"), ({"LOGIN": "magic"}, 2, "DEPUTIZE_LOGIN")],
)
def test_the_program_itself_prints_that_line_alone_and_ends_with_that_code(
    tmp_path: Path, settings: dict[str, str], exit_code: int, told: str
) -> None:
    identity = Identity(load_settings(embedded=True, url=URL, home=tmp_path / ".deputize"))
    _ = identity.database
    identity.close()
    (tmp_path / ".deputize" / "data" / "deputize.db").write_text("x" * 5_000)
    process = subprocess.run(
        [sys.executable, "-c", "from identity.cli import main; main()", "whoami"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **{f"DEPUTIZE_{k}": v for k, v in settings.items()}},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (exit_code, "", 1)
    assert process.stderr.startswith("deputize: ")
    assert told in process.stderr


def test_no_settings_at_all_in_python() -> None:
    with pytest.raises(DeputizeError) as error:
        Identity()
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


# -- the key ring and the database ---------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An installation that somebody has signed in to."""
    home = tmp_path / "home"
    identity = Identity(load_settings(embedded=True, url=URL, home=home))
    person = Principal("default", f"{URL}/issuer", "alice")
    identity.vault.store_grant(person, refresh_token=Secret("rt"), scope="", expires_at=9e9, now=0.0)
    identity.close()
    return home


def _ring(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda home: change(home / "keys" / "keyring.json") and None


def _database(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda home: change(home / "data" / "deputize.db") and None


def _another_installations(ring: Path) -> None:
    from identity.keyring import create_keyring

    ring.unlink()
    create_keyring(ring, ring.parents[1] / "data", 0.0)


def _overwritten(database: Path) -> None:
    held = database.read_bytes()
    database.write_bytes(held[:4096] + b"\xa5" * (len(held) - 4096))


def _somebody_elses(database: Path) -> None:
    database.unlink()
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()


def _of_a_newer_version(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA user_version = 999")
    connection.close()


@pytest.mark.case("F3")
@pytest.mark.parametrize(
    ("harm", "exit_code", "told"),
    [
        pytest.param(_ring(Path.unlink), 2, ("key ring", "is missing", "Restore it"), id="no key ring"),
        pytest.param(_ring(lambda ring: ring.chmod(0o644)), 2, ("read by others", "chmod 600"), id="a public key ring"),
        pytest.param(
            _ring(lambda ring: ring.write_bytes(b"\xff")), 2, ("cannot be read",), id="an unreadable key ring"
        ),
        pytest.param(_ring(lambda ring: ring.write_text("{")), 2, ("is not a key ring", "backup"), id="a cut key ring"),
        pytest.param(_ring(_another_installations), 2, ("does not belong", "Restore"), id="another key ring"),
        pytest.param(
            _database(lambda db: db.write_text("x" * 5_000)), 1, ("not a database", "backup"), id="no database"
        ),
        pytest.param(_database(_overwritten), 1, ("is damaged", "backup", "left as it is"), id="a damaged database"),
        pytest.param(_database(_somebody_elses), 1, ("another program", "DEPUTIZE_DATA_DIR"), id="another program's"),
        pytest.param(
            _database(_of_a_newer_version), 1, ("newer deputize", "nothing was changed"), id="a newer database"
        ),
    ],
)
def test_keys_and_databases_that_are_missing_wrong_or_damaged(
    home: Path, harm: Callable[[Path], None], exit_code: int, told: tuple[str, ...]
) -> None:
    harm(home)
    before = files(home)
    refused(deputize("whoami", embedded=1, url=URL, home=home), exit_code, *told)
    assert files(home) == before


@pytest.mark.parametrize(("opens", "exit_code"), [((Path, "open"), 2), ((os, "open"), 1)], ids=["key ring", "database"])
def test_files_of_somebody_else(
    home: Path, monkeypatch: pytest.MonkeyPatch, opens: tuple[Any, str], exit_code: int
) -> None:
    """Played: to root, which tests may be, nothing is unreadable."""
    before = files(home)

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as system:
        system.setattr(*opens, denied)
        result = deputize("whoami", embedded=1, url=URL, home=home)
    refused(result, exit_code, "cannot be", "owner and mode")
    assert files(home) == before


def test_a_home_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    refused(deputize("whoami", embedded=1, url=URL, home=tmp_path / "home"), 2, "cannot be used", "Choose another")
    assert (tmp_path / "home").read_text() == "a file"


# -- tools ---------------------------------------------------------------------------------------------------------------------


def _looks_at_what_is_not_there() -> None:
    @tool
    @needs(approval(when=lambda quantity, prize: quantity * prize > 1_000))
    def buy_stock(quantity: int, price: int) -> str:
        """Buy."""
        return ""


def _receives_a_token_nowhere() -> None:
    @tool
    @needs(token=resource(f"{URL}/trading", "orders:write"))
    def buy_stock(quantity: int) -> str:
        """Buy."""
        return ""


def _looks_at_the_token() -> None:
    @tool
    @needs(approval(when=lambda token: True), token=resource(f"{URL}/trading", "orders:write"))
    def buy_stock(quantity: int, token: AccessToken) -> str:
        """Buy."""
        return ""


@pytest.mark.parametrize(
    ("define", "told"),
    [
        (_looks_at_what_is_not_there, "buy_stock() looks at 'prize'. buy_stock() has: quantity, price"),
        (_receives_a_token_nowhere, "buy_stock() has no parameter 'token'"),
        (_looks_at_the_token, "buy_stock() looks at 'token'. buy_stock() has: quantity"),
    ],
)
def test_a_declaration_that_does_not_fit_its_tool_fails_where_the_tool_is_defined(
    define: Callable[[], None], told: str
) -> None:
    with pytest.raises(NeedsError) as error:
        define()
    assert error.value.exit_code == 2
    assert told in str(error.value)
    assert str(error.value).isprintable()


# -- links that have run out -----------------------------------------------------------------------------------------------------

_HERE = Place("default", "assistant", "t1")


def rows(world: Inside) -> list[tuple[Any, ...]]:
    read = world.identity.database.read
    return [*read("SELECT * FROM grants"), *read("SELECT * FROM sessions"), *read("SELECT * FROM effects")]


async def test_a_login_link_that_has_run_out(world: Inside) -> None:
    (asked,) = requests(await say(assistant(world, calls("show_portfolio"))))
    world.clock.advance(asked["expires_at"] - world.clock())
    assert "its time is over. Check it, or ask for a new one" in " ".join(
        (await world.person("alice").sign_in(asked)).split()
    )
    assert rows(world) == []


async def test_a_redirect_that_comes_too_late(world: Inside) -> None:
    identity = world.again(login="browser", redirect_uri="http://127.0.0.1:7777/callback")
    try:
        request = await identity.transport.acall(identity.asking.login, _HERE, None, "m1", ())
        assert isinstance(request, Request)
        query = [("code", "c"), ("state", request.url.split("state=")[1].split("&")[0]), ("iss", f"{URL}/issuer")]
        world.clock.advance(request.expires_at - world.clock())
        with pytest.raises(UsageError, match=r"unknown, used or expired\. Start again") as error:
            await identity.transport.acall(identity.asking.browser_callback, query)
        assert error.value.exit_code == 2
        assert rows(world) == []
    finally:
        identity.close()


async def test_an_approval_link_that_has_run_out(world: Inside) -> None:
    await signed_in(world)
    order = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})
    with world.identity.caller(world.person("alice").principal):
        graph = assistant(world, calls(order), "It was too late.")
        (asked,) = requests(await say(graph))
        before = rows(world)
        world.clock.advance(asked["expires_at"] - world.clock())
        with pytest.raises(DeputizeError):
            await world.person("alice").approve(asked)
        state = await world.identity.resume(graph, config())
    (answer,) = [m for m in state["messages"] if m.type == "tool"]
    assert answer.status == "error"
    assert "expired. Ask again" in answer.text
    assert world.orders() == []
    assert rows(world) == before
