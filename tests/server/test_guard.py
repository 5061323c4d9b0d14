"""The guard, over a server that notes what gets to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from identity import Identity
from identity.server import guard as module
from identity.server.guard import BODY_LIMIT, Guard
from identity.settings import load_settings
from identity.visitors import cookie_name
from tests.support import Clock

COOKIE = cookie_name("http://127.0.0.1")

URL = "http://127.0.0.1:2024"
STUDIO = "https://studio.example"
TEXT = {"messages": [{"role": "user", "content": "hi"}]}
RUN = {"assistant_id": "assistant", "input": TEXT}
RUNS = "/threads/t1/runs"


class Server:
    """What is behind the guard: it reads each body, notes the request, and answers in two pieces."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._socket(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append({"scope": scope, "headers": dict(scope["headers"]), "body": body})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async def _socket(self, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            self.messages.append(message)
            if message["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})


class Threads:
    """The in-process client: thread ``t1`` is at the checkpoint ``newest``; no other thread is there."""

    threads: Any

    def __init__(self) -> None:
        self.threads = self

    async def get_state(self, thread: str) -> dict[str, Any]:
        if thread != "t1":
            raise LookupError(thread)
        return {"checkpoint": {"checkpoint_id": "newest"}}


class Answer:
    def __init__(self, sent: list[dict[str, Any]], read: int) -> None:
        self.sent, self.read = sent, read
        self.status = sent[0].get("status")
        self.headers = [(k.decode(), v.decode()) for k, v in sent[0].get("headers", ())]
        self.body = b"".join(message.get("body", b"") for message in sent)

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class Outside:
    """Sends requests through the guard."""

    def __init__(self, home: Path, **settings: Any) -> None:
        given = {"embedded": True, "url": URL, "home": home, "origins": STUDIO, **settings}
        self.identity = Identity(load_settings(**given), clock=Clock())
        self.server = Server()
        own = [Route("/issuer/{rest:path}", lambda request: PlainTextResponse("own"), methods=["GET", "POST"])]
        inner = Starlette(routes=own)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            mine = scope["type"] == "http" and scope["path"].startswith("/issuer/")
            await (inner if mine else self.server)(scope, receive, send)

        self.guard = Guard(app, self.identity, own, Threads)

    async def ask(
        self,
        method: str = "GET",
        path: str = "/threads/t1",
        body: Any = None,
        *headers: tuple[str, str],
        chunks: list[bytes] | None = None,
        query: str = "",
        host: str | None = "127.0.0.1:2024",
        credentials: bool = True,
        **scope: Any,
    ) -> Answer:
        given = list(headers)
        names = {name for name, _ in given}
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        if host is not None:
            given.append(("host", host))
        if body is not None and "content-type" not in names:
            given.append(("content-type", "application/json"))
        if chunks is None and body is not None and "content-length" not in names:
            given.append(("content-length", str(len(raw))))
        if credentials:
            given.append(("authorization", "Bearer x"))
        pieces = iter([raw] if chunks is None else chunks)
        read, sent, left = 0, [], True

        async def receive() -> dict[str, Any]:
            nonlocal read, left
            if not left:
                return {"type": "http.disconnect"}
            piece = next(pieces, None)
            if piece is None:
                left = False
                return {"type": "http.request", "body": b"", "more_body": False}
            read += len(piece)
            left = chunks is not None
            return {"type": "http.request", "body": piece, "more_body": left}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.guard(
            {
                "type": "http",
                "method": method,
                "path": path,
                "query_string": query.encode(),
                "headers": [(name.encode(), value.encode("latin-1")) for name, value in given],
                **scope,
            },
            receive,
            send,  # type: ignore[arg-type]
        )
        return Answer(sent, read)

    async def socket(self, *messages: dict[str, Any], origin: str | None = URL, path: str = "") -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        given = iter([{"type": "websocket.connect"}, *messages, {"type": "websocket.disconnect", "code": 1000}])

        async def receive() -> dict[str, Any]:
            return next(given)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"host", b"127.0.0.1:2024")] + ([(b"origin", origin.encode())] if origin else [])
        scope = {"type": "websocket", "path": path or "/threads/t1/stream/events", "headers": headers}
        await self.guard(scope, receive, send)  # type: ignore[arg-type]
        return sent


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    up = Outside(tmp_path)
    yield up
    up.identity.close()


