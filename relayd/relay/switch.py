"""Who is reachable under which key, and where each run of frames goes. Pure: no sockets, no clock.

    scan (wire.runs) -> Switch.forward -> Port.pending -> (data plane) one send per destination

`forward` runs once per wake-up and connection; its loop body runs once per run of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from relayd.keys import PublicKey
from relayd.wire.runs import Run


class Port:
    """One registered connection, as the switch sees it."""

    __slots__ = (
        "dropped_absent",
        "dropped_short",
        "frames_in",
        "frames_out",
        "key",
        "pending",
        "unknown_frames",
    )

    def __init__(self, key: PublicKey) -> None:
        self.key = key
        self.pending: list[memoryview] = []
        """Runs for this connection, gathered in this batch; they point into the shared buffer."""
        self.frames_in = 0
        self.frames_out = 0
        """Frames handed to this connection, those that its outbox dropped later included."""
        self.dropped_absent = 0
        """Frames that it sent to keys that aren't connected here."""
        self.dropped_short = 0
        """Data and BimodalHint frames that it sent without a whole key."""
        self.unknown_frames = 0
        """Frames of types that the relay doesn't know, and skips."""

    def absent(self, _key: bytes, count: int) -> None:
        """It has sent `count` frames to a key that isn't connected here."""
        self.dropped_absent += count


P = TypeVar("P", bound=Port)


class Switch(Generic[P]):
    """The table of keys, and the runs gathered for each destination in this batch."""

    def __init__(self) -> None:
        self._ports: dict[bytes, P] = {}
        self.touched: list[P] = []
        """Ports that have something pending, in the order in which they got it."""

    def __len__(self) -> int:
        return len(self._ports)

    def holder(self, key: PublicKey) -> P | None:
        """The connection that is registered under `key`, if any."""
        return self._ports.get(key.raw)

    def find(self, key: bytes) -> P | None:
        """The same by the key's bytes."""
        return self._ports.get(key)

    def replace(self, port: P) -> P | None:
        """Register `port` under its key whoever holds it. -> the one that held it, if any."""
        holder = self._ports.get(port.key.raw)
        self._ports[port.key.raw] = port
        return holder if holder is not port else None

    def leave(self, port: P) -> None:
        """Take `port` out. Only the holder of a key gives it up: a displaced one changes nothing."""
        if self._ports.get(port.key.raw) is port:
            del self._ports[port.key.raw]

    def forward_one(self, source: P, key: bytes, frame: memoryview) -> None:
        """`forward` for a read that was one whole Data frame for `key`, its key replaced already.

        A paced flow is nothing but such reads, and without a list of runs a frame costs 0.6 us less.
        """
        port = self._ports.get(key)
        source.frames_in += 1
        if port is None:
            source.absent(key, 1)
            return
        if not port.pending:
            self.touched.append(port)
        port.pending.append(frame)
        port.frames_out += 1

    def forward(
        self,
        source: P,
        view: memoryview,
        runs: list[Run],
        control: Callable[[int, memoryview], None],
    ) -> None:
        """Hand each run to its destination's `pending`, and each frame without a key to `control`.

        `control(kind, frame)` gets the whole frame, header included, valid during the call.
        """
        find = self._ports.get
        frames = 0
        for kind, key, start, stop, size in runs:
            count = (stop - start) // size
            frames += count
            if not key:
                control(kind, view[start:stop])
                continue
            port = find(key)
            if port is None:
                source.absent(key, count)
                continue
            if not port.pending:
                self.touched.append(port)
            port.pending.append(view[start:stop])
            port.frames_out += count
        source.frames_in += frames
