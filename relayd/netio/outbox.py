"""What a connection could not take yet: a bounded queue of whole frames that drops its oldest.

WireGuard's inner flows recover sooner from a lost old packet than from a late one, so a full queue
drops from the front, and what waited too long goes too. Pure: it takes bytes and `now`, and whoever
owns the socket sends.

    pieces, oldest first:   [rest of a frame half on the wire] [run] [run] ...

A run is a stretch of whole frames of one size (see `relayd.wire.runs`), so that dropping single frames
needs no parsing and a burst of a hundred frames costs one append.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from relayd.netio.delays import Delays
from relayd.wire.frames import LENGTH_BYTES, MAX_LENGTH

MAX_BYTES = 1 << 20
"""Default bound: 8 ms of a 1 Gbit/s link, 80 ms of a 100 Mbit/s one."""

MAX_AGE_S = 0.5
"""Default age at which a frame is stale: TCP inside the tunnel has sent it again by then."""

SEND_BYTES = 256 << 10
"""As much as one `chunks()` offers: more than a socket takes at once with TCP_NOTSENT_LOWAT set."""

SEND_PIECES = 512
"""Pieces in one `chunks()`: half of IOV_MAX (1024)."""


class _Run:
    """`data[head:]` are whole frames of `size` bytes, queued at `since`."""

    __slots__ = ("data", "head", "since", "size")

    def __init__(self, data: bytes, size: int, since: float) -> None:
        self.data, self.size, self.since = data, size, since
        self.head = 0


class Outbox:
    """The frames that wait for one connection. Not for use by two tasks."""

    __slots__ = (
        "_delays",
        "_max_age_s",
        "_max_bytes",
        "_now",
        "_rest",
        "_runs",
        "dropped_full",
        "dropped_old",
        "queued_bytes",
    )

    def __init__(
        self, *, max_bytes: int = MAX_BYTES, max_age_s: float = MAX_AGE_S, delays: Delays | None = None
    ) -> None:
        """`delays` is told how long frames waited. Raises ValueError when `max_bytes` could not hold the
        largest frame."""
        if max_bytes < MAX_LENGTH + LENGTH_BYTES:
            raise ValueError(f"{max_bytes} bytes cannot hold one frame of {MAX_LENGTH + LENGTH_BYTES}")
        self._max_bytes, self._max_age_s = max_bytes, max_age_s
        self._delays = Delays() if delays is None else delays
        self._now = 0.0
        """Of the last `chunks`."""
        self._rest = b""
        self._runs: deque[_Run] = deque()
        self.queued_bytes = 0
        self.dropped_full = 0
        """Frames dropped because the queue was full."""
        self.dropped_old = 0
        """Frames dropped because they had waited too long."""

    def __bool__(self) -> bool:
        return self.queued_bytes > 0

    @property
    def queued_frames(self) -> int:
        """Whole frames that wait (the rest of one that is half on the wire isn't counted)."""
        return sum((len(run.data) - run.head) // run.size for run in self._runs)

    def put(self, run: bytes | memoryview, now: float) -> None:
        """Queue a copy of `run`: whole frames of one size. Drops the oldest frames when that is too much."""
        data = bytes(run)
        self._runs.append(_Run(data, int.from_bytes(data[:LENGTH_BYTES], "big") + LENGTH_BYTES, now))
        self.queued_bytes += len(data)
        if self.queued_bytes > self._max_bytes:
            self._shrink()

    def keep(self, runs: Sequence[bytes | memoryview], sent: int, now: float) -> None:
        """Queue what a `sendmsg(runs)` that took `sent` bytes (0 or more) has left over.

        A frame that is half on the wire is kept whole: its rest goes out before anything else. To be
        called with nothing queued (else the order of bytes would break): raises ValueError.
        """
        if self.queued_bytes:
            raise ValueError("frames are queued already, and they come first")
        for run in runs:
            if sent >= len(run):
                sent -= len(run)
                continue
            if sent:
                size = int.from_bytes(run[:LENGTH_BYTES], "big") + LENGTH_BYTES
                frame_end = -(-sent // size) * size
                self._rest = bytes(run[sent:frame_end])
                self.queued_bytes += len(self._rest)
                run = run[frame_end:]
                sent = 0
                if not run:
                    continue
            self.put(run, now)

    def chunks(self, now: float) -> list[bytes | memoryview]:
        """What to send next, oldest first, after dropping what is too old. Then call `sent`."""
        self.expire(now)
        self._now = now
        pieces: list[bytes | memoryview] = [self._rest] if self._rest else []
        total = len(self._rest)
        for run in self._runs:
            if total >= SEND_BYTES or len(pieces) == SEND_PIECES:
                break
            piece = memoryview(run.data)[run.head :] if run.head else run.data
            pieces.append(piece)
            total += len(piece)
        return pieces

    def sent(self, count: int) -> None:
        """The socket took `count` bytes of what `chunks` gave."""
        self.queued_bytes -= count
        if self._rest:
            taken = min(count, len(self._rest))
            self._rest = self._rest[taken:]
            count -= taken
        while count:
            run = self._runs[0]
            left = len(run.data) - run.head
            if count >= left:
                self._runs.popleft()
                self._delays.add(self._now - run.since, left // run.size)
                count -= left
                continue
            end = run.head + count
            frames = -(-count // run.size)
            self._delays.add(self._now - run.since, frames)
            run.head += frames * run.size
            self._rest = run.data[end : run.head]
            if run.head == len(run.data):
                self._runs.popleft()
            return

    def take(self) -> list[bytes]:
        """Give up all whole frames, as runs, oldest first. The rest of one that is half on the wire stays."""
        runs = [run.data[run.head :] for run in self._runs]
        self._runs.clear()
        self.queued_bytes = len(self._rest)
        return runs

    @property
    def in_mid_frame(self) -> bool:
        """Whether a frame is half on the wire."""
        return bool(self._rest)

    def snapshot(self) -> tuple[bytes, list[tuple[float, bytes]]]:
        """What waits, for `restore`: the rest of a frame that is half on the wire; runs and their times."""
        return self._rest, [(run.since, run.data[run.head :]) for run in self._runs]

    def restore(self, rest: bytes, runs: Sequence[tuple[float, bytes]]) -> None:
        """Hold what another outbox held, in its order. To be called with nothing queued."""
        self._rest = rest
        self.queued_bytes = len(rest)
        for since, data in runs:
            self.put(data, since)

    def clear(self) -> int:
        """Forget everything; return how many whole frames that lost."""
        lost = self.queued_frames
        self._rest = b""
        self._runs.clear()
        self.queued_bytes = 0
        return lost

    def expire(self, now: float) -> None:
        """Drop what has waited too long. `chunks` does so itself; a reader that never reads needs this."""
        runs = self._runs
        oldest = now - self._max_age_s
        while runs and runs[0].since < oldest:
            run = runs.popleft()
            left = len(run.data) - run.head
            self.queued_bytes -= left
            self.dropped_old += left // run.size

    def _shrink(self) -> None:
        runs = self._runs
        while (excess := self.queued_bytes - self._max_bytes) > 0 and runs:
            run = runs[0]
            frames = min(-(-excess // run.size), (len(run.data) - run.head) // run.size)
            run.head += frames * run.size
            self.queued_bytes -= frames * run.size
            self.dropped_full += frames
            if run.head == len(run.data):
                runs.popleft()