# -- where a request is from -------------------------------------------------------------------------------------------

PATHS = [
    ("GET", "/threads/t1"),
    ("GET", "/ok"),
    ("GET", "/issuer/login"),
    ("POST", "/issuer/token"),
    ("GET", "/nowhere"),
]


@pytest.mark.case("E9")
@pytest.mark.parametrize(
    "host",
    ["attacker.example", "attacker.example:2024", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:2024.attacker.example",
     "127.0.0.1.attacker.example:2024", "0.0.0.0:2024", "", None, "localhost:2025", "user@127.0.0.1:2024", "[::1]"],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_a_foreign_host_is_refused_on_every_route(
    outside: Outside, method: str, path: str, host: str | None
) -> None:
    answer = await outside.ask(method, path, host=host)
    assert answer.status == 421
    assert outside.server.seen == []


@pytest.mark.case("E9")
async def test_two_host_headers_are_none(outside: Outside) -> None:
    assert (await outside.ask("GET", "/ok", None, ("host", "127.0.0.1:2024"))).status == 421


@pytest.mark.parametrize("host", ["127.0.0.1:2024", "localhost:2024", "LOCALHOST:2024", "[::1]:2024"])
async def test_the_names_of_loopback_are_ours(outside: Outside, host: str) -> None:
    assert (await outside.ask("GET", "/ok", host=host)).status == 200


@pytest.mark.case("E8", "E23")
@pytest.mark.parametrize(
    "origin",
    ["https://attacker.example", "http://127.0.0.1:3000", "http://127.0.0.1", "https://127.0.0.1:2024", "null", "",
     "http://127.0.0.1:2024.attacker.example", "http://127.0.0.1:2024/", "file://", f"{URL} {URL}", "https://studio.example:8443",
     "http://studio.example", "https://studio.example.attacker.example", "https://xstudio.example"],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), [*PATHS, ("OPTIONS", "/threads/t1/runs"), ("OPTIONS", "/issuer/token")])
@pytest.mark.parametrize("studio", [False, True])
async def test_a_page_of_a_foreign_origin_is_refused_on_every_route(
    outside: Outside, method: str, path: str, origin: str, studio: bool
) -> None:
    more = [("x-auth-scheme", "langsmith")] if studio else []
    answer = await outside.ask(method, path, None, ("origin", origin), *more, credentials=False)
    assert answer.status == 403
    assert answer.header("access-control-allow-origin") == []
    assert answer.header("set-cookie") == []
    assert outside.server.seen == []


@pytest.mark.case("E23")
async def test_two_origin_headers_are_refused_even_if_one_is_ours(outside: Outside) -> None:
    for second in (URL, "https://attacker.example"):
        answer = await outside.ask("GET", "/threads/t1", None, ("origin", URL), ("origin", second))
        assert answer.status == 403


@pytest.mark.parametrize("origin", [URL, "http://localhost:2024", STUDIO, "https://STUDIO.example"])
async def test_a_page_of_an_allowed_origin_is_answered(outside: Outside, origin: str) -> None:
    assert (await outside.ask("GET", "/threads/t1", None, ("origin", origin))).status == 200


@pytest.mark.case("E23")
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_request_that_a_browser_says_is_another_sites_is_refused_without_an_origin_too(
    outside: Outside, site: str
) -> None:
    """Images, scripts and forms with GET carry no ``Origin``."""
    ask = outside.ask
    assert (await ask("GET", "/threads/t1/state", None, ("sec-fetch-site", site))).status == 403
    mode = ("sec-fetch-mode", "no-cors")
    assert (await ask("GET", "/threads/t1/state", None, ("sec-fetch-site", site), mode)).status == 403
    link = ("sec-fetch-mode", "navigate")  # a link that was clicked: its answer is not the other page's to read
    assert (await ask("GET", "/issuer/login", None, ("sec-fetch-site", site), link)).status == 200


