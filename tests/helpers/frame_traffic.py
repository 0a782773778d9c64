"""Agents that send each other numbered frames through a relay, and notice everything that goes wrong.

A thread with one epoll, on the bare wire: no backoff, no queue, nothing that would hide a gap. Frame n+1
after frame n and nothing in between, or it is counted: lost, garbled, closed.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from relayd.keys import PrivateKey
from relayd.wire.frames import DATA, HEADER_BYTES, KEYED_BYTES, LENGTH_BYTES, MAX_LENGTH, encode_data
from relayd.wire.identity import Welcomed
from relayd.wire.identity_frames import PING, decode_ping_untrusted, encode_pong
from tests.helpers.identities import agent_side, private

NUMBER = struct.Struct(">Q")
SOON_S = 30.0
"""For one step of a handshake, or of a start: an emulated machine is slow."""


@dataclass
class Seen:
    """What one run has shown."""

    sent: int = 0
    received: int = 0
    lost: int = 0
    """Frames that a later one has overtaken on its own connection: they never come."""
    garbled: int = 0
    """Streams that were no frames of ours any more: out of step."""
    closed: int = 0
    """Connections that the relay ended."""
    longest_gap_s: float = 0.0
    """Between two frames at one receiver."""
    back_s: list[float] = field(default_factory=list)
    """From the end of a connection to the Welcome of the next one."""


class Agent:
    """One agent: a connection, a partner, the numbers."""

    def __init__(self, index: int, key: PrivateKey) -> None:
        self.index, self.key = index, key
        self.public = key.public()
        self.sock: socket.socket | None = None
        self.partner: Agent = self
        self.next_number = 0
        self.expected = 0
        self.held = bytearray()
        self.unsent = b""
        self.second_half = b""
        self.heard_at = 0.0
        self.due_at = 0.0

    def connect(self, address: tuple[str, int], token: str, *, tls: ssl.SSLContext | None = None) -> None:
        """Dial, register, prove; over TLS if `tls` is given. Raises OSError and TimeoutError."""
        sock = socket.create_connection(address, timeout=SOON_S)
        try:
            if tls is not None:
                sock = tls.wrap_socket(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handshake = agent_side(f"{self.index} {time.monotonic_ns()}", key=self.key, token=token)
            sock.sendall(handshake.hello())
            while True:
                frame = _read_frame(sock)
                step = handshake.on_frame(frame[LENGTH_BYTES], frame[HEADER_BYTES:], 0.0)
                if step.send:
                    sock.sendall(step.send)
                if isinstance(step.outcome, Welcomed):
                    break
                if step.outcome is not None:
                    raise ConnectionError(f"not let in: {step.outcome}")
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        self.sock = sock
        self.held.clear()
        self.unsent = self.second_half = b""


def _read_frame(sock: socket.socket) -> bytes:
    """One frame and not a byte more: frames of the partner's may follow the handshake. Raises OSError."""
    head = _read(sock, LENGTH_BYTES)
    return head + _read(sock, int.from_bytes(head, "big"))


def _read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionError("the relay closed during the handshake")
        data += part
    return data


