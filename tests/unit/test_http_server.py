"""The HTTP server: real connections to it, well-behaved ones and others."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from relayd.config import HTTP_ADDRESS
from relayd.errors import HostError
from relayd.observe import http_conversation, http_server
from relayd.observe.http_server import Answer, HttpServer, Request, open_http, plain_text

SOON_S = 10.0


async def hello(request: Request) -> Answer:
    await trio.lowlevel.checkpoint()
    return plain_text(200, f"{request.method} {request.target} {request.host}")


async def large(_request: Request) -> Answer:
    """More than the kernel takes from a server whose client doesn't read."""
    await trio.lowlevel.checkpoint()
    return Answer(200, "application/octet-stream", bytes(6 << 20))


@asynccontextmanager
async def served(answer: http_server.AnswerTo = hello) -> AsyncIterator[HttpServer]:
    with ExitStack() as stack:
        server = open_http("127.0.0.1:0", stack)
        assert server is not None
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, answer)
            yield server
            nursery.cancel_scope.cancel()


async def connect(server: HttpServer) -> trio.SocketStream:
    host, _, port = server.address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def until_closed(stream: trio.SocketStream) -> bytes:
    data = b""
    with trio.fail_after(SOON_S):
        try:
            async for part in stream:
                data += part
        except trio.BrokenResourceError:  # a reset is an end too
            pass
    return data


async def ask(server: HttpServer, request: bytes) -> bytes:
    """What comes back for these bytes, until the server closes."""
    async with await connect(server) as stream:
        await stream.send_all(request)
        return await until_closed(stream)


def get(path: str = "/", *headers: str, host: str = "localhost") -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode()


CLOSE = "Connection: close"


async def one_answer(stream: trio.SocketStream) -> bytes:
    """Up to the end of a body with a Content-Length."""
    data = b""
    with trio.fail_after(SOON_S):
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += await stream.receive_some()
    return head + b"\r\n\r\n" + body


async def test_answers_and_closes_when_asked_to() -> None:
    async with served() as server:
        answer = await ask(server, get("/x?y=1", CLOSE))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\nGET /x?y=1 localhost\n")


async def test_every_answer_forbids_sniffing_storing_and_other_origins() -> None:
    async with served() as server:
        head = (await ask(server, get("/", CLOSE))).lower()
    for header in (b"nosniff", b"no-store", b"no-referrer", b"cross-origin-resource-policy: same-origin"):
        assert header in head
    assert b"access-control" not in head


async def test_a_connection_serves_many_requests_pipelined_ones_too() -> None:
    async with served() as server, await connect(server) as stream:
        for number in range(3):
            await stream.send_all(get(f"/{number}"))
            assert f"GET /{number} " in (await one_answer(stream)).decode()
        await stream.send_all(get("/a") + get("/b", CLOSE))
        both = await until_closed(stream)
    assert both.index(b"GET /a ") < both.index(b"GET /b ")


async def test_head_gets_the_length_and_no_body() -> None:
    async with served() as server:
        answer = await ask(server, get("/", CLOSE).replace(b"GET", b"HEAD"))
    assert b"content-length: 17\r\n" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


async def test_a_request_byte_by_byte_is_one() -> None:
    async with served() as server, await connect(server) as stream:
        for byte in get("/slow", CLOSE):
            await stream.send_all(bytes([byte]))
        assert (await until_closed(stream)).endswith(b"GET /slow localhost\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400),  # a TLS hello
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 10_000, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 413),
    ],
)
async def test_what_is_no_request_is_refused_with_its_status(request_: bytes, status: int) -> None:
    async with served() as server:
        answer = await ask(server, request_)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert await ask(server, get("/", CLOSE)), "others are answered as before"


async def test_a_body_is_refused_for_head_too() -> None:
    async with served() as server:
        answer = await ask(server, b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"\r\n\r\n")
        assert b"200" in await ask(server, get("/", CLOSE))


PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"HEAD / HTTP/1.0\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Host: \xff\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"Connection: close\r\n",
        b"\r\n",
        b"\n",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes(9000),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES | st.binary(max_size=40), max_size=8))
