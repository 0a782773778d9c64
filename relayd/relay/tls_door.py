"""Connections that speak TLS, on their way in: how many there may be, and what pumps them afterwards."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable

import trio

from relayd.netio.poller import Poller
from relayd.netio.tcp import set_options
from relayd.netio.watched_stream import WatchedStream
from relayd.observe import log
from relayd.relay.arrival import Arrival, Newcomer
from relayd.relay.bridge import Bridge
from relayd.relay.fair_queue import FairQueue
from relayd.relay.tls import Tls
from relayd.relay.waiting_room import WaitingRoom

CLIENT_HELLO = 0x16
"""First byte of a TLS connection (RFC 8446, section 5.1: a record of type handshake). A frame begins with the
high byte of its length, which is 0."""

SEATS, SEATS_PER_PLACE = 256, 32
"""TLS connections that aren't admitted yet: each costs some 50 KiB once its handshake has begun, 1,024 would
take half of what 10,000 silent connections may. Past that the oldest goes. As many may wait for a turn."""

BEGUN_AT_ONCE = 2
"""TLS handshakes begun in one round of the scheduler. Each takes nearly a millisecond, as long as taking in
ten connections: one for each that comes would have a flood of them keep all others in the kernel's queue for
seconds."""

PIPE_BYTES = 128 << 10
"""What the kernel holds between the data plane and the TLS stream: as TCP_NOTSENT_LOWAT for plain
connections."""

PART_BYTES = 64 << 10
"""Read and encrypted at once: four TLS records."""

CLOSE_S = 2.0
"""How long the last words of a closed connection may take to get out."""

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
"""What a stream or a socket says when the other side isn't there any more."""

TOO_MANY = "too many TLS connections at the door"


class TlsDoor:
    """Turns TLS connections into plain ones."""

    def __init__(
        self, tls: Tls | None, poller: Poller, nursery: trio.Nursery, *, user_timeout_s: float
    ) -> None:
        """Without `tls` it is shut."""
        self._tls = tls
        self._poller = poller
        self._nursery = nursery
        self._user_timeout_ms = round(user_timeout_s * 1000)
        self._waiting: WaitingRoom[Newcomer] = WaitingRoom(seats=SEATS, seats_per_place=SEATS_PER_PLACE)
        self._queue: FairQueue[Newcomer] = FairQueue()
        """The same, by whose turn it is."""
        self._begun: WaitingRoom[Newcomer] = WaitingRoom(seats=SEATS, seats_per_place=SEATS_PER_PLACE)
        self._begins: dict[Newcomer, Callable[[], None]] = {}
        """Of those in the queue: what to do when their turn comes."""
        self._gives_turns = False

    def use(self, tls: Tls | None) -> None:
        """What new connections get from now on. Those that are in stay as they are."""
        self._tls = tls

    @property
    def is_open(self) -> bool:
        """Whether the relay speaks TLS."""
        return self._tls is not None

    @property
    def only(self) -> bool:
        """Whether others are refused."""
        return self._tls is not None and self._tls.only

    def enter(self, newcomer: Newcomer, begin: Callable[[], None]) -> Newcomer | None:
        """It has said hello; `begin` is called when it is its turn. -> the one that has to go for it: not one
        whose handshake has begun, or those who say hello and nothing else would push out all others."""
        if not self._gives_turns:
            self._gives_turns = True
            self._nursery.start_soon(self._give_turns, name="TLS handshakes")
            self._poller.yield_soon()
        self._queue.add(newcomer, newcomer.place)
        self._begins[newcomer] = begin
        return self._waiting.enter(newcomer, newcomer.place)

    def began(self, newcomer: Newcomer) -> Newcomer | None:
        """Its turn has come. -> the one that has to go for it"""
        self._waiting.leave(newcomer)
        return self._begun.enter(newcomer, newcomer.place)

    def leave(self, newcomer: Newcomer) -> None:
        """It is admitted, or gone. Harmless for one that never entered."""
        self._waiting.leave(newcomer)
        self._begun.leave(newcomer)
        self._queue.discard(newcomer, newcomer.place)
        self._begins.pop(newcomer, None)

    async def _give_turns(self) -> None:
        while self._queue:
            for _ in range(BEGUN_AT_ONCE):
                if self._queue:
                    self._begins.pop(self._queue.take())()
            self._poller.yield_soon()
            await trio.lowlevel.checkpoint()
        self._gives_turns = False

    async def shake_hands(self, arrival: Arrival) -> bool:
        """TLS's own handshake. From then on `arrival.sock` is the plain text. -> False: it failed

        Raises OSError when the host has nothing left to make two sockets of."""
        if self._tls is None:  # turned off meanwhile
            return False
        transport = WatchedStream(arrival.sock, self._poller)
        stream = trio.SSLStream(
            transport,
            self._tls.context,
            server_side=True,
            https_compatible=True,
        )
        transport.watch()
        done = False
        try:
            try:
                set_options(arrival.sock, user_timeout_ms=self._user_timeout_ms)
                await stream.do_handshake()
            except GONE as error:
                log.get().debug("agent.tls_failed", endpoint=str(arrival.endpoint), reason=str(error))
                return False
            ours, theirs = socket.socketpair()
            done = True
        finally:
            if not done:
                transport.unwatch()
                _forget(stream)
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
        arrival.bridge = Bridge(scope=trio.CancelScope(), wire=arrival.sock)
        arrival.sock = ours
        self._nursery.start_soon(
            self._pump, stream, theirs, arrival.bridge.scope, name=f"TLS of {arrival.endpoint}"
        )
        return True

    async def _pump(
        self, stream: trio.SSLStream[WatchedStream], inner: socket.socket, scope: trio.CancelScope
    ) -> None:
        """Both ways until one side ends, or `scope` does."""
        plain = WatchedStream(inner, self._poller)
        plain.watch()
        try:
            with scope:
                async with trio.open_nursery() as nursery:

                    async def outwards() -> None:
                        while data := await plain.receive_some(PART_BYTES):
                            await stream.send_all(data)
                        # The relay has said its last word; what its agent still says may be wanted.
                        scope.deadline = min(scope.deadline, trio.current_time() + CLOSE_S)

                    async def inwards() -> None:
                        while data := await stream.receive_some(PART_BYTES):
                            await plain.send_all(data)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(_until_gone, outwards, nursery.cancel_scope)
                    nursery.start_soon(_until_gone, inwards, nursery.cancel_scope)
        finally:
            for one in (plain, stream.transport_stream):
                one.unwatch()
            inner.close()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await trio.aclose_forcefully(stream)
            _forget(stream)


def _forget(stream: trio.SSLStream[WatchedStream]) -> None:
    """Let go of what OpenSSL has for it, 50 KiB, at once. trio's object refers to itself, so that it would
    stay until the next full garbage collection: of a flood of handshakes, thousands at a time."""
    vars(stream).clear()


async def _until_gone(job: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    try:
        await job()
    except GONE:
        scope.cancel()
