"""One TCP connection to a relay, from Register to its first fault, driven by the poller's events.

    poller event -> recv_into the shared buffer -> wire.runs.scan -> on_runs (Data, once `carries`)
                                                                  -> on_message (Data that is no WireGuard's)
                                                                  -> on_control (the rest)
    send -> one sendmsg -> what the socket didn't take: the outbox, and EPOLLOUT

Nothing here waits: a relay that doesn't read fills the outbox, which drops its oldest frames.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence

import trio

from relayd.agent.handover import AgentHandover, Facts, Resumed
from relayd.errors import RemoteProtocolError
from relayd.netio.outbox import Outbox
from relayd.netio.poller import Poller
from relayd.netio.tcp import IOV_MAX
from relayd.netio.tls_socket import TlsSocket
from relayd.wire.frames import DATA, KEYED_BYTES
from relayd.wire.runs import Run, scan

BUFFER_BYTES = 256 << 10
"""One read's worth, shared by all connections of a process: it is used up before the handler returns."""

HANDED_OVER = "handed over to the next process"

WRITABLE = select.EPOLLIN | select.EPOLLOUT

OnRuns = Callable[[bytearray, list[Run], float], None]
"""`on_runs(buffer, runs, now)`: Data frames of others, payloads in place, valid during the call; `now` is the
poller's clock."""

OnControl = Callable[[bytearray, Run], None]
"""`on_control(buffer, run)`: all else: other types, Data too short for a key, Data from our own key, and all
Data before the connection carries any."""

OnMessage = Callable[[bytes, bytes, float], None]
"""`on_message(key, payload, now)`: the payload of a Data frame that begins like a sealed message between two
agents (PROTOCOL.md, part 3), and the key that the relay names as its sender. Nothing of it is verified."""

MESSAGE_BYTE = 0x52
"""First byte of a sealed message. WireGuard's begin with 1 to 4, so that the rest of the magic is for whoever
takes the message to look at."""


