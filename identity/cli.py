"""``deputize``: keys, and a check of everything that has to work. Light: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .errors import DeputizeError

__all__ = ["main"]


class _Group(click.Group):
    """A group whose commands fail with one line and the error's exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DeputizeError as error:
            click.echo(f"deputize: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deputize")
def main() -> None:
    """Identity for AI agents, on LangGraph.

    Settings come from the environment (DEPUTIZE_...); docs/settings.md lists them.
    """


@main.group()
def keys() -> None:
    """Make the key ring and the agent's key."""


@keys.command("new")
def keys_new() -> None:
    """Make a new key ring at DEPUTIZE_KEY_FILE. An existing one is never overwritten."""
    from .errors import SettingsError
    from .keyring import create_keyring
    from .settings import load_settings

    settings = load_settings()
    assert settings.key_file and settings.data_dir  # completed by Settings
    if settings.database.exists() and not settings.key_file.exists():
        raise SettingsError(
            f"There is a database at {settings.database} already, and a new key ring cannot open it",
            "Restore the key ring that belongs to it, or move the database away",
        )
    create_keyring(settings.key_file, settings.data_dir, time.time())
    click.echo(f"Made {settings.key_file}. Keep a backup of it, apart from the database's.")


@keys.command("client")
def keys_client() -> None:
    """Make the agent's private key at DEPUTIZE_CLIENT_KEY_FILE and print the public one, to register at the issuer."""
    import json

    from .keyring import create_client_key
    from .settings import load_settings

    settings = load_settings()
    assert settings.client_key_file is not None  # completed by Settings
    click.echo(json.dumps({"keys": [create_client_key(Path(settings.client_key_file))]}, indent=2))


@main.command()
def check() -> None:
    """Try everything that has to work: settings, key ring, database, issuer, and the agent's credential."""
    from .identity import Identity

    identity = Identity()
    try:
        settings = identity.settings
        click.echo(f"settings    ok  {'embedded world' if settings.embedded else settings.issuer}")
        _ = identity.database
        click.echo(f"key ring    ok  {settings.key_file}")
        click.echo(f"database    ok  {settings.database}")
        found = identity.transport.call(identity.broker.check)
        click.echo(f"issuer      ok  {found.issuer}")
        click.echo(f"credential  ok  {settings.client_id}")
        for what, supported in (
            ("browser login", found.authorization_endpoint and "S256" in found.code_challenge_methods_supported),
            ("device login", found.device_authorization_endpoint),
            ("approvals", found.backchannel_authentication_endpoint),
        ):
            click.echo(f"{what:14}  {'yes' if supported else 'not offered by this issuer'}")
    finally:
        identity.close()


if __name__ == "__main__":
    main()
