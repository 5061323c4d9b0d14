"""``deputize doctor``: each likely mistake is found and has its way out, and every check runs whatever the others find."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from click.testing import CliRunner, Result

from identity.cli import main
from identity.cli.surroundings import Surroundings
from identity.keyring import create_client_key, create_keyring, load_keyring
from identity.store import Database
from identity.vault import verify_keyring
from tests.cli.desk import Desk
from tests.support import Clock

ISSUER = "https://login.example.com"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
DOCUMENT: dict[str, Any] = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/jwks",
    "device_authorization_endpoint": f"{ISSUER}/device",
    "backchannel_authentication_endpoint": f"{ISSUER}/bc",
    "backchannel_token_delivery_modes_supported": ["poll", "ping", "push"],
    "code_challenge_methods_supported": ["S256"],
    "scopes_supported": ["openid", "offline_access"],
    "grant_types_supported": ["authorization_code", "refresh_token", EXCHANGE],
    "authorization_details_types_supported": ["payment"],
}
"""An issuer that can do everything."""


class Issuer(httpx.AsyncBaseTransport):
    """Answers as an issuer would; ``document`` is what it says of itself, ``token`` what its token endpoint does."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.document: Any = dict(DOCUMENT)
        self.token: dict[str, Any] | httpx.Response = {"error": "unauthorized_client"}
        self.exchange = "invalid_request"
        self.fails: httpx.Response | Exception | None = None
        self.dated = True
        self.ahead = 0.0
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        headers = {"date": formatdate(self.clock() + self.ahead, usegmt=True)} if self.dated else {}
        if request.url.path == "/token":
            form = dict(parse_qsl((await request.aread()).decode()))
            if form["grant_type"] == EXCHANGE:
                return httpx.Response(400, json={"error": self.exchange})
            return self.token if isinstance(self.token, httpx.Response) else httpx.Response(400, json=self.token)
        if isinstance(self.fails, Exception):
            raise self.fails
        return self.fails or httpx.Response(200, json=self.document, headers=headers)


@dataclass
class Clinic:
    """A whole installation at that issuer, and the doctor who looks at it."""

    home: Path
    clock: Clock
    issuer: Issuer
    given: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys.mkdir(mode=0o700)
        self.given = {
            "issuer": ISSUER,
            "client_id": "my-agent",
            "client_key_file": self.client_key,
            "data_dir": self.data,
            "key_file": self.ring,
        }
        create_keyring(self.ring, self.data, 1.0)
        create_client_key(self.client_key)
        self.seal(self.ring)

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def ring(self) -> Path:
        return self.keys / "ring.json"

    @property
    def client_key(self) -> Path:
        return self.keys / "agent.json"

    @property
    def database(self) -> Path:
        return self.data / "deputize.db"

    def seal(self, ring: Path) -> None:
        """A new database that belongs to a ring."""
        for file in self.data.glob("*"):
            file.unlink()
        database = Database(self.database)
        verify_keyring(database, load_keyring(ring, self.data))
        database.close()

    def run(self, *args: str) -> Result:
        around = Surroundings(folder=self.home, clock=self.clock, mount=self.issuer, given=self.given)
        result = CliRunner().invoke(main, ["doctor", *args], obj=around)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def transcript(self) -> str:
        """What it prints, with its folder and keys named ``HOME``."""
        return self.run().stdout.replace(str(self.home), "HOME")

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("--json").stdout)
        return found

    def wrong(self) -> list[tuple[str, str, str]]:
        """What is wrong: its code, what is said, and the way out."""
        return [
            (f["code"], f["message"].replace(str(self.home), "HOME"), f["fix"].replace(str(self.home), "HOME"))
            for f in self.report()["findings"]
            if f["level"] == "fail"
        ]

    def steps(self) -> dict[str, str]:
        return {name: step["verdict"] for name, step in self.report()["steps"].items()}


