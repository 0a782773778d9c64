"""A WgProxy between a plain UDP socket that plays WireGuard and a list that plays the relay link."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address

from relayd.agent.wg_proxy import WgProxy
from relayd.keys import PublicKey
from relayd.netio import mmsg
from relayd.netio.datagrams import DatagramSocket
from relayd.wire.frames import DATA, KEYED_BYTES, encode_data
from relayd.wire.runs import Run, scan

WAIT_S = 10.0
"""For a datagram that was sent on loopback: it is there at once, unless the machine is overloaded."""

KEYS = tuple(PublicKey(bytes([number]) * 32) for number in range(1, 5))
ADDRESSES = tuple(IPv4Address(f"127.64.7.{number}") for number in range(1, 5))
STRANGER = PublicKey(b"\xee" * 32)

BUFFER_BYTES = 256 << 10


def no_mark(_sock: socket.socket) -> None:
    """In place of `marks.set_mark`, which needs CAP_NET_ADMIN."""


class Watcher:
    """A poller that turns when it is told to, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.after_batch: list[Callable[[], None]] = []
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._events: dict[int, int] = {}

    def add(self, fd: int, handler: Callable[[int], None], /) -> None:
        self._handlers[fd] = handler
        self._events[fd] = select.POLLIN

    def modify(self, fd: int, events: int, /) -> None:
        self._events[fd] = events

    def remove(self, fd: int, /) -> None:
        del self._handlers[fd]
        del self._events[fd]

    def turn(self, wait_s: float = WAIT_S) -> bool:
        """Wait for something to read, and have it handled. False: nothing came."""
        poll = select.poll()
        for fd, events in self._events.items():
            poll.register(fd, events)
        ready = poll.poll(wait_s * 1000)
        for fd, mask in ready:
            self._handlers[fd](mask)
        for hook in self.after_batch:
            hook()
        return bool(ready)


def wireguard_socket(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """What WireGuard's own socket would be, with a buffer that holds a test's worth of datagrams."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, mmsg.SO_RCVBUFFORCE, 16 << 20)
    sock.bind((address, port))
    sock.settimeout(WAIT_S)
    return sock


class Rig:
    """The proxy and both its sides."""

    def __init__(self, *, segmenting: bool = True, peers: int = 3) -> None:
        self.watcher = Watcher()
        self.wireguard = wireguard_socket()
        self.sent: list[list[bytes]] = []
        """What each call of `send_frames` was given."""
        self.congested = False
        self.proxy = WgProxy(
            self.watcher,
            DatagramSocket(0, mark=no_mark),
            wireguard_port=self.wireguard.getsockname()[1],
            peers=dict(zip(KEYS[:peers], ADDRESSES, strict=False)),
            send_frames=self._send_frames,
            congested=lambda: self.congested,
            segmenting=segmenting,
        )

    def close(self) -> None:
        self.proxy.close()
        self.wireguard.close()

    def _send_frames(self, runs: Sequence[memoryview], total: int) -> None:
        assert sum(map(len, runs)) == total
        for run in runs:
            size = struct.unpack_from(">I", run)[0] + 4
            assert len(run) % size == 0, "a run is whole frames of one size"
        self.sent.append([bytes(run) for run in runs])

    def frames(self) -> list[tuple[bytes, bytes]]:
        """Key and payload of each Data frame sent so far."""
        stream = bytearray(b"".join(run for call in self.sent for run in call))
        runs: list[Run] = []
        assert scan(stream, 0, len(stream), None, runs) == len(stream)
        found = []
        for kind, key, start, stop, size in runs:
            assert kind == DATA
            found += [(key, bytes(stream[at + KEYED_BYTES : at + size])) for at in range(start, stop, size)]
        return found

    def say(self, peer: int, payload: bytes) -> None:
        """WireGuard sends `payload` to the loopback address of peer number `peer`."""
        self.wireguard.sendto(payload, (str(ADDRESSES[peer]), self.proxy.port))

    def pump(self, frames: int) -> None:
        """Turn until so many frames have been sent in all."""
        while (count := len(self.frames())) < frames:
            assert self.watcher.turn(), f"{count} frames of {frames} arrived"

    def pump_until(self, condition: Callable[[], bool]) -> None:
        """Turn until `condition` holds."""
        while not condition():
            assert self.watcher.turn(), "nothing more arrived"

    def deliver(self, *datagrams: tuple[PublicKey, bytes]) -> None:
        """The relay sends these; they are in one buffer, as one read has them."""
        stream = b"".join(encode_data(key, payload) for key, payload in datagrams)
        buffer = bytearray(max(BUFFER_BYTES, len(stream)))
        buffer[: len(stream)] = stream
        runs: list[Run] = []
        scan(buffer, 0, len(stream), None, runs)
        self.proxy.deliver(buffer, runs, self.watcher.now)

    def heard(self, count: int) -> list[tuple[IPv4Address, bytes]]:
        """The next `count` datagrams that WireGuard gets, each with its source: all from the proxy's port."""
        found = []
        for _ in range(count):
            payload, (address, port) = self.wireguard.recvfrom(1 << 16)
            assert port == self.proxy.port
            found.append((IPv4Address(address), payload))
        return found

    def hears_nothing(self) -> bool:
        """Whether no datagram waits at WireGuard's."""
        return not select.select([self.wireguard], [], [], 0)[0]


@contextlib.contextmanager
def rig(*, segmenting: bool = True, peers: int = 3) -> Iterator[Rig]:
    """A Rig that is closed afterwards."""
    made = Rig(segmenting=segmenting, peers=peers)
    try:
        yield made
    finally:
        made.close()
