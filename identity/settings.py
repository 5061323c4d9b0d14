"""Settings, from the environment (``DEPUTIZE_…``) or given in Python. The only module that reads the environment."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import NeedsError, SettingsError
from .needs import origin_of

__all__ = ["PING_PATH", "Settings", "as_set", "hosts_of", "is_loopback", "load_settings", "misspelt"]

PING_PATH = "/deputize/ping"
"""Where the CIBA notification endpoint is, under ``Settings.url``."""


class Settings(BaseSettings):
    """Everything that can be set. Each name is an environment variable with ``DEPUTIZE_`` before it.

    Args:
        embedded: use the embedded world (development only): issuer, client and files are then where it puts them.
        url: where people and clients reach this server; the embedded world's base URL, on loopback.
        origins: other origins whose pages may use the server, separated by spaces: a chat interface, LangGraph Studio.
        home: the folder under which the embedded world keeps its things.
        issuer: the OpenID provider's issuer identifier, an https URL.
        client_id: this agent at the issuer; also the audience of the access tokens made for the agent itself.
        client_key_file: the agent's private key, a JWK in a file of mode 0600 (``private_key_jwt``).
        tenant: the organization; every row and seal names it.
        data_dir: the folder of the database.
        key_file: the key ring, outside ``data_dir``.
        login: how a login in a conversation is asked for: ``url`` (the application's own sign-in at ``login_url``; what is
            used when that is set), ``browser`` (code with PKCE), or ``device`` (RFC 8628; the embedded world's).
        login_url: the application's own sign-in page. The request closes when the person comes back with a bearer token.
        redirect_uri: where a browser login comes back to: on loopback (RFC 8252 §7.3), or an https URL.
        audience: whom inbound bearer tokens are for; ``client_id`` when not given.
        delivery: how the issuer says that an approval was decided, as this client is registered there: ``poll``, or
            ``ping`` (it calls ``url``/deputize/ping; polling stays as the safety net).
        pending_limit: approvals that may wait for one person at a time.
        runs_per_minute: runs that one caller may start on the server in a minute.
        visitor: everybody whom nobody named is this one visitor: for a server on your own machine, embedded world only.
        ca_file: certificates (PEM) of authorities that are trusted beside the public ones: for an issuer in a private network.
    """

    # A name that is misspelt in Python is an error; a variable that is set to nothing is one that is not set.
    model_config = SettingsConfigDict(
        env_prefix="DEPUTIZE_", extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    embedded: bool = False
    url: str = "http://127.0.0.1:2024"
    home: Path = Path(".deputize")
    issuer: str = ""
    client_id: str = ""
    client_key_file: Path | None = None
    tenant: str = "default"
    data_dir: Path | None = None
    key_file: Path | None = None
    login: Literal["url", "browser", "device"] | None = None
    login_url: str = ""
    redirect_uri: str = "http://127.0.0.1/callback"
    origins: str = ""
    audience: str = ""
    delivery: Literal["poll", "ping"] = "poll"
    pending_limit: int = 5
    runs_per_minute: int = 60
    visitor: str = ""
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.embedded:
            self._embed()
        else:
            self._require()
        if not self.tenant:
            raise ValueError("DEPUTIZE_TENANT is empty: every row and seal names a tenant")
        back = urlsplit(self.redirect_uri)
        if not (back.scheme == "https" and back.hostname) and not (back.scheme == "http" and _is_here(back.hostname)):
            # Attack: over plain http to another machine, whoever listens on the way gets the code.
            raise ValueError("DEPUTIZE_REDIRECT_URI is neither on loopback (http://127.0.0.1/…) nor an https URL")
        if self.login is None:
            self.login = "url" if self.login_url else "device" if self.embedded else "browser"
        if self.login == "url" and not self.login_url.startswith("https://") and not self.embedded:
            raise ValueError("DEPUTIZE_LOGIN is url, so DEPUTIZE_LOGIN_URL must be the https URL of your sign-in page")
        self.audience = self.audience or self.client_id
        try:
            for origin in self.origins.split():
                origin_of(origin)
        except NeedsError as error:
            raise ValueError(f"DEPUTIZE_ORIGINS: {error.message}") from None
        if self.pending_limit < 1 or self.runs_per_minute < 1:
            raise ValueError("DEPUTIZE_PENDING_LIMIT and DEPUTIZE_RUNS_PER_MINUTE are at least 1")
        return self

    def _embed(self) -> None:
        self.url = self.url.rstrip("/")
        if not is_loopback(self.url):
            raise ValueError(
                f"DEPUTIZE_URL is {self.url}: the embedded world is served on loopback only (http://127.0.0.1:PORT)"
            )
        own = f"{self.url}/issuer"
        if self.issuer not in ("", own):
            # Attack: a configuration that lost half of itself trusts a development issuer in production (casebook G7).
            raise ValueError("DEPUTIZE_EMBEDDED and DEPUTIZE_ISSUER contradict each other: unset one of them")
        self.issuer = own
        self.client_id = self.client_id or "deputize-agent"
        self.client_key_file = self.client_key_file or self.home / "world" / "agent-client.json"
        self.data_dir = self.data_dir or self.home / "data"
        self.key_file = self.key_file or self.home / "keys" / "keyring.json"

    def _require(self) -> None:
        names = ("issuer", "client_id", "client_key_file", "data_dir", "key_file")
        missing = [f"DEPUTIZE_{name.upper()}" for name in names if not getattr(self, name)]
        if len(missing) == len(names):
            raise ValueError(
                "nothing is set: give DEPUTIZE_ISSUER and the others, or DEPUTIZE_EMBEDDED=1 for development"
            )
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}")
        try:
            https = origin_of(self.issuer).startswith("https://")
        except NeedsError:
            https = False
        if not https or "?" in self.issuer or "#" in self.issuer:
            raise ValueError(
                f"DEPUTIZE_ISSUER is {self.issuer!r}: an issuer is an https URL without query (RFC 8414 §2)"
            )
        if self.visitor:
            raise ValueError("DEPUTIZE_VISITOR is for the embedded world only")

    @property
    def database(self) -> Path:
        """The database file."""
        assert self.data_dir is not None  # completed by the validator
        return self.data_dir / "deputize.db"

    @property
    def allow_origins(self) -> tuple[str, ...]:
        """Origins that need no https: the embedded world's own."""
        return (self.url,) if self.embedded else ()


def is_loopback(url: str) -> bool:
    """Whether ``url`` is plain http on a loopback address, with a port and nothing behind it."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return False
    if parts.scheme != "http" or port is None or parts.path or parts.query or parts.fragment or parts.username:
        return False
    return _is_here(parts.hostname)


def hosts_of(url: str) -> frozenset[str]:
    """The values that the ``Host`` header of a request to ``url`` may have. The names of loopback are one."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port is not None else ""
    names = ("127.0.0.1", "localhost", "[::1]") if is_loopback(url) else (parts.hostname or "",)
    return frozenset(f"{name}{port}" for name in names)


def _is_here(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def load_settings(env_file: Path | None = None, **given: Any) -> Settings:
    """Settings from ``given``, then the environment, then ``env_file``, a file of ``NAME=value`` lines.

    Raises:
        SettingsError: one line that names what is wrong and how it is spelled.
    """
    try:
        return Settings(**given) if env_file is None else _WithFile(**{"_env_file": env_file, **given})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        told = str(first["msg"]).removeprefix("Value error, ")
        name = f"DEPUTIZE_{where.upper()}: " if where else ""
        raise SettingsError(
            f"deputize is not configured: {name}{told}", "docs/settings.md lists every setting"
        ) from None


class _WithFile(Settings):
    """A file has other programs' variables in it too."""

    model_config = SettingsConfigDict(extra="ignore")


class _AsSet(_WithFile):
    @model_validator(mode="after")
    def _complete(self) -> Self:
        return self


def as_set(env_file: Path | None = None, **given: Any) -> Settings | None:
    """What is set, complete or not, for whoever looks for the mistake in it; ``None`` if a value cannot be read at all."""
    try:
        return _AsSet(**{"_env_file": env_file, **given})
    except ValidationError:
        return None


def misspelt() -> list[str]:
    """Variables of the environment that look like settings and are none."""
    prefix = str(Settings.model_config["env_prefix"])
    known = {f"{prefix}{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in known)