class RelayConnection:
    """A connected socket and what waits for it. The first fault ends it, whoever sees it first."""

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket | TlsSocket,
        *,
        own_key: bytes,
        hello: bytes,
        outbox: Outbox,
        buffer: bytearray,
        on_runs: OnRuns,
        on_message: OnMessage,
        on_control: OnControl,
        on_ended: Callable[[], None],
        handover: AgentHandover,
        resumed: Resumed | None = None,
    ) -> None:
        """Send `hello` (whole frames, Register first), and listen.

        `sock` is connected and non-blocking, and belongs to the connection now, as `outbox` does, which is
        empty. `buffer` has BUFFER_BYTES. `on_ended` is called once; `hello` may end it already. `resumed`: an
        earlier process has had the connection, and `hello` is empty.
        """
        self._poller, self._sock, self.own_key = poller, sock, own_key
        self._tls = sock if isinstance(sock, TlsSocket) else None
        self.outbox = outbox
        self._buffer, self._view = buffer, memoryview(buffer)
        self._on_runs, self._on_message, self._on_control = on_runs, on_message, on_control
        self._on_ended = on_ended
        self._partial = b""
        self.carries = False
        """Whether Data of others is handed on. Until then it goes to `on_control`."""
        self.bytes_in = self.bytes_out = 0
        self.bytes_drained = 0
        """Of those out, what the full socket took after a wait: it takes a living relay to make room."""
        self.lost_frames = 0
        """Frames that this connection took and that its end lost."""
        self.fault = ""
        """Why it ended; empty: it hasn't. Nothing may be sent after that."""
        self.ended = trio.Event()
        self._handover = handover
        self._ledger = handover.store.ledger
        self._sent = self._ledger.sent
        self._slot = 0
        """Where it stands in the handover's ledger; 0: it doesn't, and ends with this process."""
        poller.add(sock.fileno(), self._on_event)
        if resumed is not None:
            self._resume(resumed)
        else:
            self._say_hello(hello)

    def keep(self, facts: Facts) -> None:
        """It may outlive this process from now on; `facts` are what the next one has to know."""
        self._handover.store.forget(self._slot)
        self._slot = 0
        if isinstance(self._sock, TlsSocket):  # its keys end with this process
            return
        if self.outbox.in_mid_frame:  # it has hardly begun, and is as good as a new one
            return
        self._slot = self._handover.admit(self._sock, facts, bytes_out=self.bytes_out)
        self._ledger.received[self._slot] = bool(self._partial)

    def suspend(self) -> None:
        """Stand still, for the next process to go on: nothing is read or written from here on. One that isn't
        kept ends."""
        if not self._slot or self.ended.is_set():
            return
        self._handover.suspended(self._slot, partial=self._partial, outbox=self.outbox)
        self._slot = 0
        self.outbox.clear()
        self.end(HANDED_OVER)

    def send(self, runs: Sequence[bytes | memoryview], total: int) -> None:
        """Send `runs` (each whole frames of one size), `total` bytes together, or queue what doesn't go.

        The buffers are used during the call only. Never blocks, never raises for the network's sake.
        """
        outbox = self.outbox
        if outbox or len(runs) > IOV_MAX:
            self._queue(runs)
            return
        try:
            sent = self._sock.sendmsg(runs)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(f"write: {error.strerror or error}", runs)
            return
        self.bytes_out = written = self.bytes_out + sent
        if sent < total:
            outbox.keep(runs, sent, self._poller.now)
            self._poller.modify(self._sock.fileno(), WRITABLE)
        elif self._tls is not None and self._tls.unsent:
            self._poller.modify(self._sock.fileno(), WRITABLE)
        if not outbox.in_mid_frame:
            self._sent[self._slot] = written

    def end(self, fault: str) -> None:
        """Close the socket and say why. The first call counts, later ones change nothing."""
        if self.ended.is_set():
            return
        self.fault = fault
        self.lost_frames += self.outbox.clear()
        self._poller.remove(self._sock.fileno())
        self._sock.close()
        self._handover.store.forget(self._slot)
        self._slot = 0
        self.ended.set()
        self._on_ended()

    def _on_event(self, mask: int) -> None:
        if mask & select.EPOLLOUT and not self.ended.is_set():
            self._drain()
        if mask & ~select.EPOLLOUT and not self.ended.is_set():
            self._read()
        while self._tls is not None and not self.ended.is_set() and self._tls.pending:
            self._read()

    def _read(self) -> None:
        """Read once; hand on the whole frames, keep the rest of the last one."""
        buffer, view = self._buffer, self._view
        held = len(self._partial)
        if held:
            buffer[:held] = self._partial
        try:
            count = self._sock.recv_into(view[held:])
        except BlockingIOError:
            return
        except OSError as error:
            self.end(f"read: {error.strerror or error}")
            return
        if not count:
            self.end("closed by the relay")
            return
        self.bytes_in += count
        stop = held + count
        runs: list[Run] = []
        broken = ""
        try:
            rest = scan(buffer, 0, stop, None, runs)
        except RemoteProtocolError as error:
            rest, broken = stop, str(error)
        # Before anything is handed on: who gets a run may end this connection.
        self._partial = bytes(view[rest:stop])
        if held or rest != stop:
            self._ledger.received[self._slot] = rest != stop
        self._hand_on(runs)
        if broken:
            self.end(f"protocol error: {broken}")

    def _hand_on(self, runs: list[Run]) -> None:
        own_key = self.own_key
        if not self.carries:
            self._hand_on_in_turn(runs)
            return
        data = [run for run in runs if run[0] == DATA and run[1] and run[1] != own_key]
        others = len(data) < len(runs)
        if data and self._has_message(data):
            data = self._divert_messages(data)
        if data:
            self._on_runs(self._buffer, data, self._poller.now)
        if others:
            for run in runs:
                if run[0] != DATA or not run[1] or run[1] == own_key:
                    self._on_control(self._buffer, run)

    def _hand_on_in_turn(self, runs: list[Run]) -> None:
        """Until it is settled who the relay is: what comes behind its proof is believed, before it isn't."""
        for index, run in enumerate(runs):
            if self.ended.is_set():
                return
            if self.carries:
                self._hand_on(runs[index:])
                return
            self._on_control(self._buffer, run)

    def _has_message(self, data: list[Run]) -> bool:
        """Whether a payload among `data` begins like a sealed message. The first bytes of a run's payloads
        are one strided slice, so that a run costs some 100 ns, and a frame in it five."""
        buffer = self._buffer
        for _, _, start, stop, size in data:
            if start + size == stop:
                if size > KEYED_BYTES and buffer[start + KEYED_BYTES] == MESSAGE_BYTE:
                    return True
            elif MESSAGE_BYTE in buffer[start + KEYED_BYTES : stop : size]:
                return True
        return False

    def _divert_messages(self, data: list[Run]) -> list[Run]:
        """Hand the messages to their taker; -> the runs that are left, in the same order."""
        buffer, now = self._buffer, self._poller.now
        left: list[Run] = []
        for kind, key, first, stop, size in data:
            begin = first
            for start in range(first, stop, size):
                if size > KEYED_BYTES and buffer[start + KEYED_BYTES] == MESSAGE_BYTE:
                    if begin < start:
                        left.append((kind, key, begin, start, size))
                    begin = start + size
                    self._on_message(key, bytes(buffer[start + KEYED_BYTES : begin]), now)
            if begin < stop:
                left.append((kind, key, begin, stop, size))
        return left

    def _resume(self, resumed: Resumed) -> None:
        self._slot = resumed.slot
        self.bytes_out = resumed.bytes_out
        self._partial = resumed.partial
        if resumed.rest or resumed.queued:
            self.outbox.restore(resumed.rest, resumed.queued)
            self._poller.modify(self._sock.fileno(), WRITABLE)

    def _say_hello(self, hello: bytes) -> None:
        try:
            sent = self._sock.send(hello)
        except OSError as error:
            self.end(f"write: {error.strerror or error}")
            return
        self.bytes_out += sent
        if sent < len(hello):
            # A fresh socket takes some hundred bytes, always; if not, half a Register can't be mended.
            self.end(f"write: {sent} of the first {len(hello)} bytes")
        elif self._tls is not None and (self._tls.unsent or self._tls.pending):
            self._poller.modify(self._sock.fileno(), WRITABLE)  # an event, to go on with what TLS holds

    def _drain(self) -> None:
        """The socket takes bytes again: send what waits, as long as it isn't too old."""
        outbox = self.outbox
        pieces = outbox.chunks(time.monotonic())
        if pieces:
            try:
                sent = self._sock.sendmsg(pieces)
            except BlockingIOError:
                return
            except OSError as error:
                self.end(f"write: {error.strerror or error}")
                return
            self.bytes_out += sent
            self.bytes_drained += sent
            outbox.sent(sent)
            if not outbox.in_mid_frame:
                self._sent[self._slot] = self.bytes_out
        elif self._tls is not None:
            try:
                self._tls.flush()
            except OSError as error:
                self.end(f"write: {error.strerror or error}")
                return
        if not outbox and not (self._tls is not None and self._tls.unsent):
            self._poller.modify(self._sock.fileno(), select.EPOLLIN)

    def _queue(self, runs: Sequence[bytes | memoryview]) -> None:
        now = self._poller.now
        idle = not self.outbox
        for run in runs:
            self.outbox.put(run, now)
        if idle:
            self._poller.modify(self._sock.fileno(), WRITABLE)

    def _lose(self, fault: str, runs: Sequence[bytes | memoryview]) -> None:
        """A write failed: what it was to send is lost with the rest, and counted."""
        now = self._poller.now
        for run in runs:
            self.outbox.put(run, now)
        self.end(fault)
