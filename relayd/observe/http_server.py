"""HTTP for operators on one address: one trio task a connection.

    accept -> http_conversation: a request -> Site.answer (observe.http_site) -> send -> the next request

What speaks the protocol is loaded by the first connection: a relay that starts has others to serve first, and
15 ms are a part of how long its agents wait.

It shares a process with a data plane, so everything is bounded: connections, the size of a request, the time
for one and for taking its answer, and the bytes of answers that clients haven't taken yet. A client that
stalls costs its own connection. Nothing here waits for a client outside of that client's own task.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import trio

from relayd.config import HTTP_ADDRESS
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.observe import log
from relayd.observe.late import loaded

MAX_CONNECTIONS = 32
"""A handful of scrapers and browser tabs; one more takes the place of the one that is idle for longest."""

BACKLOG = 64

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


@dataclass(slots=True)
class Unsent:
    """Of answers that clients haven't taken yet."""

    bytes: int = 0


class Client:
    """One connection, among the server's others."""

    def __init__(self, scope: trio.CancelScope, clients: dict[Client, None]) -> None:
        """`clients` has all of them, in the order in which each began to wait for what it waits for."""
        self.scope, self._clients = scope, clients
        self.waiting = True
        """For the client's request, not for it to take an answer."""

    def begins_to_wait(self) -> None:
        """It has been served: of all, the one that is idle for the shortest time."""
        self._clients[self] = self._clients.pop(self)


class HttpServer:
    """Serves one listening socket."""

    def __init__(self, listener: socket.socket) -> None:
        """`listener` is non-blocking, and the server's once it runs."""
        self._listener = listener
        self._clients: dict[Client, None] = {}
        self._unsent = Unsent()
        self.address = str(Endpoint.of_socket(listener.getsockname()))

    @property
    def unsent_bytes(self) -> int:
        """Of answers that clients haven't taken yet."""
        return self._unsent.bytes

    async def run(
        self, answer: AnswerTo, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept, and send what `answer` gives, until cancelled; then it is closed. `answer` never raises."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        task_status.started()
        await trio.serve_listeners(partial(self._serve, answer), [listener])

    async def _serve(self, answer: AnswerTo, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            client = Client(scope, self._clients)
            if not self._make_room():
                return  # all of them are being answered; none of those is worth less than this one
            self._clients[client] = None
            try:
                await loaded("relayd.observe.http_conversation")
                from relayd.observe.http_conversation import Conversation

                await Conversation(stream, client, self._unsent).run(answer)
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
