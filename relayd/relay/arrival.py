"""One connection that is not admitted yet: before it has said anything (Newcomer), and since (Arrival)."""

from __future__ import annotations

import socket

import trio

from relayd.endpoints import Endpoint
from relayd.relay.bridge import Bridge
from relayd.relay.guard import Greeter
from relayd.wire.frames import HEADER_BYTES, LENGTH_BYTES
from relayd.wire.identity import MAX_INPUT_BYTES, RelayOutcome
from relayd.wire.identity_frames import PROOF

PART_OF_HEADER_S = 0.05
"""Between two looks at a header that is there in part: its socket stays readable meanwhile."""


class Newcomer:
    """An accepted connection. As long as it says nothing it is this object and an entry in an epoll: of ten
    thousand that never will, each costs twenty microseconds and no task."""

    __slots__ = ("accepted_at", "arrival", "endpoint", "has_task", "place", "sock")

    def __init__(self, sock: socket.socket, endpoint: Endpoint, place: str, now: float) -> None:
        self.sock = sock
        self.endpoint = endpoint
        self.place = place
        self.accepted_at = now
        self.arrival: Arrival | None = None
        """Since it has said something."""
        self.has_task = False
        """Whether a task looks after it; else the poller does."""


class Arrival:
    """A connection that has said something, and is not admitted yet."""

    __slots__ = ("bridge", "endpoint", "excuse", "handshake", "ours", "scope", "served", "sock")

    def __init__(self, newcomer: Newcomer, greeter: Greeter) -> None:
        self.sock = newcomer.sock
        self.endpoint = newcomer.endpoint
        self.handshake = greeter.handshake(newcomer.endpoint, newcomer.accepted_at)
        self.scope = trio.CancelScope(deadline=newcomer.accepted_at + greeter.timeout_s)
        self.ours = True
        """Whether the socket is still the doorway's to close."""
        self.bridge: Bridge | None = None
        """TLS: around what pumps it."""
        self.served = False
        """Whether the data plane has it: then it is counted until that lets go of it."""
        self.excuse = ""
        """Why it waits, where that says more than the handshake can."""

    def read(self) -> RelayOutcome | None:
        """Read what is there, and send what the handshake says to it. -> its outcome; None: closed, or
        broken.

        Raises BlockingIOError when there is no outcome yet: nothing that was read is lost."""
        while True:
            try:
                data = self.sock.recv(min(self.handshake.wants, MAX_INPUT_BYTES))
            except BlockingIOError:
                raise
            except OSError:
                return None
            if not data:
                return None
            step = self.handshake.receive(data, trio.current_time())
            if step.send and not self._say(step.send):
                return None
            if step.outcome is not None:
                return step.outcome

    async def outcome(self) -> RelayOutcome | None:
        """As `read`, when there is one. To be cancelled at any time."""
        while True:
            try:
                return self.read()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    def first_byte(self) -> int | None:
        """What it begins with, which stays unread; None: it has ended, or is broken. To be asked when there
        is something to read."""
        try:
            first = self.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return None
        return first[0] if first else None

    async def proof(self) -> None:
        """Wait until a Proof is what comes next; for ever when it is another frame, which stays unread."""
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            try:
                head = self.sock.recv(HEADER_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                return  # as the next read finds
            if not head or head[LENGTH_BYTES:] == bytes([PROOF]):
                return
            if len(head) == HEADER_BYTES:
                await trio.sleep_forever()
            await trio.sleep(PART_OF_HEADER_S)

    def _say(self, data: bytes) -> bool:
        """Whether it went out whole: a fresh socket takes some hundred bytes, always, unless it is broken."""
        try:
            return self.sock.send(data) == len(data)
        except OSError:
            return False
