"""An installation of the embedded world: its folder, its keys, its people. All random, all private, made once."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from identity.errors import SettingsError
from identity.files import create_private, private_folder, read_private
from identity.keyring import create_client_key
from identity.settings import is_loopback
from identity.store import Database

from .storage import MIGRATIONS

__all__ = ["AGENT", "Installation", "PersonRecord", "install"]

AGENT = "deputize-agent"
TRADING = "trading-api"

_PEOPLE = {"alice": "Alice (trader)", "bob": "Bob (analyst)", "carol": "Carol (manager)"}
_WAY_OUT = "Remove the whole folder to make a new world; what is in it is for development only"


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """One of the people. ``subject`` is what tokens call them."""

    username: str
    name: str
    subject: str
    password: str

    def __repr__(self) -> str:
        return f"PersonRecord({self.username!r})"


@dataclass(frozen=True, slots=True)
class Installation:
    """An embedded world on disk.

    Args:
        url: ``http://127.0.0.1:PORT``, where it is served.
        signing_key: of the issuer.
    """

    folder: Path
    url: str
    people: Mapping[str, PersonRecord]
    signing_key: ECKey
    agent_key: Mapping[str, Any]
    trading_key: Mapping[str, Any]
    database: Database

    @property
    def issuer(self) -> str:
        """The issuer identifier."""
        return f"{self.url}/issuer"

    @property
    def trading(self) -> str:
        """The trading API's URL and audience."""
        return f"{self.url}/trading"


def install(folder: Path, url: str, environment: Mapping[str, str] = os.environ) -> Installation:
    """Make the world in ``folder``, or open the one that is there.

    Raises:
        SettingsError: ``url`` is not on loopback, or the settings are those of a deployment: the development issuer is
            never started beside them (casebook G7).
    """
    url = url.rstrip("/")
    if not is_loopback(url):
        raise SettingsError(
            f"The embedded world cannot be served at {url}",
            "It is for development on this machine: use http://127.0.0.1:PORT",
        )
    if environment.get("DEPUTIZE_ISSUER", "") not in ("", f"{url}/issuer"):
        raise SettingsError(
            "DEPUTIZE_ISSUER names an issuer of your own, so the embedded world does not start", "Unset one of the two"
        )
    private_folder(folder)
    if folder.stat().st_mode & 0o077:
        raise SettingsError(f"The folder {folder} can be read by others", f"Run: chmod 700 {folder}")
    people_file = folder / "people.json"
    if not people_file.exists():
        made = {
            username: {"name": name, "sub": f"usr_{secrets.token_hex(8)}", "password": secrets.token_urlsafe(9)}
            for username, name in _PEOPLE.items()
        }
        create_private(people_file, json.dumps(made, indent=2) + "\n")
    return Installation(
        folder=folder,
        url=url,
        people=_people(people_file),
        signing_key=_key(folder / "issuer-key.json"),
        agent_key=_key(folder / "agent-client.json").as_dict(private=False),
        trading_key=_key(folder / "trading-client.json").as_dict(private=False),
        database=Database(folder / "world.db", MIGRATIONS),
    )


def _people(path: Path) -> dict[str, PersonRecord]:
    what = "The people's file"
    try:
        found = {
            username: PersonRecord(username, str(person["name"]), str(person["sub"]), str(person["password"]))
            for username, person in _json(path, what).items()
        }
    except (AttributeError, KeyError, TypeError):
        found = {}
    if not found:
        raise SettingsError(f"{what} {path} is damaged", _WAY_OUT)
    return found


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(read_private(path, what, _WAY_OUT))
    except ValueError:
        raise SettingsError(f"{what} {path} is damaged", _WAY_OUT) from None
    return found


def _key(path: Path) -> ECKey:
    if not path.exists():
        create_client_key(path)
    try:
        return ECKey.import_key(_json(path, "The key file"))
    except (JoseError, ValueError, KeyError, TypeError):
        raise SettingsError(f"The key file {path} is damaged", _WAY_OUT) from None
