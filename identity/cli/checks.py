"""What ``deputize doctor`` looks at. Every check runs, whatever the others found, and nothing is changed by any.

A check finds that something is right, that it is wrong and how it is mended, or something worth a note. What an issuer can
do is another matter: :mod:`identity.cli.steps`.
"""

from __future__ import annotations

import difflib
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from ..errors import SettingsError
from ..keyring import load_client, load_keyring
from ..oauth.metadata import ServerMetadata
from ..settings import Settings, as_set, load_settings, misspelt
from ..store import marker_of
from ..text import printable
from ..vault import require_ring_of
from .discovery import ask_issuer
from .findings import Examination, Report
from .steps import steps_of

__all__ = ["examine"]


def examine(
    *,
    env_file: Path | None = None,
    folder: Path = Path(),
    clock: Callable[[], float] = time.time,
    mount: httpx.AsyncBaseTransport | None = None,
    given: Mapping[str, Any] | None = None,
) -> Report:
    """Look at everything.

    Args:
        env_file, given: settings after and before the environment's.
        folder: where the command was called: what lies there says what was forgotten.
        clock: unix seconds.
        mount: replaces the network.
    """
    now = Examination(clock, mount, folder)
    _settings(now, env_file, dict(given or {}))
    if now.settings is None:
        return Report(tuple(now.findings), steps_of(None, {}))
    _key_ring(now, now.settings)
    _database(now, now.settings)
    _client_key(now, now.settings)
    probed = ask_issuer(now, now.settings)
    _login(now, now.settings)
    return Report(
        tuple(now.findings), steps_of(now.server, now.document, probed=probed, embedded=now.settings.embedded)
    )


# -- settings ------------------------------------------------------------------------------------------------------------


def _settings(now: Examination, env_file: Path | None, given: dict[str, Any]) -> None:
    for name in misspelt():
        near = difflib.get_close_matches(name.upper(), [f"DEPUTIZE_{n.upper()}" for n in Settings.model_fields], 1)
        now.fail(
            "settings",
            "misspelt",
            f"{name} is set and is no setting",
            f"{near[0]} is one; unset the other" if near else "Unset it",
        )
    try:
        now.settings = load_settings(env_file, **given)
    except SettingsError as error:
        now.settings = as_set(env_file, **given)
        now.fail("settings", error.code, *_lost(now, env_file, error))
        return
    settings = now.settings
    if settings.embedded:
        now.ok("settings", f"the embedded world at {settings.url}, for development")
    else:
        now.ok("settings", f"{printable(settings.client_id)} at {settings.issuer}, tenant {printable(settings.tenant)}")


def _lost(now: Examination, env_file: Path | None, error: SettingsError) -> tuple[str, str]:
    """What is wrong with the settings, and a way out that fits what lies about here."""
    message, raw = error.message.removeprefix("deputize is not configured: "), now.settings
    empty = raw is not None and not (raw.issuer or raw.client_id or raw.client_key_file or raw.data_dir or raw.key_file)
    if empty and env_file is None and (now.folder / ".env").exists():
        return "nothing is set, and there is a .env here, which is read only when it is named", (
            "deputize --env-file .env doctor"
        )
    if empty and (now.folder / ".deputize").exists():
        return (
            "nothing is set, and there is an embedded world in .deputize",
            "DEPUTIZE_EMBEDDED=1 was lost: set it again",
        )
    return message, error.hint


# -- files -----------------------------------------------------------------------------------------------------------------


def _key_ring(now: Examination, settings: Settings) -> None:
    if settings.key_file is None or settings.data_dir is None:
        now.note("key ring", "not looked for: DEPUTIZE_KEY_FILE or DEPUTIZE_DATA_DIR is missing")
        return
    if settings.embedded and not settings.key_file.exists() and not settings.database.exists():
        now.note("key ring", f"{settings.key_file} is made at the first start")
        return
    with now.failing("key ring", "key_ring"):
        now.ring = load_keyring(settings.key_file, settings.data_dir)
        now.ok("key ring", f"{settings.key_file}")


def _database(now: Examination, settings: Settings) -> None:
    if settings.data_dir is None:
        now.note("database", "not looked for: DEPUTIZE_DATA_DIR is missing")
        return
    place = settings.data_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        now.fail(
            "database",
            "not_writable",
            f"The folder {place} cannot be written to",
            "Set DEPUTIZE_DATA_DIR to one that can",
        )
        return
    path = settings.database
    if not path.exists():
        now.note("database", f"{path} is made at the first use")
        return
    if path.stat().st_mode & 0o077:
        now.fail("database", "readable", f"The database {path} can be read by others", f"Run: chmod 600 {path}")
    with now.failing("database"):
        marker = marker_of(path)
        if now.ring is None:
            now.note("database", f"{path}; whether the key ring is its own was not tried")
        elif marker is None:
            now.ok("database", f"{path}, new")
        else:
            require_ring_of(marker, now.ring, path)
            now.ok("database", f"{path}, sealed with this key ring")


