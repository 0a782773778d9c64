"""Connections that have sent more frames than may be dealt with at once: they go on in turns, between the
others.

    read -> TURN_RUNS runs are switched; the rest of what was read is kept, and the socket isn't read
    each batch of the poller -> one connection that waits here has its next turn -> the last: it is read again

A read has room for 50,000 of the smallest frames, which take 70 ms: for so long nobody else would be served,
each time. However many connections do that, one of them has a turn in a batch, and the others wait.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from relayd.relay.connection import Connection
    from relayd.relay.dataplane import DataPlane

MOST_KEPT_BYTES: Final = 8 << 20
"""Of all connections together, before reads become short."""

SHORT_READ_BYTES: Final = 4096


class Turns:
    """Who waits for a turn, in order."""

    def __init__(self, plane: DataPlane, round_bytes: int) -> None:
        """`round_bytes`: what is read of a connection at once, as long as not much is kept back."""
        self._plane = plane
        self._round_bytes = round_bytes
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._kept_bytes = 0
        self._rung = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        plane.poller.add(self._fd, self._on_ring)

    def behind(self, connection: Connection) -> None:
        """It has kept something back, and isn't read until that has been dealt with. It isn't paused.
        Harmless for one that one of its own frames has just ended."""
        if connection not in self._plane.connections:
            return
        self._waiting[connection] = None
        if not self._rung:
            self._rung = True
            os.eventfd_write(self._fd, 1)
        if not connection.behind_bytes:
            connection.behind_bytes = len(connection.partial)
            self._kept_bytes += connection.behind_bytes
            self._plane.watch_events(connection)
            self.set_round()

    def caught_up(self, connection: Connection) -> None:
        """It has nothing kept back any more, or has been closed."""
        self._kept_bytes -= connection.behind_bytes
        connection.behind_bytes = 0
        self.set_round()
        if connection in self._plane.connections:
            self._plane.watch_events(connection)

    def change(self, round_bytes: int) -> None:
        """See the constructor."""
        self._round_bytes = round_bytes
        self.set_round()

    def set_round(self) -> None:
        """Have the data plane read as much at once as it may now."""
        most = SHORT_READ_BYTES if self._kept_bytes > MOST_KEPT_BYTES else self._round_bytes
        self._plane.round_bytes = min(most, self._round_bytes)

    def close(self) -> None:
        """Give the descriptor back."""
        self._plane.poller.remove(self._fd)
        os.close(self._fd)

    def _on_ring(self, _mask: int) -> None:
        connection, _ = self._waiting.popitem(last=False)
        if connection in self._plane.connections and not connection.paused:
            self._plane.poller.nudge(connection.sock.fileno())
        if not self._waiting:
            os.eventfd_read(self._fd)
            self._rung = False