async def test_a_preflight_of_an_allowed_origin_is_the_servers_to_answer(outside: Outside) -> None:
    ask = ("access-control-request-method", "POST")
    answer = await outside.ask("OPTIONS", RUNS, None, ("origin", STUDIO), ask, credentials=False)
    assert answer.status == 200
    assert answer.header("set-cookie") == []
    assert (await outside.ask("OPTIONS", RUNS, None, ask)).status == 403


async def test_a_refusal_can_be_read_by_an_allowed_origin_and_says_why(outside: Outside) -> None:
    answer = await outside.ask("POST", RUNS, {**RUN, "webhook": "https://x"}, ("origin", STUDIO))
    assert answer.status == 403
    assert answer.header("access-control-allow-origin") == [STUDIO]
    assert answer.header("vary") == ["origin"]
    assert "webhook" in json.loads(answer.body)["detail"]


async def test_calls_inside_the_process_pass_and_a_path_that_looks_like_one_does_not(outside: Outside) -> None:
    for root in ("/noauth", "/noauth/prefix"):
        answer = await outside.ask("POST", "/threads/t1/state", {"values": 1}, host="api", root_path=root)
        assert answer.status == 200
    outside.server.seen.clear()
    for root, path in (
        ("", "/noauth/threads/t1/state"),
        ("/noauthx", "/threads/t1/state"),
        ("/x/noauth", "/threads/x"),
    ):
        assert (await outside.ask("POST", path, {"values": 1}, root_path=root)).status == 403
    assert outside.server.seen == []


async def test_the_applications_own_routes_answer_for_themselves(outside: Outside) -> None:
    form = ("content-type", "application/x-www-form-urlencoded")
    answer = await outside.ask("POST", "/issuer/token", b"a=b", form, ("origin", URL), credentials=False)
    assert answer.body == b"own"
    assert answer.header("set-cookie") == []
    assert (await outside.ask("DELETE", "/issuer/token")).status == 403  # not one of their methods


# -- what is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.case("E10")
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/threads/t1/state"), ("POST", "/threads/t1/copy"), ("PUT", "/store/items"), ("POST", "/runs"), ("POST", "/mcp"),
     ("POST", "/threads/t1/runs/"), ("DELETE", "/threads/t1/runs/r1"), ("POST", "/internal/truncate")],
)  # fmt: skip
async def test_what_is_not_for_clients_never_reaches_the_server(outside: Outside, method: str, path: str) -> None:
    assert (await outside.ask(method, path, {})).status == 403
    assert outside.server.seen == []


@pytest.mark.parametrize(
    "action",
    ["action=rollback", "action=%72ollback", "wait=1&action=rollback", "action=interrupt&action=rollback", "action="],
)
async def test_a_run_is_never_cancelled_with_a_rollback(outside: Outside, action: str) -> None:
    assert (await outside.ask("POST", f"{RUNS}/r1/cancel", query=action)).status == 403
    assert outside.server.seen == []


@pytest.mark.parametrize("action", ["", "action=interrupt", "wait=true&action=interrupt"])
async def test_a_run_can_be_cancelled(outside: Outside, action: str) -> None:
    assert (await outside.ask("POST", f"{RUNS}/r1/cancel", query=action)).status == 200


async def test_a_body_gets_to_the_server_as_it_came(outside: Outside) -> None:
    raw = json.dumps(RUN, indent=3).encode()
    assert (await outside.ask("POST", RUNS, raw)).status == 200
    assert (
        await outside.ask("POST", RUNS, None, ("content-type", "application/json"), chunks=[raw[:7], raw[7:]])
    ).status == 200
    assert [seen["body"] for seen in outside.server.seen] == [raw, raw]


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "text/plain; application/json"],
)
@pytest.mark.case("E23")
async def test_a_body_that_any_page_could_send_without_asking_is_refused(outside: Outside, kind: str) -> None:
    answer = await outside.ask("POST", RUNS, RUN, ("content-type", kind))
    assert answer.status == 415
    assert outside.server.seen == []


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
async def test_json_is_taken_however_it_is_spelled(outside: Outside, kind: str) -> None:
    assert (await outside.ask("POST", RUNS, RUN, ("content-type", kind))).status == 200


