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
from relayd.relay.arrival import Arrival
from relayd.relay.tls import Tls
from relayd.relay.waiting_room import WaitingRoom, place_of

CLIENT_HELLO = 0x16
"""First byte of a TLS connection (RFC 8446, section 5.1: a record of type handshake). A frame begins with the
high byte of its length, which is 0."""

SEATS, SEATS_PER_PLACE = 256, 32
"""TLS connections that aren't admitted yet: each costs some 50 KiB from its ClientHello on, 1,024 would take
half of what 10,000 silent connections may. Past that the oldest goes."""

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
        self._room: WaitingRoom[Arrival] = WaitingRoom(seats=SEATS, seats_per_place=SEATS_PER_PLACE)

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

    def enter(self, arrival: Arrival) -> Arrival | None:
        """It has begun to speak TLS. -> the one that has to go for it"""
        return self._room.enter(arrival, place_of(arrival.endpoint.address))

    def leave(self, arrival: Arrival) -> None:
        """It is admitted, or gone. Harmless for one that never entered."""
        self._room.leave(arrival)

    async def shake_hands(self, arrival: Arrival) -> bool:
        """TLS's own handshake. From then on `arrival.sock` is the plain text. -> False: it failed

        Raises OSError when the host has nothing left to make two sockets of."""
        # Of a thousand that say hello in one round of the scheduler, all but SEATS have been evicted by now:
        # they go before anything is made for them.
        await trio.lowlevel.checkpoint()
        if self._tls is None:  # turned off meanwhile
            return False
        stream = trio.SSLStream(
            WatchedStream(arrival.sock, self._poller),
            self._tls.context,
            server_side=True,
            https_compatible=True,
        )
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
                _forget(stream)
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
        arrival.sock = ours
        arrival.bridge = trio.CancelScope()
        self._nursery.start_soon(
            self._pump, stream, theirs, arrival.bridge, name=f"TLS of {arrival.endpoint}"
        )
        return True

    async def _pump(
        self, stream: trio.SSLStream[WatchedStream], inner: socket.socket, scope: trio.CancelScope
    ) -> None:
        """Both ways until one side ends, or `scope` does."""
        plain = WatchedStream(inner, self._poller)
        for one in (plain, stream.transport_stream):
            one.watch()
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
