"""The registered connections: bytes in, runs through the switch, bytes out.

    poller event -> Connection.on_event -> recv_into the arena -> wire.runs.scan -> Switch.forward
    end of batch -> DataPlane.flush -> one sendmsg a destination -> what it didn't take: its Outbox

The arena is one buffer for all connections. Each read of a batch gets the next piece of it, and the
slices that the switch gathers point into it, so it is reused only after a flush.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter

from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.manager.handover import Handover
from relayd.netio.delays import Delays
from relayd.netio.outbox import Outbox
from relayd.netio.poller import Poller
from relayd.netio.tcp import IOV_MAX, set_options
from relayd.relay.bounds import Bounds
from relayd.relay.connection import ARENA_BYTES, Connection
from relayd.relay.counters import OUTBOX_COUNTERS, PORT_COUNTERS, counts
from relayd.relay.notices import GoneNotices
from relayd.relay.switch import Switch
from relayd.relay.throttle import Throttle
from relayd.relay.turns import Turns
from relayd.wire.frames import LENGTH_BYTES, MAX_LENGTH
from relayd.wire.identity_frames import Gone, PeerGone
from relayd.wire.relay_handshake import RelayHandshake

LARGEST_PARTIAL = MAX_LENGTH + LENGTH_BYTES - 1
"""The most of a frame that can be waiting for its last byte."""

BARE_TIMEOUT_MS = 15_000
"""Bytes that stay unacknowledged for this long mean that the other side is gone (tcp(7)), when it can't be
asked: the kernel counts the time of a reader that is there and takes nothing, too."""

SHRINK_PARTS = 8

OnControl = Callable[[Connection, int, memoryview], None]
OnClosed = Callable[[Connection, str, str], None]


class DataPlane:
    """All registered connections, their switch and their arena. Owned by the task that runs the poller."""

    def __init__(
        self,
        poller: Poller,
        bounds: Bounds,
        handover: Handover,
        *,
        on_control: OnControl,
        on_closed: OnClosed,
    ) -> None:
        """`on_control(connection, kind, body)` gets frames without a key.

        `on_closed(connection, reason, say)` is called once for each connection, after it was taken out; its
        socket is then still open, and the caller's to close once its agent was told `say` (empty: nothing).

        Raises ValueError when a round of `bounds` doesn't fit the arena."""
        if bounds.round_bytes + LARGEST_PARTIAL > ARENA_BYTES:
            raise ValueError(f"round_bytes above {ARENA_BYTES - LARGEST_PARTIAL}: {bounds.round_bytes}")
        self.poller = poller
        self.handover = handover
        """Where connections are kept that outlive this process."""
        self._sent = handover.ledger.sent
        self._bounds = bounds
        self.turns = Turns(self, bounds.round_bytes)
        self.round_bytes = bounds.round_bytes
        self.room_bytes = bounds.round_bytes + LARGEST_PARTIAL
        """What one read may need of the arena."""
        self.on_control = on_control
        self._on_closed = on_closed
        self.switch: Switch[Connection] = Switch()
        self.throttle = Throttle(self, bounds.rates)
        self.connections: set[Connection] = set()
        self.backlogged: set[Connection] = set()
        """Those whose outbox holds something."""
        self.memory_bytes = 0
        """What all outboxes take up."""
        self.queued_bytes = 0
        """What waits in them."""
        self.totals: Counter[str] = Counter()
        """What connections that are gone have counted."""
        self.delays = Delays()
        """How long frames waited in outboxes."""
        self.arena = bytearray(ARENA_BYTES)
        self.view = memoryview(self.arena)
        self.fill = 0
        """The arena up to here is referred to until the next flush."""
        poller.after_batch.append(self.flush)

    def adopt(
        self, sock: socket.socket, key: PublicKey, endpoint: Endpoint, *, handshake: RelayHandshake | None
    ) -> Connection:
        """Serve a connection under `key` from now on, whoever has held it. `handshake`: see Connection.

        Who held the key is out of the switch, and still served. `sock` doesn't block. Raises OSError when it
        is broken already; nothing has changed then."""
        tcp = sock.family != socket.AF_UNIX  # else the other end is ours too: TLS
        if tcp:
            set_options(sock, user_timeout_ms=self._user_timeout_ms(proved=handshake is None))
        connection = Connection(self, sock, key, endpoint, time.monotonic(), handshake=handshake)
        if tcp:
            connection.slot = self.handover.admit(sock, connection.facts)
        self._begin(connection)
        return connection

    def resume(
        self,
        sock: socket.socket,
        key: PublicKey,
        endpoint: Endpoint,
        *,
        slot: int,
        proved: bool,
        since: float,
    ) -> Connection:
        """Serve a connection on that an earlier process had; `slot` is its place in the ledger."""
        connection = Connection(self, sock, key, endpoint, time.monotonic(), handshake=None)
        connection.proved, connection.since, connection.slot = proved, since, slot
        self._begin(connection)
        return connection

    def _begin(self, connection: Connection) -> None:
        self.poller.add(connection.sock.fileno(), self.throttle.watch(connection))
        self.connections.add(connection)
        self.switch.replace(connection)

    def proved(self, connection: Connection) -> None:
        """A connection that is served already has proved its key."""
        connection.proved = True
        connection.handshake = None
        self.handover.update(connection.slot, connection.facts)
        with suppress(OSError):  # it is broken, as the next read finds, or one end of a pair
            set_options(connection.sock, user_timeout_ms=self._user_timeout_ms(proved=True))

    def leave(self, connection: Connection) -> None:
        """It has lost its key to another connection, and is read to its end, which is not long."""
        connection.leaving = True
        self.handover.forget(connection.slot)
        connection.slot = 0

    def _user_timeout_ms(self, *, proved: bool) -> int:
        """Who has proved its key answers Pings, which find out sooner than this whether it is there; and that
        it doesn't read we see ourselves, and say so. The kernel's time is for when we don't come to it."""
        return round(self._bounds.stalled_s * 2000) if proved else BARE_TIMEOUT_MS

    def flush_now(self) -> None:
        """`flush` from outside a batch of the poller, whose clock stands still there."""
        self.poller.refresh()
        self.flush()

    def flush(self) -> None:
        """Send what this batch has gathered, one sendmsg a destination."""
        self.fill = 0
        touched = self.switch.touched
        if not touched:
            return
        now = self.poller.now
        self.switch.touched = []
        for connection in touched:
            pending = connection.pending
            if not pending:  # closed since it was touched
                continue
            connection.pending = []
            if connection.outbox:
                self._queue(connection, connection.outbox, pending, now)
                continue
            try:
                if len(pending) == 1:
                    total = len(pending[0])
                    sent = connection.sock.send(pending[0])
                else:
                    total = sum(map(len, pending))
                    sent = connection.sock.sendmsg(pending[:IOV_MAX])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.close(connection, f"write: {error.strerror}")
                continue
            connection.bytes_out = written = connection.bytes_out + sent
            if sent == total:
                self._sent[connection.slot] = written
            else:
                self._keep(connection, pending, sent, now)

    def _keep(self, connection: Connection, pending: list[memoryview], sent: int, now: float) -> None:
        outbox = self.outbox_of(connection)
        queued, memory = outbox.queued_bytes, outbox.memory_bytes
        outbox.keep(pending, sent, now)
        if not outbox.in_mid_frame:
            self._sent[connection.slot] = connection.bytes_out
        self._settle(connection, outbox, queued, memory)
        if sent:
            connection.taken_at = now
        self.wait_writable(connection)

    def outbox_of(self, connection: Connection) -> Outbox:
        """Its outbox, made if it has none."""
        if connection.outbox is None:
            bounds = self._bounds
            connection.outbox = Outbox(
                max_bytes=bounds.queue_bytes, max_age_s=bounds.queue_age_s, delays=self.delays, fair=True
            )
        return connection.outbox

    def wait_writable(self, connection: Connection) -> None:
        """Its outbox holds something now."""
        if connection not in self.backlogged:
            connection.taken_at = self.poller.now
            self.backlogged.add(connection)
            self.watch_events(connection)

    def watch_events(self, connection: Connection) -> None:
        """Let the poller look for what its state asks for."""
        readable = 0 if connection.paused or connection.behind_bytes else select.EPOLLIN
        writable = select.EPOLLOUT if connection in self.backlogged else 0
        self.poller.modify(connection.sock.fileno(), readable | writable)

    def restore(self, connection: Connection, rest: bytes, runs: list[tuple[float, bytes]]) -> None:
        """Let wait for it what waited for it in an earlier process: see Outbox.restore."""
        outbox = self.outbox_of(connection)
        queued, memory = outbox.queued_bytes, outbox.memory_bytes
        outbox.restore(rest, runs)
        self._settle(connection, outbox, queued, memory)
        self.wait_writable(connection)

    def _queue(self, connection: Connection, outbox: Outbox, runs: list[memoryview], now: float) -> None:
        queued, memory = outbox.queued_bytes, outbox.memory_bytes
        for run in runs:
            outbox.put(run, now)
        self._settle(connection, outbox, queued, memory)

    def _settle(self, connection: Connection, outbox: Outbox, queued: int, memory: int) -> None:
        """Something happened to an outbox that held so much: keep the sums, keep the ceiling, and tell whose
        frames it cost."""
        self.queued_bytes += outbox.queued_bytes - queued
        self.memory_bytes += outbox.memory_bytes - memory
        if outbox.losers:
            self._tell_losers(connection, outbox)
        if self.memory_bytes > self._bounds.memory_bytes:
            self._shrink()

    def _shrink(self) -> None:
        """All outboxes together hold too much: the largest shrinks first."""
        while self.memory_bytes > self._bounds.memory_bytes:
            largest = max(self.backlogged, key=_queued_bytes, default=None)
            if largest is None or largest.outbox is None:
                return
            outbox = largest.outbox
            queued, memory = outbox.queued_bytes, outbox.memory_bytes
            # In steps that are worth the look for the largest, however little is too much.
            outbox.shed(max(self.memory_bytes - self._bounds.memory_bytes, queued // SHRINK_PARTS))
            if outbox.queued_bytes == queued:
                return  # nothing but rests of frames that are half on the wire
            self.queued_bytes += outbox.queued_bytes - queued
            self.memory_bytes += outbox.memory_bytes - memory
            self._tell_losers(largest, outbox)

    def _tell_losers(self, connection: Connection, outbox: Outbox) -> None:
        losers, outbox.losers = outbox.losers, set()
        for key in losers:
            sender = self.switch.find(key)
            if sender is not None:
                self.tell_gone(sender, connection.key.raw, Gone.STALLED)

    def tell_gone(self, sender: Connection, key: bytes, reason: Gone) -> None:
        """Tell it, at most once a second, that frames for `key` are being lost."""
        if not sender.proved:
            return
        if sender.gone is None:
            sender.gone = GoneNotices()
        if sender.gone.due(key, self.poller.now):
            self.send_frame(sender, PeerGone(PublicKey(key), reason).encode())

    def drain(self, connection: Connection) -> None:
        """The socket takes bytes again: send what waits in its outbox."""
        outbox = connection.outbox
        if outbox is None:
            return
        queued, memory = outbox.queued_bytes, outbox.memory_bytes
        pieces = outbox.chunks(self.poller.now)
        broken = ""
        if pieces:
            try:
                sent = connection.sock.sendmsg(pieces)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                sent, broken = 0, f"write: {error.strerror}"
            connection.bytes_out += sent
            outbox.sent(sent)
            if sent:
                connection.taken_at = self.poller.now
            if not outbox.in_mid_frame:
                self._sent[connection.slot] = connection.bytes_out
        self._settle(connection, outbox, queued, memory)
        if broken:
            self.close(connection, broken)
            return
        if not outbox:
            self.backlogged.discard(connection)
            self.watch_events(connection)

    def expire(self) -> None:
        """Drop what has waited too long for readers that don't read, and close those that have stopped
        reading for too long. To be called now and then."""
        self.poller.refresh()
        now = self.poller.now
        for connection in list(self.backlogged):
            if now - connection.taken_at > self._bounds.stalled_s:
                reason = f"has read nothing for {self._bounds.stalled_s:g} s"
                self.close(connection, reason, say=reason)
                continue
            outbox = connection.outbox
            assert outbox is not None
            queued, memory = outbox.queued_bytes, outbox.memory_bytes
            outbox.expire(now)
            self._settle(connection, outbox, queued, memory)

    def send_frame(self, connection: Connection, frame: bytes) -> None:
        """A frame of the relay's own, in its place behind what already waits. Nothing for one that has been
        closed, as by a frame before the one that this answers, or that leaves."""
        if connection.leaving or connection not in self.connections:
            return
        self._gather(connection, frame)
        connection.frames_out += 1

    def _gather(self, connection: Connection, run: bytes) -> None:
        if not connection.pending:
            self.switch.touched.append(connection)
        connection.pending.append(memoryview(run))

    def hand_over(self, old: Connection, new: Connection) -> None:
        """What waits for `old` and hasn't begun to leave goes to `new`, which has its key now."""
        if old.outbox:
            queued, memory = old.outbox.queued_bytes, old.outbox.memory_bytes
            runs = old.outbox.take()
            self._settle(old, old.outbox, queued, memory)
            for run in runs:
                self._gather(new, run)

    def close(self, connection: Connection, reason: str, *, say: str = "") -> None:
        """Take a connection out: key, poller, queue. Its socket is `on_closed`'s. Once is enough."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        self.switch.leave(connection)
        self.poller.remove(connection.sock.fileno())
        self.backlogged.discard(connection)
        self.handover.forget(connection.slot)
        connection.slot = 0
        if connection.behind_bytes:
            self.turns.caught_up(connection)
        if connection.outbox:
            self.queued_bytes -= connection.outbox.queued_bytes
            self.memory_bytes -= connection.outbox.memory_bytes
            connection.outbox.clear()
        self.totals.update(counts(connection))
        connection.pending = []
        self._on_closed(connection, reason, say)

    def change(self, bounds: Bounds) -> None:
        """These, from now on. A queue that is longer than it may be shrinks when something is added."""
        before, self._bounds = self._bounds, bounds
        self.room_bytes = bounds.round_bytes + LARGEST_PARTIAL
        self.turns.change(bounds.round_bytes)
        for connection in self.connections:
            if connection.outbox is not None:
                connection.outbox.bound(max_bytes=bounds.queue_bytes, max_age_s=bounds.queue_age_s)
        if bounds.rates == before.rates:
            return
        self.throttle.change(bounds.rates)
        for connection in self.connections:
            self.poller.handle(connection.sock.fileno(), self.throttle.watch(connection))

    def count(self) -> Counter[str]:
        """Totals of all connections, those that are gone included."""
        total = Counter(self.totals)
        # Sums, not an update for each connection: of ten thousand that takes 4 ms instead of 40.
        for name in PORT_COUNTERS:
            total[name] += sum(map(attrgetter(name), self.connections))
        outboxes = [one.outbox for one in self.connections if one.outbox is not None]
        for name in OUTBOX_COUNTERS:
            total[name] += sum(map(attrgetter(name), outboxes))
        return total


def _queued_bytes(connection: Connection) -> int:
    return connection.outbox.queued_bytes if connection.outbox is not None else 0