@pytest.mark.case("G6")
@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"nope"]
)
async def test_a_body_that_is_no_json_or_too_deep_is_refused(outside: Outside, body: bytes) -> None:
    assert (await outside.ask("POST", RUNS, body)).status == 400
    assert outside.server.seen == []


async def test_a_run_without_a_body_is_refused(outside: Outside) -> None:
    assert (await outside.ask("POST", RUNS)).status == 422
    assert (await outside.ask("DELETE", "/threads/t1")).status == 200


@pytest.mark.case("G6")
@pytest.mark.parametrize(
    "length", [str(100 << 20), str(BODY_LIMIT + 1), "-1", "1e9", "9" * 5000, "\N{SUPERSCRIPT TWO}", "0x10"]
)
async def test_a_body_that_says_it_is_too_large_is_refused_unread(outside: Outside, length: str) -> None:
    answer = await outside.ask(
        "POST", RUNS, None, ("content-length", length), ("content-type", "application/json"),
        chunks=[b"x" * 65_536] * 1600,
    )  # fmt: skip
    assert answer.status == 413
    assert answer.read == 0
    assert outside.server.seen == []


@pytest.mark.case("G6")
@pytest.mark.parametrize("said", [None, "10"])
async def test_a_body_that_turns_out_too_large_is_read_no_further(outside: Outside, said: str | None) -> None:
    headers = [("content-type", "application/json")] + ([("content-length", said)] if said else [])
    answer = await outside.ask("POST", RUNS, None, *headers, chunks=[b"x" * 65_536] * 1600)
    assert answer.status == 413
    assert answer.read <= BODY_LIMIT + 65_536
    assert outside.server.seen == []


