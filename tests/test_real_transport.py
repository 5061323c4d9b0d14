"""The transport over real sockets: no proxy of the environment, no redirect, no connection where none is allowed."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from identity.errors import ProtocolError, TransportError
from identity.oauth.wire import Request
from identity.transport import Transport
from tests.support import listening


@contextlib.contextmanager
def speaking(*origins: str) -> Iterator[Transport]:
    transport = Transport(origins)
    try:
        yield transport
    finally:
        transport.close()


def get(transport: Transport, url: str) -> int:
    return transport.call(transport.send, Request("GET", url)).status


@pytest.mark.case("C9", "C13")
def test_a_proxy_from_the_environment_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (proxy, through), listening() as (world, direct), speaking(world) as transport:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
            monkeypatch.setenv(name.lower(), proxy)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        assert get(transport, f"{world}/here") == 200
        with pytest.raises(TransportError):
            get(transport, "https://127.0.0.1:1/")
        assert direct == ["GET /here HTTP/1.1"]
        assert through == []


@pytest.mark.case("C9", "C13")
def test_no_connection_is_made_to_another_port_of_loopback_nor_by_a_redirect_to_it() -> None:
    with (
        listening() as (other, reached),
        listening(302, location=f"{other}/") as (world, _),
        speaking(world) as transport,
    ):
        assert get(transport, f"{world}/") == 302
        with pytest.raises(ProtocolError):
            get(transport, f"{other}/")
        assert reached == []


def test_a_server_that_is_not_there_is_told() -> None:
    with contextlib.closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: refused
        origin = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with speaking(origin) as transport, pytest.raises(TransportError, match="did not answer"):
            get(transport, origin)
