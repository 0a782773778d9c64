"""The relay's end of a link, played by a test: it does what the test says and nothing else.

Not a relay: nothing is forwarded. For what one does by itself, use the real one (`relayd.relay.server`).
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

import trio
from trio.testing import wait_all_tasks_blocked

from relayd.coordination.model import RelayAddress
from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.wire.boxes import NONCE_BYTES
from relayd.wire.frames import DATA, HEADER, HEADER_BYTES, REGISTER, encode, encode_data
from relayd.wire.identity import Admitted
from relayd.wire.identity_frames import PING, PONG, SESSION_BYTES, Welcome
from relayd.wire.relay_handshake import Admit, RelayHandshake, RelayIdentity
from tests.helpers.tls import TlsEnd

Frame = tuple[int, bytes]
"""Type and body."""


class Session:
    """One accepted connection."""

    def __init__(self, sock: trio.socket.SocketType | TlsEnd) -> None:
        self.sock = sock
        self._held = b""

    async def next_frame(self) -> Frame | None:
        """The next frame, None at the end of the stream."""
        while True:
            if len(self._held) >= HEADER_BYTES:
                length, kind = HEADER.unpack_from(self._held)
                if len(self._held) >= length + 4:
                    frame, self._held = self._held[: length + 4], self._held[length + 4 :]
                    return kind, frame[HEADER_BYTES:]
            received = await self.sock.recv(1 << 20)
            if not received:
                return None
            self._held += received

    async def expect(self, kind: int) -> bytes:
        """The body of the next frame, which must be of this type."""
        frame = await self.next_frame()
        assert frame is not None, "the stream ended"
        assert frame[0] == kind, f"a frame of type {frame[0]:#x}, not {kind:#x}"
        return frame[1]

    async def frames_so_far(self) -> list[Frame]:
        """All frames that have come by now."""
        frames: list[Frame] = []
        while self._held or select.select([self.sock.fileno()], [], [], 0)[0]:
            frame = await self.next_frame()
            if frame is None:
                break
            frames.append(frame)
        return frames

    async def send(self, data: bytes) -> None:
        """Bytes towards the agent, in one piece or so."""
        view = memoryview(data)
        while view:
            view = view[await self.sock.send(view) :]

    async def register(self, key: PublicKey) -> None:
        """Take the Register and return the first echo, as a relay does."""
        assert await self.expect(REGISTER) == key.raw
        await self.echo()

    async def admit(
        self,
        identity: PrivateKey,
        admit: Admit,
        welcome: Welcome,
        *,
        register: bytes | None = None,
        behind: bytes = b"",
        now: float = 0.0,
    ) -> Admitted:
        """The relay's part of the handshake, whole. What comes after the Proof is left for `next_frame`.

        `register` is the Register that was taken already; `behind` goes out in one piece with the Welcome.
        """
        handshake = RelayHandshake(
            RelayIdentity.of(identity),
            admit=admit,
            welcome=welcome,
            session=os.urandom(SESSION_BYTES),
            nonce=os.urandom(NONCE_BYTES),
            now=now,
        )
        if register is not None:
            await self.send(handshake.on_frame(REGISTER, register, now).send)
        while True:
            frame = await self.next_frame()
            assert frame is not None, "the stream ended"
            step = handshake.on_frame(*frame, now)
            await self.send(step.send + (behind if step.outcome is not None else b""))
            if step.outcome is not None:
                assert isinstance(step.outcome, Admitted), step.outcome
                return step.outcome

    async def pong(self) -> None:
        """Answer the next frame, which must be Ping."""
        await self.send(encode(PONG, await self.expect(PING)))

    async def echo(self) -> None:
        """Return the next frame, which must be Data."""
        await self.send(encode(DATA, await self.expect(DATA)))

    async def deliver(self, sender: PublicKey, payload: bytes) -> None:
        """One datagram from `sender`."""
        await self.send(encode_data(sender, payload))

    def reset(self) -> None:
        """Go as a crashed relay goes: RST, at once."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class TinyRelay:
    """A listener on loopback."""

    def __init__(self, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None) -> None:
        """`receive_buffer`: SO_RCVBUF of the connections, in bytes. `tls`: they speak TLS."""
        self._tls = tls
        self._listener = socket.socket()
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._sessions: list[Session] = []
        self.address = RelayAddress("127.0.0.1", self._listener.getsockname()[1])
        self.join = JoinString(self.address.host, self.address.port)
        """Without a key: a relay of part 1."""

    async def accept(self) -> Session:
        """The next connection."""
        self._listener.setblocking(False)
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._listener)
                continue
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = trio.socket.from_stdlib_socket(accepted)
            session = Session(sock if self._tls is None else TlsEnd(sock, self._tls))
            self._sessions.append(session)
            return session

    def has_waiting(self) -> bool:
        """Whether a connection waits to be accepted; it goes on waiting."""
        return bool(select.select([self._listener.fileno()], [], [], 0)[0])

    def waiting(self) -> int:
        """How many connections wait to be accepted (they are accepted, and closed)."""
        self._listener.setblocking(False)
        count = 0
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return count
            accepted.close()
            count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for session in self._sessions:
            session.sock.close()


async def dial_unmarked(
    relay: RelayAddress, *, timeout_s: float, spare: Endpoint | None = None, spare_first: bool = False
) -> socket.socket:
    """`relay_dial.dial` without the mark, which takes a capability, and to an address only."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with trio.fail_after(timeout_s):
        await trio.socket.from_stdlib_socket(sock).connect((relay.host, relay.port))
    return sock


async def until(condition: Callable[[], bool]) -> None:
    """Let all tasks run until `condition` holds; pytest's timeout ends it if it never does."""
    while not condition():
        await wait_all_tasks_blocked(0.001)


async def settle() -> None:
    """Let all tasks run until each of them waits, and the poller's last look has come up empty."""
    for _ in range(5):
        await wait_all_tasks_blocked(0.003)