class Traffic:
    """`count` agents in pairs; each sends its partner a frame every `every_s`.

    with Traffic(("127.0.0.1", 3478), token, count=200, every_s=0.1) as traffic:
        ...
        seen = traffic.stop()
    """

    def __init__(
        self,
        address: tuple[str, int],
        token: str,
        *,
        count: int,
        every_s: float,
        payload_bytes: int = 200,
        torn: bool = False,
    ) -> None:
        """`torn`: each frame is written in two parts, `every_s` apart: half of the time a connection is in
        the middle of one."""
        self._address, self._token = address, token
        self._every_s, self._filler = every_s, bytes(payload_bytes - NUMBER.size)
        self._torn = torn
        self.seen = Seen()
        self._agents = [Agent(index, private(f"agent {index}")) for index in range(count)]
        for agent in self._agents:
            agent.partner = self._agents[agent.index ^ 1]
        self._epoll = select.epoll()
        self._by_fd: dict[int, Agent] = {}
        self._sending = threading.Event()
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Self:
        for agent in self._agents:
            self._connect(agent)
        self._sending.set()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(SOON_S)
        for agent in self._agents:
            if agent.sock is not None:
                agent.sock.close()
        self._epoll.close()

    def stop(self, within_s: float = SOON_S) -> Seen:
        """Send no more, wait for what is on its way. What hasn't come by then is lost."""
        self._sending.clear()
        deadline = time.monotonic() + within_s
        while self._open() and time.monotonic() < deadline and self._failure is None:
            time.sleep(0.05)
        self._ending.set()
        self._thread.join(SOON_S)
        if self._failure is not None:
            raise self._failure
        self.seen.lost += sum(agent.partner.next_number - agent.expected for agent in self._agents)
        return self.seen

    def rest(self) -> None:
        """Neither send nor read nor dial any more; the connections stay."""
        self._ending.set()
        self._thread.join(SOON_S)
        self.check()

    def halfway(self) -> int:
        """How many have written the first part of a frame, and not the second."""
        return sum(1 for agent in self._agents if agent.second_half)

    def ended(self, within_s: float = SOON_S) -> int:
        """After `rest`: how many connections the relay has ended by then."""
        deadline = time.monotonic() + within_s
        left = [agent.sock for agent in self._agents if agent.sock is not None]
        ended = 0
        poll = select.poll()
        for sock in left:
            poll.register(sock, select.POLLRDHUP)
        while ended < len(left) and (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1e3):
                poll.unregister(fd)
                ended += 1
        return ended

    def check(self) -> None:
        """Raises what has gone wrong in the thread, if anything has."""
        if self._failure is not None:
            raise self._failure

    def _open(self) -> bool:
        return any(
            agent.expected < agent.partner.next_number or agent.unsent or agent.second_half
            for agent in self._agents
        )

    def _connect(self, agent: Agent) -> None:
        agent.connect(self._address, self._token)
        assert agent.sock is not None
        self._by_fd[agent.sock.fileno()] = agent
        self._epoll.register(agent.sock, select.EPOLLIN)
        agent.heard_at = 0.0

    def _run(self) -> None:
        try:
            start = time.monotonic()
            for agent in self._agents:  # spread over one interval
                agent.due_at = start + self._every_s * agent.index / len(self._agents)
            while not self._ending.is_set():
                now = time.monotonic()
                for agent in self._agents:
                    if now >= agent.due_at:
                        agent.due_at += self._every_s * (1 + int((now - agent.due_at) / self._every_s))
                        self._send(agent)
                for fd, _ in self._epoll.poll(0.002):
                    self._read(self._by_fd[fd])
        except BaseException as error:
            self._failure = error
            raise

    def _send(self, agent: Agent) -> None:
        if agent.sock is None:
            return
        if agent.second_half:
            data, agent.second_half = agent.second_half, b""
        elif not self._sending.is_set():
            data = b""
        else:
            data = encode_data(agent.partner.public, NUMBER.pack(agent.next_number) + self._filler)
            agent.next_number += 1
            self.seen.sent += 1
            if self._torn:
                cut = 1 + agent.next_number * 7 % (len(data) - 1)
                data, agent.second_half = data[:cut], data[cut:]
        agent.unsent += data
        if not agent.unsent:
            return
        try:
            agent.unsent = agent.unsent[agent.sock.send(agent.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._closed(agent)

    def _read(self, agent: Agent) -> None:
        assert agent.sock is not None
        try:
            data = agent.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._closed(agent)
            return
        agent.held += data
        held, at = agent.held, 0
        while len(held) - at >= LENGTH_BYTES:
            length = int.from_bytes(held[at : at + LENGTH_BYTES], "big")
            if not 0 < length <= MAX_LENGTH:
                self.seen.garbled += 1
                self._closed(agent)
                return
            if len(held) - at < LENGTH_BYTES + length:
                break
            self._frame(agent, bytes(held[at : at + LENGTH_BYTES + length]))
            at += LENGTH_BYTES + length
        del held[:at]

    def _frame(self, agent: Agent, frame: bytes) -> None:
        if frame[LENGTH_BYTES] == PING:
            agent.unsent += encode_pong(decode_ping_untrusted(frame[HEADER_BYTES:]))
        if frame[LENGTH_BYTES] != DATA:
            return
        key, payload = frame[HEADER_BYTES:KEYED_BYTES], frame[KEYED_BYTES:]
        if key != agent.partner.public.raw or payload[NUMBER.size :] != self._filler:
            self.seen.garbled += 1
            return
        (number,) = NUMBER.unpack_from(payload)
        if number < agent.expected:
            self.seen.garbled += 1  # twice
            return
        self.seen.lost += number - agent.expected
        agent.expected = number + 1
        self.seen.received += 1
        now = time.monotonic()
        if agent.heard_at:
            self.seen.longest_gap_s = max(self.seen.longest_gap_s, now - agent.heard_at)
        agent.heard_at = now

    def _closed(self, agent: Agent) -> None:
        """The relay ended it: once more, at once."""
        assert agent.sock is not None
        self.seen.closed += 1
        del self._by_fd[agent.sock.fileno()]
        self._epoll.unregister(agent.sock)
        agent.sock.close()
        agent.sock = None
        ended_at = time.monotonic()
        deadline = ended_at + SOON_S
        while True:
            try:
                self._connect(agent)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.seen.back_s.append(time.monotonic() - ended_at)
