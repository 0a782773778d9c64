"""One registered connection, and all that the relay knows of it: key, proof, bytes half read, bytes unsent.

poller event -> Connection.on_event -> recv_into the arena -> wire.runs.scan -> Switch.forward
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

import msgspec

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.keys import PublicKey
from relayd.netio.outbox import Outbox
from relayd.relay.bridge import Bridge
from relayd.relay.notices import GoneNotices
from relayd.relay.switch import Port
from relayd.wire.frames import DATA, HEADER_BYTES, KEYED_BYTES, LENGTH_BYTES
from relayd.wire.identity_frames import Gone
from relayd.wire.relay_handshake import RelayHandshake
from relayd.wire.runs import KEYED, Run, scan

if TYPE_CHECKING:
    from relayd.relay.dataplane import DataPlane

ARENA_BYTES = 512 << 10
"""Room for all reads between two flushes. More would fall out of a core's second-level cache."""


TURN_RUNS = 256
"""Runs of frames switched at once: a third of a millisecond, or two where each wants an answer. What agents
send has fewer in a read of 256 KiB, unless its packets are tiny."""

FORMAT = b"relay 2"
"""Of Facts here and of State in `handover`. Another number whenever one of them is read differently: the next
process then closes what it can't read instead of guessing."""


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a connection from its admission on, and outlives a killed process."""

    key: bytes
    proved: bool
    since: float
    """Monotonic seconds, which go on from process to process until the host reboots."""


class Connection(Port):
    """One registered TCP connection. The data plane owns its socket from `DataPlane.adopt` on."""

    __slots__ = (
        "_plane",
        "_raw_key",
        "asked_at",
        "behind_bytes",
        "bridge",
        "bytes_in",
        "bytes_out",
        "endpoint",
        "gone",
        "handshake",
        "heard_at",
        "leaving",
        "outbox",
        "partial",
        "paused",
        "probe_token",
        "proved",
        "since",
        "slot",
        "sock",
        "taken_at",
        "told_ill_at",
    )

    def __init__(
        self,
        plane: DataPlane,
        sock: socket.socket,
        key: PublicKey,
        endpoint: Endpoint,
        now: float,
        *,
        handshake: RelayHandshake | None,
    ) -> None:
        """`handshake` is of one that may prove its key yet; None: it has."""
        super().__init__(key)
        self._plane = plane
        self._raw_key = key.raw
        self.sock = sock
        self.endpoint = endpoint
        """The other end, as accept() gave it."""
        self.partial = b""
        """What has been read of a frame that isn't whole yet, and while it is behind, whole ones before."""
        self.behind_bytes = 0
        """Not 0: it isn't read, and waits for a turn (`turns`) to have more of `partial` switched."""
        self.outbox: Outbox | None = None
        """Made when the socket first refuses something: most connections never need one."""
        self.since = self.heard_at = now
        self.bytes_in = self.bytes_out = 0
        self.proved = handshake is None
        """Whether it has shown that it holds its key's private half."""
        self.handshake = handshake
        self.leaving = False
        """Displaced: it has lost its key and is told nothing more, but what it sends is still forwarded."""
        self.slot = 0
        """Where it stands in the handover's ledger; 0: it doesn't, and ends with this process."""
        self.bridge: Bridge | None = None
        """TLS: what is behind its socket."""
        self.paused = False
        """Not read for a while: its key has sent more than it may."""
        self.gone: GoneNotices | None = None
        """What it was told of destinations that don't get its frames; most connections never are."""
        self.told_ill_at = 0.0
        """When it was told by Health that something is wrong; 0: it hasn't been, or is healthy again."""
        self.asked_at = 0.0
        """When it was sent a Ping that it hasn't answered, if ever."""
        self.taken_at = now
        """While something waits for it: when its socket last took a byte."""
        self.probe_token = b""
        """The token of the RelayProbe that it was sent last."""

    def absent(self, key: bytes, count: int) -> None:
        """See Port. Its agent is told, if it can be: it may have another way."""
        self.dropped_absent += count
        if self.proved:
            self._plane.tell_gone(self, key, Gone.ABSENT)

    def on_event(self, mask: int) -> None:
        """The poller's handler: read once, switch the whole frames, keep the rest of the last one.

        This is the hot path of a paced flow, one frame a call. It is written out in one function, since
        every call of another one costs a frame some 2 % more.
        """
        plane = self._plane
        if mask != select.EPOLLIN:
            if mask & select.EPOLLOUT:
                plane.drain(self)
            if self.behind_bytes:
                if not mask:
                    self._go_on()
                return
            if not mask & ~select.EPOLLOUT or self not in plane.connections:
                return
        partial = self.partial
        start = plane.fill
        if start + plane.room_bytes > ARENA_BYTES:
            plane.flush()
            start = 0
        arena, view = plane.arena, plane.view
        stop = start
        if partial:
            stop += len(partial)
            arena[start:stop] = partial
        try:
            count = self.sock.recv_into(view[stop : stop + plane.round_bytes])
        except BlockingIOError:
            return
        except OSError as error:
            plane.close(self, f"read: {error.strerror}")
            return
        if not count:
            plane.close(self, "closed by the agent")
            return
        self.heard_at = plane.poller.now
        self.bytes_in += count
        if not partial and count >= KEYED_BYTES:
            # One whole Data frame is what a read gives as a rule, when nothing is in a hurry.
            length, kind, key = KEYED.unpack_from(arena, start)
            if length + LENGTH_BYTES == count and kind == DATA:
                stop += count
                arena[start + HEADER_BYTES : start + KEYED_BYTES] = self._raw_key
                plane.fill = stop
                plane.switch.forward_one(self, key, view[start:stop])
                return
        self._switch(start, stop + count)

    def _go_on(self) -> None:
        """It is its turn: switch more of what has been read."""
        plane = self._plane
        start, count = plane.fill, len(self.partial)
        if start + count > ARENA_BYTES:
            plane.flush()
            start = 0
        plane.arena[start : start + count] = self.partial
        self._switch(start, start + count)

    def _switch(self, start: int, stop: int) -> None:
        """Forward the whole frames of `arena[start:stop]`, in which its partial one stands first."""
        plane = self._plane
        view, partial = plane.view, self.partial
        runs: list[Run] = []
        try:
            rest = scan(plane.arena, start, stop, self._raw_key, runs, TURN_RUNS)
        except RemoteProtocolError as error:
            plane.switch.forward(self, view, runs, self.on_control)
            plane.fill = stop
            plane.close(self, f"protocol error: {error}", say=f"protocol error: {error}")
            return
        if rest != stop:
            self.partial = bytes(view[rest:stop])
            plane.handover.ledger.received[self.slot] = 1
        elif partial:
            self.partial = b""
            plane.handover.ledger.received[self.slot] = 0
        if runs:
            plane.fill = stop
            plane.switch.forward(self, view, runs, self.on_control)
        if len(runs) == TURN_RUNS and rest != stop:
            plane.turns.behind(self)
        elif self.behind_bytes:
            plane.turns.caught_up(self)

    @property
    def facts(self) -> bytes:
        """Its Facts, for the handover's ledger; always of one length."""
        return msgspec.msgpack.encode(Facts(key=self._raw_key, proved=self.proved, since=self.since))

    def on_control(self, kind: int, frame: memoryview) -> None:
        """A frame without a key: the relay's own business."""
        self._plane.on_control(self, kind, frame[HEADER_BYTES:])
