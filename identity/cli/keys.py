"""``deputize keys``: the two keys of an installation."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import SettingsError
from .output import json_option, tell
from .surroundings import Surroundings

__all__ = ["keys"]


@click.group()
def keys() -> None:
    """Make the key ring and the agent's key."""


@keys.command("new")
@json_option
@click.pass_obj
def new(around: Surroundings, as_json: bool) -> None:
    """Make a new key ring.

    It is written to DEPUTIZE_KEY_FILE; an existing one is never overwritten.
    """
    from ..keyring import create_keyring

    settings = around.settings()
    assert settings.key_file and settings.data_dir  # completed by Settings
    if settings.database.exists() and not settings.key_file.exists():
        raise SettingsError(
            f"There is a database at {settings.database} already, and a new key ring cannot open it",
            "Restore the key ring that belongs to it, or move the database away",
        )
    create_keyring(settings.key_file, settings.data_dir, around.clock())
    tell(
        as_json,
        {"key_file": str(settings.key_file)},
        [f"Made {settings.key_file}. Keep a backup of it, apart from the database's."],
    )


@keys.command("client")
@json_option
@click.pass_obj
def client(around: Surroundings, as_json: bool) -> None:
    """Make the agent's private key, and print the public one.

    The private key is written to DEPUTIZE_CLIENT_KEY_FILE; an existing one is never overwritten. The public one is to be
    registered at the issuer.
    """
    from ..keyring import create_client_key

    settings = around.settings()
    assert settings.client_key_file is not None  # completed by Settings
    made = {"keys": [create_client_key(Path(settings.client_key_file))]}
    tell(as_json, {**made, "client_key_file": str(settings.client_key_file)}, [json.dumps(made, indent=2)])
