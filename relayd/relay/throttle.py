"""Keys that send more than they may: their connections aren't read for a while, so TCP slows their agents
down.

    Throttle.watch(connection) -> the poller calls Limited.on_event instead of Connection.on_event
    Limited.on_event           -> Connection.on_event with a smaller read, then what that cost
    overdrawn                  -> no EPOLLIN until it is made good

Nothing is dropped. Connections of a relay without such limits have nothing to do with this module.
"""

from __future__ import annotations

import heapq
import math
import select
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from relayd.relay.connection import Connection
from relayd.relay.rates import BucketOf, KeyRates
from relayd.token_bucket import TokenBucket

if TYPE_CHECKING:
    from relayd.relay.dataplane import DataPlane

BURST_S = 0.25
"""What may come at once: a quarter of a second's worth, some TCP windows of a WAN."""

MIN_BURST_BYTES = 128 << 10
MIN_BURST_FRAMES = 256.0

LEAST_READ_BYTES = 4096


class Throttle:
    """The limits of one relay, its buckets by key, and the connections that wait."""

    def __init__(self, plane: DataPlane, rates: KeyRates) -> None:
        self.plane = plane
        self.change(rates)
        self._waiting: list[tuple[float, int, Connection]] = []
        self._number = 0
        self._news = trio.Event()
        self.pauses = 0
        """How often a connection wasn't read for a while."""

    def change(self, rates: KeyRates) -> None:
        """So much, from now on. Who is watched is to be watched anew; who waits has its turn as it was."""
        self._rates = rates
        self._bytes = _buckets(rates.bytes_s, MIN_BURST_BYTES)
        self._frames = _buckets(rates.frames_s, MIN_BURST_FRAMES)

    def watch(self, connection: Connection) -> Callable[[int], None]:
        """What the poller is to call for its events."""
        if not self._rates:
            return connection.on_event
        now, key = self.plane.poller.now, connection.key.raw
        bytes_ = self._bytes.of(key, now) if self._bytes is not None else None
        frames = self._frames.of(key, now) if self._frames is not None else None
        return _Limited(self, connection, bytes_, frames).on_event

    def spent(self, key: bytes, now: float) -> tuple[float, float]:
        """What a key has used up of its bytes and frames, for `spend` in the next process."""
        bytes_, frames = (
            buckets.of(key, now).spent(now) if buckets is not None else 0.0
            for buckets in (self._bytes, self._frames)
        )
        return bytes_, frames

    def spend(self, key: bytes, spent: tuple[float, float], now: float) -> None:
        """A key had used up so much in the process before."""
        for buckets, amount in zip((self._bytes, self._frames), spent, strict=True):
            if buckets is not None:
                buckets.of(key, now).take(amount, now)

    def pause(self, connection: Connection, until: float) -> None:
        """Don't read it until then."""
        self.pauses += 1
        self._number += 1
        connection.paused = True
        self.plane.watch_events(connection)
        heapq.heappush(self._waiting, (until, self._number, connection))
        self._news.set()
        self.plane.poller.yield_soon()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read them again when their time comes, for ever."""
        task_status.started()
        plane = self.plane
        while True:
            self._news = trio.Event()
            plane.poller.refresh()
            now = plane.poller.now
            while self._waiting and self._waiting[0][0] <= now:
                _, _, connection = heapq.heappop(self._waiting)
                connection.paused = False
                connection.heard_at = now  # what it said meanwhile wasn't listened to
                if connection in plane.connections:
                    plane.watch_events(connection)
                    if connection.behind_bytes:
                        plane.turns.behind(connection)
            wait_s = self._waiting[0][0] - now if self._waiting else math.inf
            with trio.move_on_after(wait_s):
                await self._news.wait()


def _buckets(rate: float | None, least_burst: float) -> BucketOf[bytes] | None:
    return BucketOf(rate, max(rate * BURST_S, least_burst)) if rate is not None else None


class _Limited:
    """One connection, and what its key may send."""

    def __init__(
        self,
        throttle: Throttle,
        connection: Connection,
        bytes_: TokenBucket | None,
        frames: TokenBucket | None,
    ) -> None:
        self._throttle, self._connection = throttle, connection
        self._bytes, self._frames = bytes_, frames

    def on_event(self, mask: int) -> None:
        connection, plane = self._connection, self._throttle.plane
        now = plane.poller.now
        if connection.paused and not mask & ~(select.EPOLLOUT | select.EPOLLIN):
            plane.drain(connection)
            return
        bytes_before, frames_before = connection.bytes_in, connection.frames_in
        if self._bytes is not None:
            plane.round_bytes = int(max(LEAST_READ_BYTES, min(plane.round_bytes, self._bytes.level(now))))
        try:
            connection.on_event(mask)
        finally:
            plane.turns.set_round()
        wait_s = 0.0
        if self._bytes is not None:
            wait_s = self._bytes.take(connection.bytes_in - bytes_before, now)
        if self._frames is not None:
            wait_s = max(wait_s, self._frames.take(connection.frames_in - frames_before, now))
        if wait_s > 0 and connection in plane.connections:
            self._throttle.pause(connection, now + wait_s)