@pytest.mark.case("G6")
async def test_a_body_that_does_not_arrive_is_given_up(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BODY_SECONDS", 0.0)
    sent: list[dict[str, Any]] = []

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:2024"), (b"content-length", b"10"), (b"authorization", b"Bearer x")]
    scope = {"type": "http", "method": "POST", "path": RUNS, "query_string": b"", "headers": headers}
    await outside.guard(scope, never, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 408
    assert outside.server.seen == []


async def test_a_client_that_goes_away_within_its_body_reaches_nothing(outside: Outside) -> None:
    sent: list[dict[str, Any]] = []
    given = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(given)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:2024"), (b"authorization", b"Bearer x")]
    scope = {"type": "http", "method": "POST", "path": RUNS, "query_string": b"", "headers": headers}
    await outside.guard(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 400
    assert outside.server.seen == []


async def test_a_client_that_goes_away_while_it_is_answered_is_noticed_by_the_server(outside: Outside) -> None:
    seen: list[str] = []

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    guard = Guard(waits, outside.identity)
    given = iter([{"type": "http.request", "body": json.dumps(RUN).encode()}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(given)

    headers = [(b"host", b"127.0.0.1:2024"), (b"authorization", b"Bearer x"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": RUNS, "query_string": b"", "headers": headers}
    await guard(scope, receive, None)  # type: ignore[arg-type]
    assert seen == ["http.request", "http.disconnect"]


async def test_an_answer_streams_through_piece_by_piece(outside: Outside) -> None:
    answer = await outside.ask("POST", f"{RUNS}/stream", RUN)
    assert [message.get("body") for message in answer.sent] == [None, b"one", b"two"]
    assert answer.headers == [("content-type", "text/event-stream")]


# -- where a run goes on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    [{"checkpoint_id": "newest"}, {"checkpoint": {"checkpoint_id": "newest", "checkpoint_ns": "", "checkpoint_map": {}}},
     {"checkpoint_id": "newest", "checkpoint": {"checkpoint_id": "newest"}}],
)  # fmt: skip
async def test_the_newest_checkpoint_may_be_named_and_is_left_out(outside: Outside, named: dict[str, Any]) -> None:
    """Chat interfaces name the one that they show."""
    assert (await outside.ask("POST", f"{RUNS}/stream", {**RUN, **named})).status == 200
    (seen,) = outside.server.seen
    assert json.loads(seen["body"]) == RUN
    assert int(seen["headers"][b"content-length"]) == len(seen["body"])


@pytest.mark.case("E4")
@pytest.mark.parametrize("path", [RUNS, f"{RUNS}/stream", f"{RUNS}/wait"])
@pytest.mark.parametrize(
    "named",
    [{"checkpoint_id": "older"}, {"checkpoint": {"checkpoint_id": "older"}}, {"checkpoint": {"checkpoint_map": {"": "older"}}},
     {"checkpoint_id": "newest", "checkpoint": {"checkpoint_id": "older"}},
     {"checkpoint_id": "older", "checkpoint": {"checkpoint_id": "newest"}}, {"checkpoint_id": ["newest"]},
     {"checkpoint_id": {"a": "newest"}},
     {"config": {"configurable": {"checkpoint_id": "newest"}}}],
)  # fmt: skip
async def test_an_older_checkpoint_is_not_run_again(outside: Outside, path: str, named: dict[str, Any]) -> None:
    answer = await outside.ask("POST", path, {**RUN, **named})
    assert answer.status in (403, 422)
    assert outside.server.seen == []


async def test_a_checkpoint_of_a_thread_that_is_not_there_is_refused(outside: Outside) -> None:
    assert (await outside.ask("POST", "/threads/t2/runs", {**RUN, "checkpoint_id": "newest"})).status == 403


# -- visitors ----------------------------------------------------------------------------------------------------------


def cookie(answer: Answer) -> str:
    (header,) = answer.header("set-cookie")
    return SimpleCookie(header)[COOKIE].value


@pytest.mark.case("E19")
@pytest.mark.parametrize("path", [RUNS, f"{RUNS}/stream"])
async def test_a_caller_without_credentials_gets_an_id_once_and_two_get_two(outside: Outside, path: str) -> None:
    first = await outside.ask("POST", path, RUN, credentials=False)
    second = await outside.ask("POST", path, RUN, credentials=False)
    visitors = outside.identity.visitors
    one, two = visitors.known(cookie(first)), visitors.known(cookie(second))
    assert one is not None
    assert two is not None
    assert one != two
    assert outside.server.seen[0]["headers"][b"cookie"] == f"{COOKIE}={cookie(first)}".encode()
    header = ("cookie", f"theme=dark; {COOKIE}={cookie(first)}")
    again = await outside.ask("POST", path, RUN, header, credentials=False)
    assert again.header("set-cookie") == []
    assert outside.server.seen[-1]["headers"][b"cookie"] == header[1].encode()


@pytest.mark.case("E19")
@pytest.mark.parametrize(
    "sent",
    [
        f"{COOKIE}=studio",
        f"{COOKIE}=x.y.z",
        f"{COOKIE}=",
        "nonsense;;;=",
        f"{COOKIE}=" + "x" * 5000,
        "\x00",
        "theme=dark",
    ],
)
async def test_an_id_that_was_not_minted_here_is_replaced_by_one_that_is(outside: Outside, sent: str) -> None:
    answer = await outside.ask("GET", "/threads/t1", None, ("cookie", sent), credentials=False)
    assert outside.identity.visitors.known(cookie(answer)) is not None
    told = outside.server.seen[0]["headers"][b"cookie"].decode("latin-1").split("; ")
    assert [part for part in told if part.startswith(COOKIE)] == [f"{COOKIE}={cookie(answer)}"]


@pytest.mark.case("E19")
@pytest.mark.parametrize("others", ['prefs={"theme":"dark"}', "mail=a@b.example", 'quoted="a b"', "odd key=1; =x"])
async def test_cookies_of_the_application_stay_and_hide_no_visitor(outside: Outside, others: str) -> None:
    answer = await outside.ask("GET", "/threads/t1", None, ("cookie", others), credentials=False)
    mine = cookie(answer)
    assert outside.server.seen[0]["headers"][b"cookie"].startswith(others.encode())
    again = await outside.ask("GET", "/threads/t1", None, ("cookie", f"{others}; {COOKIE}={mine}"), credentials=False)
    assert again.header("set-cookie") == []
    split = (("cookie", others), ("cookie", f"{COOKIE}={mine}"))  # as HTTP/2 sends them
    assert (await outside.ask("GET", "/threads/t1", None, *split, credentials=False)).header("set-cookie") == []


async def test_two_cookie_headers_are_none(outside: Outside) -> None:
    mine = cookie(await outside.ask("GET", "/threads/t1", credentials=False))
    header = ("cookie", f"{COOKIE}={mine}")
    answer = await outside.ask("GET", "/threads/t1", None, header, header, credentials=False)
    assert cookie(answer) != mine
    assert [k for k, _ in outside.server.seen[-1]["scope"]["headers"]].count(b"cookie") == 1


@pytest.mark.parametrize(("path", "credentials"), [("/threads/t1", True), ("/ok", False), ("/info", False)])
async def test_who_needs_no_visitors_id_gets_none(outside: Outside, path: str, credentials: bool) -> None:
    assert (await outside.ask("GET", path, credentials=credentials)).header("set-cookie") == []


@pytest.mark.parametrize(("url", "secure"), [(URL, False), ("https://agent.example", True)])
async def test_the_cookie_is_for_this_server_and_no_script(tmp_path: Path, url: str, secure: bool) -> None:
    settings: dict[str, Any] = {"url": url}
    if secure:
        ring = Outside(tmp_path)
        assert ring.identity.visitors  # makes the key ring that the production settings name
        ring.identity.close()
        settings |= {
            "embedded": False, "issuer": "https://login.example", "client_id": "agent", "client_key_file": tmp_path / "agent.json",
            "data_dir": tmp_path / "data", "key_file": tmp_path / "keys" / "keyring.json",
        }  # fmt: skip
    outside = Outside(tmp_path, **settings)
    answer = await outside.ask("GET", "/threads/t1", host=url.partition("//")[2], credentials=False)
    flags = [flag.strip() for flag in answer.header("set-cookie")[0].split(";")[1:]]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(flags)
    assert ("Secure" in flags) == secure
    assert not any(flag.startswith("Domain") for flag in flags)
    outside.identity.close()


# -- sockets -----------------------------------------------------------------------------------------------------------


def command(method: str, **parameters: Any) -> dict[str, Any]:
    text = json.dumps({"id": 7, "method": method, "params": parameters})
    return {"type": "websocket.receive", "text": text}


@pytest.mark.case("E3", "E21")
async def test_each_message_of_a_socket_is_checked_and_a_refused_one_is_answered(outside: Outside) -> None:
    good = [command("subscription.subscribe", channels=["values"]), command("run.start", assistant_id="a", input=TEXT)]
    bad = [
        command("run.start", assistant_id="a", input=TEXT, update={"messages": []}),
        command("run.start", assistant_id="a", input={"messages": [{"role": "system", "content": "x"}]}),
        command("input.respond", interrupt_id="x", response=1, goto="tool_call"),
        command("state.update"),
        {"type": "websocket.receive", "text": "{"},
        {"type": "websocket.receive", "text": "[" * 100_000},
        {"type": "websocket.receive", "text": '"' + "x" * BODY_LIMIT + '"'},
        {"type": "websocket.receive", "bytes": good[1]["text"].encode()},
    ]
    sent = await outside.socket(good[0], *bad, good[1])
    assert outside.server.messages == [{"type": "websocket.connect"}, *good]
    answers = [json.loads(message["text"]) for message in sent if message["type"] == "websocket.send"]
    assert [answer["type"] for answer in answers] == ["error"] * len(bad)
    assert [answer["id"] for answer in answers] == [7, 7, 7, 7, None, None, None, None]


@pytest.mark.case("E9", "E23")
@pytest.mark.parametrize("origin", ["https://attacker.example", "http://127.0.0.1:3000", "null"])
async def test_a_socket_of_a_foreign_origin_is_not_opened(outside: Outside, origin: str) -> None:
    assert [message["type"] for message in await outside.socket(origin=origin)] == ["websocket.close"]
    assert outside.server.messages == []


@pytest.mark.parametrize(
    "path", ["/threads/t1/runs/r1/protocol", "/threads/t1/stream", "/nowhere", "/threads/t1/stream/events/"]
)
async def test_no_other_socket_is_opened(outside: Outside, path: str) -> None:
    assert [message["type"] for message in await outside.socket(path=path)] == ["websocket.close"]


async def test_the_start_and_end_of_the_server_pass(outside: Outside) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await Guard(app, outside.identity)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