def test_no_bytes_stop_it(pieces: list[bytes]) -> None:
    """An exception in a connection would end the process: there may be none, and the next one is served."""

    async def attack() -> None:
        async with served() as server:
            async with await connect(server) as stream:
                try:
                    for piece in pieces:
                        await stream.send_all(piece)
                    await stream.send_eof()
                except trio.BrokenResourceError:  # it has hung up by then
                    pass
                await until_closed(stream)
            assert b"HTTP/1.1 200 " in await ask(server, get("/", CLOSE))

    trio.run(attack)


async def test_a_request_that_does_not_come_to_its_end_costs_its_connection(
    autojump_clock: MockClock,
) -> None:
    async with served() as server, await connect(server) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n")
        started = trio.current_time()
        assert await until_closed_slowly(stream) == b""
        assert trio.current_time() - started == pytest.approx(http_conversation.REQUEST_S, abs=1)


async def test_an_idle_connection_is_kept_for_a_scrape_interval_and_then_closed(
    autojump_clock: MockClock,
) -> None:
    async with served() as server, await connect(server) as stream:
        await stream.send_all(get())
        await one_answer(stream)
        await trio.sleep(http_conversation.IDLE_S - 5)
        await stream.send_all(get())
        await one_answer(stream)
        started = trio.current_time()
        assert await until_closed_slowly(stream) == b""
        assert trio.current_time() - started == pytest.approx(http_conversation.IDLE_S, abs=1)


async def test_a_client_that_does_not_take_its_answer_costs_its_connection(autojump_clock: MockClock) -> None:
    async with served(large) as server, await connect(server) as stream:
        await stream.send_all(get())
        await trio.sleep(http_conversation.ANSWER_S + 1)
        assert len(await until_closed_slowly(stream)) < 6 << 20


async def test_answers_that_nobody_takes_are_bounded_together() -> None:
    async with served(large) as server, await connect(server) as stalled, await connect(server) as other:
        await stalled.send_all(get())
        with trio.fail_after(SOON_S):
            await stalled.receive_some(1)  # it is on its way, and more of it waits
        assert server.unsent_bytes
        await other.send_all(get())
        assert (await one_answer(other)).startswith(b"HTTP/1.1 503 ")


async def test_stalled_clients_do_not_keep_others_out() -> None:
    async with served() as server, trio.open_nursery() as nursery:
        stalled = [await connect(server) for _ in range(http_server.MAX_CONNECTIONS)]
        for stream in stalled:
            await stream.send_all(b"GET / HT")
        for _ in range(5):
            assert b"200" in await ask(server, get("/", CLOSE))
        # Those that waited for longest went, and no more than were in the way.
        with trio.fail_after(SOON_S):
            assert await stalled[0].receive_some() == b""
        await stalled[-1].send_all(b"TP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await one_answer(stalled[-1])
        for stream in stalled:
            nursery.start_soon(stream.aclose)


async def until_closed_slowly(stream: trio.SocketStream) -> bytes:
    """As until_closed, without a deadline that a clock which jumps would reach."""
    data = b""
    try:
        async for part in stream:
            data += part
    except trio.BrokenResourceError:
        pass
    return data


# Where it listens


def taken(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_the_default_address_gives_way_to_whoever_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(taken(0))
        port = first.getsockname()[1]
        monkeypatch.setattr(http_server, "HTTP_ADDRESS", f"127.0.0.1:{port}")
        server = open_http(f"127.0.0.1:{port}", stack)
        assert server is not None
        assert port < int(server.address.rpartition(":")[2]) < port + http_server.PORTS_TRIED


def test_without_any_free_port_by_default_there_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(taken(0)).getsockname()[1]
        monkeypatch.setattr(http_server, "HTTP_ADDRESS", f"127.0.0.1:{port}")
        monkeypatch.setattr(http_server, "PORTS_TRIED", 1)
        assert open_http(f"127.0.0.1:{port}", stack) is None


def test_a_chosen_address_is_taken_or_refused_with_what_to_do() -> None:
    with ExitStack() as stack:
        port = stack.enter_context(taken(0)).getsockname()[1]
        with pytest.raises(HostError, match="another process listens there"):
            open_http(f"127.0.0.1:{port}", stack)
        with pytest.raises(HostError, match="no such address"):
            open_http("192.0.2.1:9478", stack)


def test_off_is_no_server_and_the_default_is_this_host_only() -> None:
    with ExitStack() as stack:
        assert open_http(None, stack) is None
    assert HTTP_ADDRESS.startswith("127.0.0.1:")
