"""The terminal's callback, asked over real HTTP as a browser does it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from agent.world import running
from identity import SettingsError, UsageError
from identity.sessions import Place
from identity.terminal import Callback

HERE = Place("default", "assistant", "t1")


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=10)


async def test_a_browser_login_comes_back_to_the_terminal_and_signs_in(tmp_path: Path) -> None:
    with Callback() as callback:
        async with running(tmp_path, login="browser", redirect_uri=callback.redirect_uri) as world:
            identity, alice = world.identity, world.person("alice")
            callback.finish = lambda query: identity.transport.call(identity.asking.browser_callback, query)
            request = await identity.transport.acall(identity.asking.login, HERE, None, "m1", ("portfolio:read",))
            assert request is not None
            back = await alice.sign_in(request.shown())
            assert back.startswith(f"{callback.redirect_uri}?")
            forged = await asyncio.to_thread(get, back.replace("iss=http", "iss=https"))
            assert (forged.status_code, "another server" in forged.text) == (400, True)
            answer = await asyncio.to_thread(get, back)
            assert (answer.status_code, "Signed in" in answer.text) == (200, True)
            session = identity.sessions.of(HERE)
            assert session is not None
            assert session.principal == alice.principal
            again = await asyncio.to_thread(get, back)
            assert (again.status_code, "unknown, used or expired" in again.text) == (400, True)


@pytest.fixture
def seen() -> list[list[tuple[str, str]]]:
    return []


def test_the_page_keeps_the_code_to_itself(
    seen: list[list[tuple[str, str]]], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG), Callback(seen.append) as callback:
        answer = get(f"{callback.redirect_uri}?code=s3cret&state=&x=%3Cscript%3E")
    assert seen == [[("code", "s3cret"), ("state", ""), ("x", "<script>")]]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "s3cret" not in answer.text + "".join(capfd.readouterr())
    assert "s3cret" not in "".join(r.getMessage() for r in caplog.records if not r.name.startswith("http"))


def test_what_went_wrong_is_shown_escaped() -> None:
    def refuse(query: object) -> None:
        raise UsageError("<script>alert(1)</script>\x1b[2J", "Start again")

    with Callback(refuse) as callback:
        answer = get(callback.redirect_uri)
    assert answer.status_code == 400
    assert "&lt;script&gt;" in answer.text
    assert "<script>" not in answer.text
    assert answer.text.replace("\n", "").isprintable()


def test_a_bug_is_a_page_and_a_log_line_and_tells_the_browser_nothing(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def breaks(query: object) -> None:
        raise RuntimeError("of no concern to a browser")

    with Callback(breaks) as callback:
        answer = get(f"{callback.redirect_uri}?code=s3cret")
    assert answer.status_code == 500
    assert "concern" not in answer.text
    assert [r.getMessage() for r in caplog.records if r.name == "deputize"] == ["A sign-in failed (RuntimeError)"]
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:80", "127.0.0.1:1", ""])
def test_a_page_that_was_rebound_to_this_machine_reaches_nothing(seen: list[list[tuple[str, str]]], host: str) -> None:
    """Attack: DNS rebinding, to finish somebody's login with the attacker's code."""
    with Callback(seen.append) as callback:
        assert get(f"{callback.redirect_uri}?code=theirs", host=host).status_code in (400, 404)
    assert seen == []


@pytest.mark.parametrize("path", ["/", "/callback/", "/Callback", "/callback%2f", "/x/callback"])
def test_there_is_one_path(seen: list[list[tuple[str, str]]], path: str) -> None:
    with Callback(seen.append) as callback:
        parts = urlsplit(callback.redirect_uri)
        with socket.create_connection((parts.hostname, parts.port)) as browser:
            browser.sendall(f"GET {path}?code=x HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
            assert browser.recv(64).split()[1] == b"404"
    assert seen == []


def test_only_this_machine_is_listened_to() -> None:
    with Callback() as callback:
        assert callback._server.server_address[0] == "127.0.0.1"
        assert get(callback.redirect_uri).status_code == 404, "nobody waits for a login yet"
        assert httpx.post(callback.redirect_uri, trust_env=False).status_code == 501


def test_a_browser_that_connects_ahead_and_says_nothing_holds_up_nobody(seen: list[list[tuple[str, str]]]) -> None:
    with Callback(seen.append) as callback:
        parts = urlsplit(callback.redirect_uri)
        with socket.create_connection((parts.hostname, parts.port)):
            assert httpx.get(callback.redirect_uri, trust_env=False, timeout=5).status_code == 200


def test_two_redirects_at_once_are_finished_one_after_the_other() -> None:
    inside: list[int] = []
    most: list[int] = []

    def finish(query: Any) -> None:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.05)
        inside.pop()

    with Callback(finish) as callback:
        browsers = [threading.Thread(target=get, args=(callback.redirect_uri,)) for _ in range(3)]
        for browser in browsers:
            browser.start()
        for browser in browsers:
            browser.join(10)
    assert most == [1, 1, 1]


def test_a_port_that_is_taken_and_an_address_elsewhere_are_told() -> None:
    with Callback() as first, pytest.raises(SettingsError, match="is taken") as taken:
        Callback(at=first.redirect_uri)
    assert "DEPUTIZE_REDIRECT_URI" in str(taken.value)
    for at in ("http://192.168.0.7/callback", "https://127.0.0.1/callback", "http://127.0.0.1/callback?x=1"):
        with pytest.raises(SettingsError, match="cannot come back"):
            Callback(at=at)
