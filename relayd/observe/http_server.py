"""HTTP/1.1 for operators on one address: one trio task a connection, h11 for the protocol.

    accept -> read a request head -> Site.answer (observe.http_site) -> send -> the next request, or close

(h11 rather than hypercorn and starlette: five paths and no bodies need no framework, which would cost a
relay 9 MiB and 150 ms of its start; h11, which hypercorn stands on, costs half a MiB.)

It shares a process with a data plane, so everything is bounded: connections, the size of a request, the time
for one and for taking its answer, and the bytes of answers that clients haven't taken yet. A client that
stalls costs its own connection. Nothing here waits for a client outside of that client's own task.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import h11
import trio

from relayd.config import HTTP_ADDRESS
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.observe import log

MAX_CONNECTIONS = 32
"""A handful of scrapers and browser tabs; one more takes the place of the one that is idle for longest."""

MAX_HEAD_BYTES = 8192
"""Of a request: browsers send less than 2 KiB without cookies."""

MAX_UNSENT_BYTES = 8 << 20
"""Answers that clients haven't taken yet, all together. A status of ten thousand connections has 4 MiB."""

REQUEST_S = 5.0
"""From the first byte of a request, or the connection's begin, to its last one."""

IDLE_S = 75.0
"""Between two requests: Prometheus asks every 15 to 60 s, and keeps its connection meanwhile."""

ANSWER_S = 15.0
"""For a client to take an answer: a phone on a bad line is served, a stopped one not for long."""

LINGER_S = 1.0
"""For an error to arrive before the connection closes: closing with bytes unread sends a reset."""

BACKLOG = 64
READ_BYTES = 16 << 10

PORTS_TRIED = 10
"""From the default port on: a relay and some agents on one host each find one."""


@dataclass(frozen=True, slots=True)
class Request:
    """What of a request counts. All of it is a stranger's."""

    method: str
    target: str
    """The path with its query, as it came."""
    host: str
    """The Host header; empty: there was none (HTTP/1.0)."""
    has_body: bool = False
    """Whether there is more of it than this server reads."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = field(default=())


AnswerTo = Callable[[Request], Awaitable[Answer]]


def plain_text(status: int, *lines: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer for people and shell scripts, a line each."""
    return Answer(status, "text/plain; charset=utf-8", "".join(f"{one}\n" for one in lines).encode(), headers)


# --- listening ---


def open_http(address: str | None, stack: ExitStack) -> HttpServer | None:
    """A server that listens at `address` ("ADDR:PORT"), where nobody is answered yet; None: there is none.
    `stack` closes it.

    An address that somebody chose is taken, or HostError says why not. The default one gives way: the
    next free of PORTS_TRIED ports is taken, and when there is none the log says so, and the relay or agent
    does its work all the same.
    """
    if address is None:
        return None
    wanted = Endpoint.parse(address)
    by_default = address == HTTP_ADDRESS
    refusal: OSError | None = None
    for port in range(wanted.port, wanted.port + PORTS_TRIED if by_default else wanted.port + 1):
        try:
            return HttpServer(stack.enter_context(_listen(Endpoint(wanted.address, port))))
        except OSError as error:
            refusal = error
            if error.errno != errno.EADDRINUSE:
                break
    assert refusal is not None
    if by_default:
        log.get().warning("http.unavailable", address=address, reason=refusal.strerror)
        return None
    what = {
        errno.EADDRINUSE: "another process listens there: stop it, or choose another --http",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE: choose another --http",
        errno.EADDRNOTAVAIL: "this host has no such address: see `ip address`",
    }.get(refusal.errno or 0, "see --http")
    raise HostError(f"cannot serve HTTP on {address}: {refusal.strerror} ({what})") from refusal


