"""The one place that sends: to https and to what was allowed exactly, without redirects, proxies and cookies (casebook C9)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from identity.errors import ProtocolError, SettingsError, TransportError, UsageError
from identity.oauth.wire import Request, Response
from identity.transport import Transport

WORLD = "http://127.0.0.1:2024"


class Answers(httpx.AsyncBaseTransport):
    """Records what is sent and answers what it is told to."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self.sent: list[httpx.Request] = []
        self.answer = answer or (lambda request: httpx.Response(200, json={}))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        return self.answer(request)


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def transport(answers: Answers) -> Iterator[Transport]:
    up = Transport((WORLD,), answers)
    yield up
    up.close()


def send(transport: Transport, url: str = "https://issuer.example/token", *form: tuple[str, str]) -> Response:
    return transport.call(transport.send, Request("POST" if form else "GET", url, form))


@pytest.mark.case("C9", "C13")
@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/authorize",
        "http://issuer.example:443/authorize",
        "http://127.0.0.1/authorize",
        "http://127.0.0.1:2025/authorize",
        "http://127.0.0.2:2024/authorize",
        "http://localhost:2024/authorize",
        "http://[::1]:2024/authorize",
        "http://127.0.0.1:2024@issuer.example/authorize",
        "http://127.0.0.1:2024.issuer.example/authorize",
        "javascript:alert(1)",
        "data:text/html,hello",
        "file:///etc/passwd",
        "ftp://issuer.example/authorize",
        "ws://127.0.0.1:2024/authorize",
        "//issuer.example/authorize",
        "/authorize",
        "",
        "https://",
        "https://user@issuer.example/authorize",
        "https://issuer.example:port/authorize",
        "https://[::1/authorize",
    ],
)
def test_nothing_is_sent_to_a_url_that_is_not_https_nor_exactly_the_embedded_world(
    transport: Transport, answers: Answers, url: str
) -> None:
    assert not transport.permits(url)
    with pytest.raises(ProtocolError, match="not an https URL"):
        send(transport, url)
    assert answers.sent == []


@pytest.mark.parametrize("url", ["https://issuer.example", "https://127.0.0.1:8443/x", f"{WORLD}/issuer/token"])
def test_https_and_the_allowed_origin_are_spoken_to(transport: Transport, answers: Answers, url: str) -> None:
    assert send(transport, url).status == 200
    assert [str(request.url).rstrip("/") for request in answers.sent] == [url]


@pytest.mark.case("C9", "C13")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_never_followed(transport: Transport, answers: Answers, status: int) -> None:
    answers.answer = lambda request: httpx.Response(status, headers={"location": "http://169.254.169.254/"})
    assert send(transport, "https://issuer.example/token", ("code", "s3cret")).status == status
    assert len(answers.sent) == 1


def test_repeated_fields_of_a_form_are_all_sent(transport: Transport, answers: Answers) -> None:
    send(transport, "https://issuer.example/token", ("resource", "a"), ("scope", "x y"), ("resource", "b&c"))
    assert answers.sent[0].content == b"resource=a&resource=b%26c&scope=x+y"


def test_a_cookie_of_one_answer_goes_with_no_other_request(transport: Transport, answers: Answers) -> None:
    answers.answer = lambda request: httpx.Response(200, headers={"set-cookie": "who=alice; path=/"}, json={})
    for _ in range(2):
        send(transport)
    assert "cookie" not in answers.sent[1].headers


def test_an_endless_answer_is_cut_off(transport: Transport, answers: Answers) -> None:
    async def endless() -> object:
        for _ in range(64):  # 4 MiB, should nobody stop it
            yield b"x" * 65_536

    answers.answer = lambda request: httpx.Response(200, content=endless())
    with pytest.raises(ProtocolError, match=r"issuer\.example answered with more than 1 MiB"):
        send(transport)


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("not HTTP"),
        httpx.DecodingError("not gzip"),
    ],
)
def test_no_answer_is_told_by_its_host_alone(transport: Transport, answers: Answers, failure: Exception) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise failure

    answers.answer = fail
    with pytest.raises(TransportError) as told:
        send(transport, "https://issuer.example/token?code=s3cret", ("refresh_token", "s3cret"))
    assert told.value.message == f"issuer.example did not answer ({type(failure).__name__})"
    assert "s3cret" not in repr(told.value)


def test_an_answer_that_drips_in_is_not_waited_for_without_end(
    transport: Transport, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[bool] = []

    async def drips() -> object:
        try:
            await asyncio.sleep(5)  # should nobody stop it
            yield b""
        finally:
            gone.append(True)

    monkeypatch.setattr("identity.transport.DEADLINE", 0.01)
    answers.answer = lambda request: httpx.Response(200, content=drips())
    with pytest.raises(TransportError, match="did not answer"):
        send(transport)
    assert gone == [True]


@pytest.mark.parametrize("url", ["https://xn--a/", "https://[v1.a]/", "https://host.example/" + "a" * 70_000])
def test_a_url_that_no_client_can_send_to_is_an_error_like_the_others(transport: Transport, url: str) -> None:
    with pytest.raises(ProtocolError, match="not a host that can be spoken to"):
        send(transport, url)


def test_certificates_that_cannot_be_read_name_their_setting(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    for ca_file in (file, tmp_path / "missing.pem"):
        transport = Transport((), None, ca_file)
        try:
            with pytest.raises(SettingsError, match="DEPUTIZE_CA_FILE"):
                send(transport)
        finally:
            transport.close()


# -- the I/O thread ----------------------------------------------------------------------------------------------------


async def _where() -> tuple[str, int]:
    return threading.current_thread().name, id(asyncio.get_running_loop())


def test_callers_of_every_loop_and_of_none_share_one_thread_and_its_loop(transport: Transport) -> None:
    def from_a_loop_of_its_own() -> tuple[str, int]:
        return asyncio.run(transport.acall(_where))

    found = {from_a_loop_of_its_own(), from_a_loop_of_its_own(), transport.call(_where)}
    assert len(found) == 1
    assert found.pop()[0] == "deputize-io"


async def test_a_caller_that_is_cancelled_takes_its_own_coroutine_along(transport: Transport) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(transport.acall(waits))
    assert await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 10)


def test_closing_ends_what_is_under_way_and_the_transport_starts_anew(transport: Transport, answers: Answers) -> None:
    ended: list[str] = []
    begun = threading.Event()

    async def slow_to_end() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(500):
                await asyncio.sleep(0)
            ended.append("ended")

    def wait() -> None:
        with pytest.raises(concurrent.futures.CancelledError):
            transport.call(slow_to_end)
        ended.append("told")

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert begun.wait(10)
    transport.close()
    waiting.join(10)
    assert sorted(ended) == ["ended", "told"]
    assert send(transport).status == 200


def test_a_forked_process_is_told_instead_of_waiting_for_a_thread_that_it_has_not(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.call(_where)
    with monkeypatch.context() as child:  # a fork copies the object, and not the thread
        child.setattr(transport._thread, "is_alive", lambda: False)
        with pytest.raises(UsageError, match="before this process was forked"):
            transport.call(_where)
    transport.call(_where)
