"""Requests to API servers: which one is asked, as whom, and who hears that one is back. On real sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from relayd.coordination.kubernetes.api_error import MAX_RETRY_AFTER_S, ApiError, UnreachableError
from relayd.coordination.kubernetes.client import Access, ApiClient

WAIT_S = 5.0


class Server:
    """Answers each request with `answer`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.status, self.body = "200 OK", b"{}"
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), self._serve, 0)
            assert isinstance(listener, trio.SocketListener)
            self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            yield self.url
            nursery.cancel_scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(4096)
            if not data:
                return
            head += data
        self.asked.append(head)
        length = str(len(self.body)).encode()
        status = self.status.encode()
        lines = [b"HTTP/1.1 " + status, b"Content-Length: " + length, b"Connection: close", b"", self.body]
        await stream.send_all(b"\r\n".join(lines))


def nobody() -> str:
    """Where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    async with made.serving():
        yield made


def client(*servers: str, token_file: Path | None = None) -> ApiClient:
    return ApiClient(Access(servers=servers, token_file=token_file, ca_file=None))


async def bounded(what: Callable[[], Awaitable[object]]) -> None:
    with trio.fail_after(WAIT_S):
        await what()


async def test_the_next_server_has_its_turn_when_one_does_not_answer(server: Server) -> None:
    dead = nobody()
    asking = client(dead, server.url)
    with pytest.raises(UnreachableError, match=dead):
        await asking.request("GET", "/api")
    assert await asking.request("GET", "/api") == b"{}"
    assert asking.server == server.url


async def test_a_server_that_the_mesh_names_comes_first_and_the_others_stay(server: Server) -> None:
    named = nobody()
    asking = client(server.url)
    asking.prefer(named)
    with pytest.raises(UnreachableError, match=named):
        await asking.request("GET", "/api")
    assert await asking.request("GET", "/api") == b"{}", "it doesn't answer: the pod's own has its turn"
    asking.prefer(named)
    asking.prefer("")
    assert asking.server == server.url, "the mesh names none any more"


async def test_a_token_is_read_for_each_request(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    asking = client(server.url, token_file=token)
    for text in ("first", "second\n"):
        token.write_text(text)
        await asking.request("GET", "/api")
        assert f"Authorization: Bearer {text.strip()}\r\n".encode() in server.asked[-1]
    token.unlink()
    with pytest.raises(UnreachableError, match="cannot read the token"):
        await asking.request("GET", "/api")


async def test_who_waits_for_a_server_is_told_that_it_answered_somebody(
    server: Server, nursery: trio.Nursery
) -> None:
    asking = client(nobody(), server.url)
    with pytest.raises(UnreachableError):
        await asking.request("GET", "/api")
    heard = trio.Event()

    async def wait() -> None:
        await asking.back()
        heard.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    server.status = "403 Forbidden"
    with pytest.raises(ApiError):  # that is an answer
        await asking.request("GET", "/api")
    await bounded(heard.wait)


async def test_what_a_refusal_says_is_told(server: Server) -> None:
    server.status = "429 Too Many Requests"
    server.body = (
        b'{"code": 429, "reason": "TooManyRequests", "message": "later", "details": {"retryAfterSeconds": 7}}'
    )
    with pytest.raises(ApiError, match="429 TooManyRequests: later") as caught:
        await client(server.url).request("GET", "/api")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)


@pytest.mark.parametrize(
    ("said", "waits_s"), [("12", 12.0), ("86400", MAX_RETRY_AFTER_S), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0)]
)
async def test_a_refusal_for_want_of_room_says_in_a_header_when_to_come_again(
    server: Server, said: str, waits_s: float
) -> None:
    server.status = f"429 Too Many Requests\r\nretry-after: {said}"
    server.body = b"Too many requests, please try again later.\n"
    with pytest.raises(ApiError, match=r"429.*please try again later") as caught:
        await client(server.url).request("GET", "/api")
    assert caught.value.retry_after_s == waits_s


@pytest.mark.parametrize("status", ["301 Moved Permanently", "304 Not Modified"])
async def test_who_sends_us_elsewhere_has_not_answered(server: Server, status: str) -> None:
    server.status = f"{status}\r\nLocation: https://192.0.2.1/api"
    with pytest.raises(ApiError, match=status[:3]):
        await client(server.url).request("PATCH", "/api", body={})