def _listen(endpoint: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(endpoint.address), endpoint.port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


# --- serving ---


@dataclass(eq=False, slots=True)
class _Client:
    """One connection."""

    scope: trio.CancelScope
    waiting: bool = True
    """For the client's request, not for it to take an answer."""


class HttpServer:
    """Serves one listening socket."""

    def __init__(self, listener: socket.socket) -> None:
        """`listener` is non-blocking, and the server's once it runs."""
        self._listener = listener
        self._clients: dict[_Client, None] = {}
        """In the order in which each began to wait for what it waits for."""
        self.unsent_bytes = 0
        """Of answers that clients haven't taken yet."""
        self.address = str(Endpoint.of_socket(listener.getsockname()))

    async def run(
        self, answer: AnswerTo, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept, and send what `answer` gives, until cancelled; then it is closed. `answer` never raises."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        task_status.started()
        await trio.serve_listeners(partial(self._serve, answer), [listener])

    async def _serve(self, answer: AnswerTo, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            client = _Client(scope)
            if not self._make_room():
                return  # all of them are being answered; none of those is worth less than this one
            self._clients[client] = None
            try:
                await self._converse(stream, client, answer)
            except trio.BrokenResourceError as error:
                log.get().debug("http.abandoned", error=error.__cause__ or error)
            finally:
                del self._clients[client]

    def _make_room(self) -> bool:
        """Whether one more may come in; the one that has been idle for longest goes if need be."""
        if len(self._clients) < MAX_CONNECTIONS:
            return True
        victim = next((one for one in self._clients if one.waiting and not one.scope.cancel_called), None)
        if victim is None:
            return False
        victim.scope.cancel()
        return True

    async def _converse(self, stream: trio.SocketStream, client: _Client, answer_to: AnswerTo) -> None:
        """Requests and their answers, until one side has enough."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        idle_s = REQUEST_S
        while True:
            client.waiting = True
            try:
                request = await _next_request(http, stream, idle_s)
            except h11.RemoteProtocolError as error:
                hint = int(error.error_status_hint)
                await self._refuse(http, stream, plain_text(hint, f"not a request for this server: {error}"))
                return
            if request is None:
                return
            client.waiting = False
            if request.has_body:
                await self._send(http, stream, _TOO_MUCH, with_body=request.method != "HEAD")
                await _linger(stream)
                return
            answer = await answer_to(request)
            if self.unsent_bytes and self.unsent_bytes + len(answer.body) > MAX_UNSENT_BYTES:
                answer = plain_text(503, "too many answers wait for their readers", headers=_RETRY)
            await self._send(http, stream, answer, with_body=request.method != "HEAD")
            if http.our_state is not h11.DONE:
                return
            http.start_next_cycle()
            self._clients[client] = self._clients.pop(client)
            idle_s = IDLE_S

    async def _send(
        self, http: h11.Connection, stream: trio.SocketStream, answer: Answer, *, with_body: bool
    ) -> None:
        """Send an answer within ANSWER_S; a client that doesn't take it loses its connection."""
        headers = [
            ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            *_HEADERS,
            *answer.headers,
        ]
        parts = [http.send(h11.Response(status_code=answer.status, headers=headers)) or b""]
        if with_body:  # as it is, without a copy: several may be sending the same
            parts += http.send_with_data_passthrough(h11.Data(answer.body)) or []
        http.send(h11.EndOfMessage())
        self.unsent_bytes += len(answer.body)
        try:
            with trio.move_on_after(ANSWER_S) as scope:
                for part in parts:
                    await stream.send_all(part)
        finally:
            self.unsent_bytes -= len(answer.body)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError(f"the answer was not taken within {ANSWER_S:g} s")

    async def _refuse(self, http: h11.Connection, stream: trio.SocketStream, answer: Answer) -> None:
        """The last words on a connection whose bytes make no sense."""
        if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._send(http, stream, answer, with_body=True)
        await _linger(stream)


async def _linger(stream: trio.SocketStream) -> None:
    """Let what was said arrive before the connection closes."""
    with trio.move_on_after(LINGER_S):
        await stream.send_eof()
        while await stream.receive_some(READ_BYTES):
            pass


async def _next_request(http: h11.Connection, stream: trio.SocketStream, idle_s: float) -> Request | None:
    """The next request; None: the client has none any more, or took too long.

    `idle_s` is what it may take to begin. Raises h11.RemoteProtocolError for nonsense.
    """
    head: h11.Request | None = None
    with trio.move_on_after(idle_s) as scope:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(READ_BYTES)
                if idle_s > REQUEST_S:  # it has begun
                    scope.deadline, idle_s = trio.current_time() + REQUEST_S, REQUEST_S
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
            elif head is not None and isinstance(event, h11.Data | h11.EndOfMessage):
                return _request(head, has_body=isinstance(event, h11.Data))
            else:  # ConnectionClosed, or PAUSED after something that is no HTTP any more
                return None
    return None


def _request(head: h11.Request, *, has_body: bool) -> Request:
    """h11 lets through ASCII only, and one Host at the most."""
    host = next((value for name, value in head.headers if name == b"host"), b"")
    return Request(
        head.method.decode("ascii"), head.target.decode("ascii"), host.decode("latin-1"), has_body=has_body
    )


_TOO_MUCH = plain_text(413, "a request here has no body", headers=(("Connection", "close"),))
_RETRY = (("Retry-After", "5"),)
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""Of every answer. No CORS header is among them, so that another site's page can't read one."""