@pytest.fixture
def clinic(tmp_path: Path, clock: Clock) -> Clinic:
    return Clinic(tmp_path, clock, Issuer(clock))


HEALTHY = """\
ok    settings        my-agent at https://login.example.com, tenant default
ok    key ring        HOME/keys/ring.json
ok    database        HOME/data/deputize.db, sealed with this key ring
ok    agent's key     HOME/keys/agent.json (ES256)
ok    clock           within 60 seconds of the issuer's
ok    issuer          https://login.example.com answers with its discovery document
ok    refresh tokens  offered
ok    credential      the issuer accepts my-agent
ok    login           browser, back at http://127.0.0.1/callback

login     native      in a browser (code with PKCE S256), with a typed code (device grant)
exchange  native      token exchange (RFC 8693) is among its grants
actor     unknown     whether tokens name the agent (act) is not advertised: tried with the first exchange
approval  native      CIBA, poll and ping
RAR       native      authorization_details of the types payment

Nothing is wrong.
"""


def test_a_healthy_installation(clinic: Clinic) -> None:
    assert clinic.transcript() == HEALTHY
    assert clinic.run().exit_code == 0


def test_nothing_is_changed_and_no_token_is_asked_for_in_anybodys_name(clinic: Clinic) -> None:
    before = {path: path.read_bytes() for path in clinic.home.rglob("*") if path.is_file()}
    clinic.run()
    after = {path: path.read_bytes() for path in clinic.home.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    assert set(after) - set(before) <= {Path(f"{clinic.database}{end}") for end in ("-shm", "-wal")}
    assert clinic.issuer.asked == ["/.well-known/openid-configuration", "/token"]


def test_a_new_installation_is_no_mistake_and_nothing_is_made(clinic: Clinic) -> None:
    for file in clinic.data.glob("*"):
        file.unlink()
    clinic.data.rmdir()
    told = clinic.transcript()
    assert "note  database        HOME/data/deputize.db is made at the first use\n" in told
    assert told.endswith("Nothing is wrong.\n")
    assert not clinic.data.exists()


# -- the mistakes --------------------------------------------------------------------------------------------------------


def lose(*names: str) -> Callable[[Clinic], None]:
    return lambda clinic: [clinic.given.pop(name) for name in names]


def give(**settings: Any) -> Callable[[Clinic], None]:
    return lambda clinic: clinic.given.update(settings)


def say(**document: Any) -> Callable[[Clinic], None]:
    """The issuer's document says something else; ``None`` for nothing."""

    def change(clinic: Clinic) -> None:
        clinic.issuer.document.update(document)
        clinic.issuer.document = {k: v for k, v in clinic.issuer.document.items() if v is not None}

    return change


def answer(made: httpx.Response | Exception) -> Callable[[Clinic], None]:
    return lambda clinic: setattr(clinic.issuer, "fails", made)


def ring_of_another_database(clinic: Clinic) -> None:
    create_keyring(clinic.keys / "other.json", clinic.data, 2.0)
    clinic.seal(clinic.keys / "other.json")


def ring_in_the_data(clinic: Clinic) -> None:
    create_keyring(clinic.data / "ring.json", clinic.home / "elsewhere", 1.0)
    clinic.given["key_file"] = clinic.data / "ring.json"


def public_key_only(clinic: Clinic) -> None:
    key = json.loads(clinic.client_key.read_text())
    clinic.client_key.write_text(json.dumps({k: v for k, v in key.items() if k != "d"}))


def newer(clinic: Clinic) -> None:
    database = Database(clinic.database)
    with database.write() as db:
        db.execute("PRAGMA user_version = 999")
    database.close()


def folder_is_a_file(clinic: Clinic) -> None:
    (clinic.home / "file").write_text("")
    clinic.given["data_dir"] = clinic.home / "file"


def wrong_key(clinic: Clinic) -> None:
    clinic.issuer.token = httpx.Response(401, json={"error": "invalid_client"})


def embedded_lost(clinic: Clinic) -> None:
    clinic.given.clear()
    (clinic.home / ".deputize").mkdir()


def env_file_not_named(clinic: Clinic) -> None:
    clinic.given.clear()
    (clinic.home / ".env").write_text("DEPUTIZE_ISSUER=https://login.example.com\n")


MISTAKES: dict[str, tuple[Callable[[Clinic], None], str, str, str]] = {
    "nothing is set": (
        lambda clinic: clinic.given.clear(),
        "settings",
        "nothing is set: give DEPUTIZE_ISSUER and the others, or DEPUTIZE_EMBEDDED=1 for development",
        "docs/settings.md lists every setting",
    ),
    "the embedded world was lost": (
        embedded_lost,
        "settings",
        "nothing is set, and there is an embedded world in .deputize",
        "DEPUTIZE_EMBEDDED=1 was lost: set it again",
    ),
    "the .env is not read": (
        env_file_not_named,
        "settings",
        "nothing is set, and there is a .env here, which is read only when it is named",
        "deputize --env-file .env doctor",
    ),
    "a setting is missing": (
        lose("client_id"),
        "settings",
        "missing: DEPUTIZE_CLIENT_ID",
        "docs/settings.md lists every setting",
    ),
    "embedded and an issuer": (
        give(embedded=True),
        "settings",
        "DEPUTIZE_EMBEDDED and DEPUTIZE_ISSUER contradict each other: unset one of them",
        "docs/settings.md lists every setting",
    ),
    "a slash too few": (
        say(issuer=f"{ISSUER}/"),
        "issuer_slash",
        "DEPUTIZE_ISSUER is https://login.example.com, and what answers there calls itself https://login.example.com/",
        "Set DEPUTIZE_ISSUER=https://login.example.com/, as it spells itself",
    ),
    "another issuer": (
        say(issuer="https://other.example"),
        "issuer_differs",
        "DEPUTIZE_ISSUER is https://login.example.com, and what answers there calls itself https://other.example",
        "Set the one that you mean, exactly as it spells itself",
    ),
    "the issuer is down": (
        answer(httpx.ConnectError("refused")),
        "unavailable",
        "login.example.com did not answer (ConnectError)",
        "Check the address and the network, then try again",
    ),
    "a web page answers": (
        answer(httpx.Response(200, text="<html>Sign in</html>", headers={"content-type": "text/html"})),
        "discovery",
        "The discovery document of https://login.example.com answered with a web page (HTTP 200)",
        "https://login.example.com/.well-known/openid-configuration is to answer with it: check DEPUTIZE_ISSUER",
    ),
    "nothing is there": (
        answer(httpx.Response(404, json={"error": "not_found"})),
        "discovery",
        "The discovery document of https://login.example.com cannot be had (not_found)",
        "https://login.example.com/.well-known/openid-configuration is to answer with it: check DEPUTIZE_ISSUER",
    ),
    "no key ring": (
        lambda clinic: clinic.ring.unlink(),
        "key_ring",
        "The key ring HOME/keys/ring.json is missing",
        "Restore it from its backup, or make one for a new database: deputize keys new",
    ),
    "a key ring that others read": (
        lambda clinic: clinic.ring.chmod(0o644),
        "key_ring",
        "The key ring HOME/keys/ring.json can be read by others",
        "Run: chmod 600 HOME/keys/ring.json",
    ),
    "a key ring beside the data": (
        ring_in_the_data,
        "key_ring",
        "The key ring HOME/data/ring.json lies in the data folder, so a copy of the one is a copy of both",
        "Set DEPUTIZE_KEY_FILE to a place outside DEPUTIZE_DATA_DIR",
    ),
    "the key ring of another database": (
        ring_of_another_database,
        "settings",
        "The key ring does not belong to the database HOME/data/deputize.db",
        "Restore the key ring that sealed it; nothing was changed",
    ),
    "no client key": (
        lambda clinic: clinic.client_key.unlink(),
        "client_key",
        "The agent's key HOME/keys/agent.json is missing",
        "Make one and register its public part at the issuer: deputize keys client",
    ),
    "a public key only": (
        public_key_only,
        "client_key",
        "HOME/keys/agent.json holds a public key only",
        "Point DEPUTIZE_CLIENT_KEY_FILE to the private JWK",
    ),
    "the issuer does not know the agent": (
        wrong_key,
        "invalid_client",
        "The authorization server refused: invalid_client",
        "Register DEPUTIZE_CLIENT_ID there with the public part of DEPUTIZE_CLIENT_KEY_FILE",
    ),
    "the clock is behind": (
        lambda clinic: setattr(clinic.issuer, "ahead", 75.0),
        "clock_skew",
        "This machine's clock is 75 seconds behind the issuer's",
        "Set it by NTP (timedatectl set-ntp true); tokens are refused beyond 60 seconds",
    ),
    "the clock is ahead": (
        lambda clinic: setattr(clinic.issuer, "ahead", -3600.0),
        "clock_skew",
        "This machine's clock is 3600 seconds ahead of the issuer's",
        "Set it by NTP (timedatectl set-ntp true); tokens are refused beyond 60 seconds",
    ),
    "no S256": (
        say(code_challenge_methods_supported=None),
        "no_s256",
        "The issuer does not say that it checks PKCE with S256 (code_challenge_methods_supported)",
        "Have it switched on there; until then DEPUTIZE_LOGIN=device, and deputize login --device",
    ),
    "no refresh tokens by scope": (
        say(scopes_supported=["openid"]),
        "no_refresh",
        "The issuer does not offer the scope offline_access, so a sign-in brings no refresh token",
        "Allow offline_access to this client at the issuer",
    ),
    "no refresh tokens by grant": (
        say(grant_types_supported=["authorization_code", EXCHANGE]),
        "no_refresh",
        "The issuer does not offer the grant refresh_token",
        "Allow refresh tokens at the issuer, or use another one",
    ),
    "no device endpoint": (
        lambda clinic: (say(device_authorization_endpoint=None)(clinic), give(login="device")(clinic))[0],
        "no_device",
        "DEPUTIZE_LOGIN is device, and the issuer has no device_authorization_endpoint",
        "Set DEPUTIZE_LOGIN=browser, or allow the device grant at the issuer",
    ),
    "no authorization endpoint": (
        say(authorization_endpoint=None),
        "no_browser",
        "DEPUTIZE_LOGIN is browser, and the issuer has no authorization_endpoint",
        "Set DEPUTIZE_LOGIN=device, or use another issuer",
    ),
    "pings that the issuer does not send": (
        lambda clinic: (
            say(backchannel_token_delivery_modes_supported=["poll"])(clinic),
            give(delivery="ping")(clinic),
        )[0],
        "no_ping",
        "DEPUTIZE_DELIVERY is ping, and the issuer does not offer that",
        "Set DEPUTIZE_DELIVERY=poll, and have the client registered so",
    ),
    "pings that cannot arrive": (
        give(delivery="ping"),
        "ping_url",
        "DEPUTIZE_DELIVERY is ping, and the issuer cannot call http://127.0.0.1:2024",
        "Set DEPUTIZE_URL to the https URL where this server is reached, or DEPUTIZE_DELIVERY=poll",
    ),
    "the redirect is elsewhere": (
        give(redirect_uri="http://agent.example/callback"),
        "settings",
        "DEPUTIZE_REDIRECT_URI is neither on loopback (http://127.0.0.1/…) nor an https URL",
        "docs/settings.md lists every setting",
    ),
    "the redirect has the server's port": (
        give(redirect_uri="http://127.0.0.1:2024/callback"),
        "port",
        "DEPUTIZE_REDIRECT_URI and DEPUTIZE_URL both use port 2024",
        "Leave the port out of DEPUTIZE_REDIRECT_URI: a free one is taken then",
    ),
    "the data folder is a file": (
        folder_is_a_file,
        "not_writable",
        "The folder HOME/file cannot be written to",
        "Set DEPUTIZE_DATA_DIR to one that can",
    ),
    "a database of a newer version": (
        newer,
        "store",
        "The database was written by a newer deputize",
        "Use that version; nothing was changed",
    ),
    "a database that others read": (
        lambda clinic: clinic.database.chmod(0o640),
        "readable",
        "The database HOME/data/deputize.db can be read by others",
        "Run: chmod 600 HOME/data/deputize.db",
    ),
    "a damaged database": (
        lambda clinic: clinic.database.write_bytes(b"no database at all" * 100),
        "store",
        "The database HOME/data/deputize.db is not a database, or is encrypted",
        "Restore it from a backup; it was left as it is",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_with_its_way_out(clinic: Clinic, mistake: str) -> None:
    make, code, message, fix = MISTAKES[mistake]
    make(clinic)
    assert (code, message, fix) in clinic.wrong()
    told = clinic.transcript()
    assert re.search(rf"^FAIL  .{{15}} {re.escape(message)}\n {{22}}fix: {re.escape(fix)}$", told, re.MULTILINE)
    assert clinic.run().exit_code == 1


@pytest.mark.parametrize(
    "mistake",
    sorted(set(MISTAKES) - {"embedded and an issuer", "the redirect is elsewhere"}),
)
def test_one_mistake_is_one_thing_wrong(clinic: Clinic, mistake: str) -> None:
    """What rests on it is not blamed as well."""
    MISTAKES[mistake][0](clinic)
    assert len(clinic.wrong()) == 1


def test_all_checks_run_though_each_fails(clinic: Clinic) -> None:
    for mistake in ("a setting is missing", "no key ring", "a damaged database", "no client key", "the issuer is down"):
        MISTAKES[mistake][0](clinic)
    assert [code for code, _, _ in clinic.wrong()] == ["settings", "key_ring", "store", "client_key", "unavailable"]


def test_an_issuer_without_https_is_not_spoken_to(clinic: Clinic) -> None:
    clinic.given["issuer"] = "http://login.example.com"
    codes = [code for code, _, _ in clinic.wrong()]
    assert codes[0] == "settings"
    assert clinic.issuer.asked == []


def test_a_refused_credential_is_blamed_on_the_clock_when_that_is_wrong(clinic: Clinic) -> None:
    MISTAKES["the clock is behind"][0](clinic)
    wrong_key(clinic)
    assert clinic.wrong()[1][2].startswith("Correct this machine's clock first")


def test_a_date_that_a_cache_kept_is_not_taken_for_a_slow_clock(clinic: Clinic) -> None:
    headers = {"date": formatdate(clinic.clock() - 600, usegmt=True), "age": "600"}
    clinic.issuer.fails = httpx.Response(200, json=DOCUMENT, headers=headers)
    assert clinic.wrong() == []


def test_an_answer_without_a_date_is_a_note(clinic: Clinic) -> None:
    clinic.issuer.dated = False
    assert "note  clock           not compared: the issuer's answer has no date\n" in clinic.transcript()


def test_a_setting_that_is_misspelt_is_named_with_the_one_that_was_meant(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPUTIZE_TENNANT", "acme")
    assert clinic.wrong() == [
        ("misspelt", "DEPUTIZE_TENNANT is set and is no setting", "DEPUTIZE_TENANT is one; unset the other")
    ]


@pytest.mark.case("G5")
def test_what_the_issuer_calls_itself_is_escaped(clinic: Clinic) -> None:
    clinic.issuer.document["issuer"] = "https://evil\x1b[2J\u202e.example"
    assert all(line.isprintable() for line in clinic.transcript().splitlines())


# -- what the issuer can do ------------------------------------------------------------------------------------------------

NATIVE = {"login": "native", "exchange": "native", "actor": "unknown", "approval": "native", "RAR": "native"}
NONE = {"exchange": "impossible", "actor": "impossible"}


@pytest.mark.parametrize(
    ("document", "differs"),
    [
        ({}, {}),
        ({"code_challenge_methods_supported": ["plain"]}, {}),
        ({"device_authorization_endpoint": None}, {}),
        ({"device_authorization_endpoint": None, "code_challenge_methods_supported": None}, {"login": "impossible"}),
        ({"grant_types_supported": ["authorization_code", "refresh_token"]}, NONE),
        ({"backchannel_authentication_endpoint": None}, {"approval": "impossible"}),
        ({"backchannel_token_delivery_modes_supported": ["push"]}, {"approval": "impossible"}),
        ({"backchannel_token_delivery_modes_supported": ["ping"]}, {}),
        ({"backchannel_token_delivery_modes_supported": None}, {"approval": "impossible"}),
        ({"authorization_details_types_supported": None}, {"RAR": "impossible"}),
        ({"authorization_details_types_supported": None, "authorization_details_supported": True}, {}),
    ],
)
def test_the_document_says_what_the_issuer_can_do(
    clinic: Clinic, document: dict[str, Any], differs: dict[str, str]
) -> None:
    say(**document)(clinic)
    assert clinic.steps() == NATIVE | differs


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ("unsupported_grant_type", "impossible"),
        ("unauthorized_client", "impossible"),
        ("invalid_request", "native"),
        ("invalid_grant", "native"),
        ("invalid_target", "native"),
        ("teapot", "unknown"),
    ],
)
def test_an_issuer_that_lists_no_grants_is_asked_for_an_exchange_of_nothing(
    clinic: Clinic, error: str, verdict: str
) -> None:
    say(grant_types_supported=None)(clinic)
    clinic.issuer.exchange = error
    assert clinic.steps()["exchange"] == verdict


def test_an_issuer_that_refuses_the_agent_is_not_asked_for_more(clinic: Clinic) -> None:
    say(grant_types_supported=None)(clinic)
    wrong_key(clinic)
    assert clinic.steps()["exchange"] == "unknown"
    assert clinic.issuer.asked.count("/token") == 1


def test_without_ciba_an_approval_is_impossible_and_it_says_why(clinic: Clinic) -> None:
    say(backchannel_authentication_endpoint=None)(clinic)
    assert (
        "approval  impossible  no CIBA; the approval authority of this version serves the embedded world only,"
        " so tools that need an approval fail\n"
    ) in clinic.transcript()
    assert clinic.run().exit_code == 0, "what an issuer cannot do is no mistake of the installation"


# -- the embedded world --------------------------------------------------------------------------------------------------


async def test_the_embedded_world_is_healthy_and_its_approvals_are_ours(desk: Desk) -> None:
    await desk.sign_in()
    report = await desk.facts("doctor")
    assert report["ok"], report
    assert {name: step["verdict"] for name, step in report["steps"].items()} == {
        "login": "native",
        "exchange": "native",
        "actor": "native",
        "approval": "ours",
        "RAR": "native",
    }


async def test_an_embedded_world_that_is_not_served_says_how_to_start_it(desk: Desk) -> None:
    desk.world.network.fault = lambda request: httpx.ConnectError("refused")
    report = await desk.facts("doctor")
    (wrong,) = [f for f in report["findings"] if f["level"] == "fail"]
    assert wrong["fix"] == f"Start what serves the embedded world at {desk.world.url} (in the clone: make dev)"


async def test_something_else_at_the_embedded_worlds_address_is_told(desk: Desk) -> None:
    desk.world.network.fault = lambda request: httpx.Response(404, text="nginx", headers={"content-type": "text/html"})
    report = await desk.facts("doctor")
    (wrong,) = [f for f in report["findings"] if f["level"] == "fail"]
    assert wrong["fix"] == "Something else answers there: set DEPUTIZE_URL to where the embedded world is"