def _client_key(now: Examination, settings: Settings) -> None:
    if settings.client_key_file is None:
        now.note("agent's key", "not looked for: DEPUTIZE_CLIENT_KEY_FILE is missing")
        return
    fix = ""
    if settings.embedded and not settings.client_key_file.exists():
        fix = f"The embedded world makes it: start what serves it at {settings.url} (in the clone: make dev)"
    with now.failing("agent's key", "client_key", fix):
        now.client = load_client(settings.client_id, settings.client_key_file)
        now.ok("agent's key", f"{settings.client_key_file} ({now.client.alg})")


# -- signing in --------------------------------------------------------------------------------------------------------------


def _login(now: Examination, settings: Settings) -> None:
    """Whether the ways to sign in and to be told of a decision that are set can be gone with this issuer."""
    way = settings.login or ("device" if settings.embedded else "browser")
    before = len(now.findings)
    if now.server is not None:
        _offered(now, now.server, way)
        _delivered(now, now.server, settings)
    _redirect(now, settings)
    if now.server is None:
        now.note("login", f"{way}; whether the issuer has it is not known")
    elif len(now.findings) == before:
        where = printable(settings.login_url if way == "url" else settings.redirect_uri)
        now.ok("login", {"url": f"people sign in at {where}", "browser": f"browser, back at {where}"}.get(way, way))


def _offered(now: Examination, server: ServerMetadata, way: str) -> None:
    s256 = "S256" in server.code_challenge_methods_supported
    if way == "device" and server.device_authorization_endpoint is None:
        now.fail(
            "login",
            "no_device",
            "DEPUTIZE_LOGIN is device, and the issuer has no device_authorization_endpoint",
            "Set DEPUTIZE_LOGIN=browser, or allow the device grant at the issuer",
        )
    elif way == "browser" and server.authorization_endpoint is None:
        now.fail(
            "login",
            "no_browser",
            "DEPUTIZE_LOGIN is browser, and the issuer has no authorization_endpoint",
            "Set DEPUTIZE_LOGIN=device, or use another issuer",
        )
    elif server.authorization_endpoint is not None and not s256:
        told = "The issuer does not say that it checks PKCE with S256 (code_challenge_methods_supported)"
        if way == "browser":
            fix = "Have it switched on there; until then DEPUTIZE_LOGIN=device, and deputize login --device"
            now.fail("login", "no_s256", told, fix)
        else:
            now.note("login", f"{told}: at the terminal, sign in with deputize login --device")


def _delivered(now: Examination, server: ServerMetadata, settings: Settings) -> None:
    if settings.delivery != "ping":
        return
    if "ping" not in server.backchannel_token_delivery_modes_supported:
        now.fail(
            "approvals",
            "no_ping",
            "DEPUTIZE_DELIVERY is ping, and the issuer does not offer that",
            "Set DEPUTIZE_DELIVERY=poll, and have the client registered so",
        )
    elif not settings.embedded and not settings.url.startswith("https://"):
        now.fail(
            "approvals",
            "ping_url",
            f"DEPUTIZE_DELIVERY is ping, and the issuer cannot call {printable(settings.url)}",
            "Set DEPUTIZE_URL to the https URL where this server is reached, or DEPUTIZE_DELIVERY=poll",
        )


def _redirect(now: Examination, settings: Settings) -> None:
    parts = urlsplit(settings.redirect_uri)
    try:
        port = parts.port
    except ValueError:
        now.fail("login", "redirect", f"DEPUTIZE_REDIRECT_URI is {printable(settings.redirect_uri)!r}, with a port that is none",
                 "Set it to http://127.0.0.1/callback")  # fmt: skip
        return
    if parts.scheme == "https":
        now.note("login", "DEPUTIZE_REDIRECT_URI is a web page: at the terminal, sign in with deputize login --device")
    elif parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost"):
        now.fail("login", "redirect", f"DEPUTIZE_REDIRECT_URI is {printable(settings.redirect_uri)!r}, which is not this machine",
                 "Set it to http://127.0.0.1/callback (RFC 8252 §7.3)")  # fmt: skip
    elif port and port == urlsplit(settings.url).port:
        now.fail("login", "port", f"DEPUTIZE_REDIRECT_URI and DEPUTIZE_URL both use port {port}",
                 "Leave the port out of DEPUTIZE_REDIRECT_URI: a free one is taken then")  # fmt: skip
    elif port and _taken(port):
        now.fail("login", "port", f"The port {port} of DEPUTIZE_REDIRECT_URI is taken",
                 "Stop what listens there, or leave the port out: a free one is taken then")  # fmt: skip


def _taken(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
