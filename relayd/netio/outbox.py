"""What a connection could not take yet: a bounded queue of whole frames that drops its oldest.

WireGuard's inner flows recover sooner from a lost old packet than from a late one, so a full queue
drops from the front, and what waited too long goes too. Pure: it takes bytes and `now`, and whoever
owns the socket sends.

    pieces, oldest first:   [rest of a frame half on the wire] [run] [run] ...

A run is a stretch of whole frames of one size (see `relayd.wire.runs`), so that dropping single frames
needs no parsing and a burst of a hundred frames costs one append.

A fair outbox has a queue for each sender. They take turns by bytes (start-time fair queueing, Goyal et al.
1996), and a full outbox drops from one that holds more than its share: who sends more than the others neither
delays nor pushes out what they have sent.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

from relayd.netio.delays import Delays
from relayd.wire.frames import (
    BIMODAL_HINT,
    DATA,
    HEADER,
    HEADER_BYTES,
    KEYED_BYTES,
    LENGTH_BYTES,
    MAX_LENGTH,
)

MAX_BYTES = 1 << 20
"""Default bound: 8 ms of a 1 Gbit/s link, 80 ms of a 100 Mbit/s one."""

MAX_AGE_S = 0.5
"""Default age at which a frame is stale: TCP inside the tunnel has sent it again by then."""

SEND_BYTES = 256 << 10
"""As much as one `chunks()` offers: more than a socket takes at once with TCP_NOTSENT_LOWAT set."""

SEND_PIECES = 512
"""Pieces in one `chunks()`: half of IOV_MAX (1024)."""


TURN_BYTES = 16 << 10
"""What one sender sends before it is the next one's turn: some ten frames. Less would cost more pieces; more,
the others more delay (20 senders: 26 ms of a 100 Mbit/s link)."""

RUN_BYTES = 120
"""What a run takes up beside its frames: its object, the header of its bytes, its place in the queue."""

OWN = b""
"""The sender of frames that are nobody's data: the relay's own."""


class _Run:
    """`data[head:]` are whole frames of `size` bytes, queued at `since`."""

    __slots__ = ("data", "head", "since", "size")

    def __init__(self, data: bytes, size: int, since: float) -> None:
        self.data, self.size, self.since = data, size, since
        self.head = 0


class _Flow:
    """What waits of one sender."""

    __slots__ = ("bytes", "runs", "sender", "served")

    def __init__(self, sender: bytes, served: float) -> None:
        self.sender = sender
        self.runs: deque[_Run] = deque()
        self.bytes = 0
        self.served = served
        """Bytes sent, counted from where the others were when it began: who has least is next."""

    def stretches(self) -> Iterator[bytes | memoryview]:
        """Its frames, in pieces for one turn each or less."""
        for run in self.runs:
            step = max(1, TURN_BYTES // run.size) * run.size
            for start in range(run.head, len(run.data), step):
                yield memoryview(run.data)[start : start + step]


class Outbox:
    """The frames that wait for one connection. Not for use by two tasks."""

    __slots__ = (
        "_delays",
        "_fair",
        "_flows",
        "_largest",
        "_max_age_s",
        "_max_bytes",
        "_now",
        "_plan",
        "_rest",
        "_run_count",
        "_served",
        "dropped_full",
        "dropped_memory",
        "dropped_old",
        "losers",
        "queued_bytes",
    )

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        max_age_s: float = MAX_AGE_S,
        delays: Delays | None = None,
        fair: bool = False,
    ) -> None:
        """`delays` is told how long frames waited. `fair`: each run is one sender's, whose key it has; else
        all are one. Raises ValueError when `max_bytes` could not hold the largest frame."""
        self.bound(max_bytes=max_bytes, max_age_s=max_age_s)
        self._delays = Delays() if delays is None else delays
        self._fair = fair
        self._now = 0.0
        """Of the last `chunks`."""
        self._rest = b""
        self._run_count = 0
        self._flows: dict[bytes, _Flow] = {}
        """Those that have something waiting, by sender."""
        self._largest: _Flow | None = None
        """One that held most when that was last looked at."""
        self._served = 0.0
        """Where the flow that was served last was: a new one begins there."""
        self._plan: list[tuple[_Flow, int]] = []
        """What the last `chunks` offered, in order: whose, how many bytes."""
        self.queued_bytes = 0
        self.dropped_full = 0
        """Frames dropped because the queue was full."""
        self.dropped_old = 0
        """Frames dropped because they had waited too long."""
        self.dropped_memory = 0
        """Frames dropped because all outboxes together held too much."""
        self.losers: set[bytes] = set()
        """Fair: senders whose frames were dropped, since somebody took them out of here."""

    def bound(self, *, max_bytes: int, max_age_s: float) -> None:
        """Hold so much, for so long, from the next run on. Raises ValueError as the constructor does."""
        if max_bytes < MAX_LENGTH + LENGTH_BYTES:
            raise ValueError(f"{max_bytes} bytes cannot hold one frame of {MAX_LENGTH + LENGTH_BYTES}")
        self._max_bytes, self._max_age_s = max_bytes, max_age_s

    @property
    def memory_bytes(self) -> int:
        """What it takes up: of small frames, more than their bytes."""
        return self.queued_bytes + self._run_count * RUN_BYTES

    def __bool__(self) -> bool:
        return self.queued_bytes > 0

    @property
    def queued_frames(self) -> int:
        """Whole frames that wait (the rest of one that is half on the wire isn't counted)."""
        return sum(
            (len(run.data) - run.head) // run.size for flow in self._flows.values() for run in flow.runs
        )

    def put(self, run: bytes | memoryview, now: float) -> None:
        """Queue a copy of `run`: whole frames of one size. Drops the oldest frames when that is too much."""
        data = bytes(run)
        length, kind = HEADER.unpack_from(data)
        sender = OWN
        if self._fair and kind in (DATA, BIMODAL_HINT):
            sender = data[HEADER_BYTES:KEYED_BYTES]
        flow = self._flows.get(sender)
        if flow is None:
            flow = self._flows[sender] = _Flow(sender, self._served)
        flow.runs.append(_Run(data, length + LENGTH_BYTES, now))
        flow.bytes += len(data)
        self._run_count += 1
        self.queued_bytes += len(data)
        while (excess := self.queued_bytes - self._max_bytes) > 0 and self._flows:
            self.dropped_full += self._drop(self._payer(flow), excess)

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
        self._plan.clear()
        if len(self._flows) > 1:
            self._take_turns(pieces)
            return pieces
        total = len(self._rest)
        for flow in self._flows.values():
            for run in flow.runs:
                if total >= SEND_BYTES or len(pieces) == SEND_PIECES:
                    break
                piece = memoryview(run.data)[run.head :] if run.head else run.data
                pieces.append(piece)
                total += len(piece)
            self._plan.append((flow, total - len(self._rest)))
        return pieces

    def _take_turns(self, pieces: list[bytes | memoryview]) -> None:
        """Fill `pieces` from several flows: next is always the one that has been served least."""
        turns = [
            (flow.served, number, flow, flow.stretches()) for number, flow in enumerate(self._flows.values())
        ]
        heapq.heapify(turns)
        total = len(self._rest)
        while turns and total < SEND_BYTES and len(pieces) < SEND_PIECES:
            served, number, flow, stretches = turns[0]
            piece = next(stretches, None)
            if piece is None:
                heapq.heappop(turns)
                continue
            pieces.append(piece)
            self._plan.append((flow, len(piece)))
            total += len(piece)
            heapq.heapreplace(turns, (served + len(piece), number, flow, stretches))

    def sent(self, count: int) -> None:
        """The socket took `count` bytes of what `chunks` gave."""
        self.queued_bytes -= count
        if self._rest:
            taken = min(count, len(self._rest))
            self._rest = self._rest[taken:]
            count -= taken
        for flow, offered in self._plan:
            if not count:
                break
            taken = min(count, offered)
            self._served = max(self._served, flow.served)
            flow.served += taken
            self._advance(flow, taken)
            count -= taken
        self._plan.clear()

    def _advance(self, flow: _Flow, count: int) -> None:
        """`count` bytes of it are on the wire; what is left of the last frame comes before all others."""
        runs = flow.runs
        flow.bytes -= count
        while count:
            run = runs[0]
            left = len(run.data) - run.head
            if count >= left:
                runs.popleft()
                self._run_count -= 1
                self._delays.add(self._now - run.since, left // run.size)
                count -= left
                continue
            end = run.head + count
            frames = -(-count // run.size)
            self._delays.add(self._now - run.since, frames)
            run.head += frames * run.size
            self._rest = run.data[end : run.head]
            flow.bytes -= len(self._rest)
            if run.head == len(run.data):
                runs.popleft()
                self._run_count -= 1
            break
        if not runs:
            del self._flows[flow.sender]

    def take(self) -> list[bytes]:
        """Give up all whole frames, as runs, those of one sender oldest first. The rest of a frame that is
        half on the wire stays."""
        runs = [run.data[run.head :] for flow in self._flows.values() for run in flow.runs]
        self._forget()
        self.queued_bytes = len(self._rest)
        return runs

    @property
    def in_mid_frame(self) -> bool:
        """Whether a frame is half on the wire."""
        return bool(self._rest)

    def snapshot(self) -> tuple[bytes, list[tuple[float, bytes]]]:
        """What waits, for `restore`: the rest of a frame that is half on the wire; runs and their times."""
        return self._rest, [
            (run.since, run.data[run.head :]) for flow in self._flows.values() for run in flow.runs
        ]

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
        self._forget()
        self.queued_bytes = 0
        return lost

    def _forget(self) -> None:
        self._flows.clear()
        self._plan.clear()
        self._run_count = 0
        self._largest = None

    def expire(self, now: float) -> None:
        """Drop what has waited too long. `chunks` does so itself; a reader that never reads needs this."""
        oldest = now - self._max_age_s
        for flow in [one for one in self._flows.values() if one.runs[0].since < oldest]:
            if self._fair and flow.sender == OWN:
                continue  # what the relay itself has to say is few, and still true
            excess = 0
            for run in flow.runs:
                if run.since >= oldest:
                    break
                excess += len(run.data) - run.head
            self.dropped_old += self._drop(flow, excess)

    def shed(self, excess: int) -> None:
        """Drop the oldest frames of those who hold most, `excess` bytes or somewhat more."""
        goal = self.queued_bytes - excess
        while self.queued_bytes > goal and self._flows:
            flow = self._payer(None)
            self.dropped_memory += self._drop(flow, self.queued_bytes - goal)

    def _payer(self, putter: _Flow | None) -> _Flow:
        """Whose frames go: one that holds at least what each would with equal shares. `putter`, who has just
        put some, if it does: then nobody else has to be looked for."""
        share = (self.queued_bytes - len(self._rest)) / len(self._flows)
        if putter is not None and putter.runs and putter.bytes >= share:
            return putter
        if self._largest is None or not self._largest.runs or self._largest.bytes < share:
            self._largest = max(self._flows.values(), key=lambda flow: flow.bytes)
        return self._largest

    def _drop(self, flow: _Flow, excess: int) -> int:
        """Drop its oldest frames, `excess` bytes or somewhat more, as far as there are any. -> how many"""
        dropped = 0
        runs = flow.runs
        while excess > 0 and runs:
            run = runs[0]
            frames = min(-(-excess // run.size), (len(run.data) - run.head) // run.size)
            gone = frames * run.size
            run.head += gone
            flow.bytes -= gone
            self.queued_bytes -= gone
            excess -= gone
            dropped += frames
            if run.head == len(run.data):
                runs.popleft()
                self._run_count -= 1
        if not runs:
            del self._flows[flow.sender]
        if self._fair and flow.sender != OWN:
            self.losers.add(flow.sender)
        return dropped
