"""Settings fail closed: what is missing, contradicts itself or is misspelt is an error of one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from identity import SettingsError
from identity.settings import is_loopback, load_settings

PRODUCTION: dict[str, Any] = {
    "issuer": "https://issuer.example",
    "client_id": "agent",
    "client_key_file": Path("/keys/client.json"),
    "data_dir": Path("/data"),
    "key_file": Path("/keys/keyring.json"),
}


def refused(**given: Any) -> str:
    with pytest.raises(SettingsError) as error:
        load_settings(**given)
    told = str(error.value)
    assert error.value.exit_code == 2
    assert "\n" not in told
    assert "docs/settings.md" in told
    return told


def test_a_whole_configuration_is_taken_as_it_is() -> None:
    settings = load_settings(**PRODUCTION)
    assert settings.database == Path("/data/deputize.db")
    assert settings.allow_origins == ()
    assert settings.tenant == "default"
    assert not settings.embedded


def test_every_setting_is_a_variable_with_deputize_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(f"DEPUTIZE_{name.upper()}", str(value))
    monkeypatch.setenv("DEPUTIZE_TENANT", "acme")
    assert load_settings().tenant == "acme"
    assert load_settings(tenant="globex").tenant == "globex", "what is given in Python comes first"


def test_nothing_set_at_all_says_how_to_begin() -> None:
    told = refused()
    assert "nothing is set" in told
    assert "DEPUTIZE_EMBEDDED=1 for development" in told


@pytest.mark.parametrize("name", sorted(PRODUCTION))
def test_what_is_missing_is_named(name: str) -> None:
    told = refused(**{k: v for k, v in PRODUCTION.items() if k != name})
    assert f"missing: DEPUTIZE_{name.upper()}." in told


def test_a_variable_that_is_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(f"DEPUTIZE_{name.upper()}", str(value))
    monkeypatch.setenv("DEPUTIZE_DATA_DIR", "")  # would be the current folder
    assert "missing: DEPUTIZE_DATA_DIR." in refused()


@pytest.mark.parametrize(
    "issuer",
    [
        "http://issuer.example",
        "http://127.0.0.1:2024/issuer",
        "issuer.example",
        "https://",
        "https:///path",
        "https://issuer.example/?tenant=1",
        "https://issuer.example/#fragment",
        "https://issuer.example?",
        "https://user:password@issuer.example",
        "https://issuer.example:99999",
        "https://[::1",
        "https://issuer.example\\@evil.example",
        "https://issuer.example\r\nhost: evil",
        "https://issuer.example/\x1b[2J",
        "javascript:alert(1)",
        "ftp://issuer.example",
    ],
)
def test_an_issuer_that_is_no_https_url_is_refused(issuer: str) -> None:
    told = refused(**{**PRODUCTION, "issuer": issuer})
    assert "DEPUTIZE_ISSUER is" in told
    assert told.isprintable()


def test_the_embedded_world_is_never_the_fallback_of_a_lost_configuration() -> None:
    """Casebook G7: only the word EMBEDDED turns it on, and never beside an issuer of one's own."""
    for partial in ({"url": "http://127.0.0.1:2024"}, {"home": Path("/world")}, {"embedded": False}):
        refused(**partial)
    told = refused(embedded=True, issuer="https://issuer.example")
    assert "DEPUTIZE_EMBEDDED and DEPUTIZE_ISSUER contradict each other" in told


def test_the_embedded_world_completes_everything_below_its_home() -> None:
    settings = load_settings(embedded=True, url="http://127.0.0.1:2024/", home=Path("/world"))
    assert settings.issuer == "http://127.0.0.1:2024/issuer"
    assert settings.allow_origins == ("http://127.0.0.1:2024",)
    files = (settings.client_key_file, settings.database, settings.key_file)
    assert all(Path("/world") in path.parents for path in files if path)
    assert settings.data_dir
    assert settings.key_file
    assert settings.data_dir not in settings.key_file.parents


@pytest.mark.parametrize(
    "url",
    [
        "http://0.0.0.0:2024",
        "http://192.168.0.7:2024",
        "http://world.example:2024",
        "http://localhost.evil.example:2024",
        "http://127.0.0.1.evil.example:2024",
        "https://127.0.0.1:2024",
        "http://127.0.0.1",
        "http://127.0.0.1:port",
        "http://127.0.0.1:2024/path",
        "http://user@127.0.0.1:2024",
        "http://2130706433:2024",
        "file:///etc/passwd",
        "",
    ],
)
def test_the_embedded_world_is_on_loopback_only(url: str) -> None:
    assert not is_loopback(url)
    assert "loopback only" in refused(embedded=True, url=url or "http://")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://127.8.8.8:80", "http://localhost:2024", "http://[::1]:9"]
)
def test_loopback_is_every_address_that_means_this_machine(url: str) -> None:
    assert is_loopback(url)


def test_a_visitor_for_everybody_is_for_the_embedded_world_only() -> None:
    assert "DEPUTIZE_VISITOR" in refused(**PRODUCTION, visitor="local")
    assert load_settings(embedded=True, visitor="local").visitor == "local"


@pytest.mark.parametrize(
    "redirect_uri",
    ["http://app.example/callback", "http://127.0.0.1.evil.example/callback", "app:/callback", "/callback", "https://"],
)
def test_a_code_never_comes_back_over_plain_http_from_another_machine(redirect_uri: str) -> None:
    assert "DEPUTIZE_REDIRECT_URI" in refused(**PRODUCTION, redirect_uri=redirect_uri)


@pytest.mark.parametrize(
    "redirect_uri", ["http://127.0.0.1/callback", "http://[::1]:7/c", "https://app.example/callback"]
)
def test_a_code_comes_back_to_this_machine_or_over_https(redirect_uri: str) -> None:
    assert load_settings(**PRODUCTION, redirect_uri=redirect_uri).redirect_uri == redirect_uri


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"login": "password"}, "DEPUTIZE_LOGIN: Input should be 'url', 'browser' or 'device'"),
        ({"embedded": "perhaps"}, "DEPUTIZE_EMBEDDED: Input should be a valid boolean"),
        ({"tennant": "acme"}, "DEPUTIZE_TENNANT: "),
        ({"tenant": ""}, "DEPUTIZE_TENANT is empty"),
    ],
)
def test_a_setting_that_is_misspelt_or_means_nothing_is_named(given: dict[str, Any], told: str) -> None:
    assert told in refused(**{**PRODUCTION, **given})


def test_no_error_repeats_a_value_that_may_be_a_secret() -> None:
    assert "hunter2" not in refused(**{**PRODUCTION, "login": "hunter2", "client_key_file": "/keys/hunter2"})
