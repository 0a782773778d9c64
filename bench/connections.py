"""The load's connections: made, registered, paired; and their receiving half."""

from __future__ import annotations

import contextlib
import errno
import random
import resource
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.frames import Check, Ring, frame_bytes, key_of
from bench.model import BenchError, Spec
from relayd.keys import PublicKey
from relayd.wire.frames import DATA, HEADER, encode_data, encode_register

READ_BYTES = 256 * 1024
SKIMS_PER_CHECK = 7
"""Reads in which the kernel throws the bytes away (MSG_TRUNC) for each that is copied and checked."""
RING_BYTES = 2 << 20
"""All rings together, about: they should stay in the load's caches."""
REGISTERED_WITHIN_S = 10.0


def raise_file_limit(wanted: int) -> None:
    """Let this process open so many files. Raises BenchError when the system doesn't allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, PermissionError) as error:
        raise BenchError(
            f"{wanted} open files are needed and {hard} allowed; raise it (ulimit -n) or be root"
        ) from error


def connect(spec: Spec, *, source: str = "", receive_bytes: int = 0) -> socket.socket:
    """One connection, TCP_NODELAY; from `source`, and with so small a receive buffer, where given.

    Raises BenchError when it is refused.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in spec.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if source:
            # The port is chosen at connect, so that the four-tuple has to be free, and not the port.
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(5.0)
        sock.connect((spec.host, spec.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        sock.close()
        raise BenchError(f"no connection to {spec.host}:{spec.port}: {error}") from error
    return sock


def register(sock: socket.socket, key: bytes) -> None:
    """Register, and ask for a sign of it: Data to the own key, which comes back (`await_echo`)."""
    own = PublicKey(key)
    sock.sendall(encode_register(own) + encode_data(own, b"registered?"))


def await_echo(sock: socket.socket, key: bytes) -> None:
    """Read until the frame to the own key is back; what else the relay says first is skipped.

    Raises BenchError when it closes, answers with an Error or does not answer in time.
    """
    echo = encode_data(PublicKey(key), b"registered?")
    sock.settimeout(REGISTERED_WITHIN_S)
    held = bytearray()
    try:
        while True:
            data = sock.recv(4096)
            if not data:
                raise BenchError("the relay closed the connection after Register")
            held += data
            while len(held) >= 4 and len(held) >= (size := 4 + int.from_bytes(held[:4], "big")):
                frame = bytes(held[:size])
                del held[:size]
                if frame == echo:
                    if held:
                        raise BenchError("the relay sent more than was asked for")
                    return
                if HEADER.unpack_from(frame)[1] in (DATA, 0xFF):
                    raise BenchError(f"the relay answered Register with {frame[:64]!r}")
    except TimeoutError as error:
        raise BenchError(
            f"Data to the own key did not come back within {REGISTERED_WITHIN_S:.0f} s: not a relay?"
        ) from error
    except ConnectionError as error:
        raise BenchError(f"the relay closed the connection after Register: {error}") from error


class Receiver:
    """The receiving half of a pair: counts all frames, checks a sample or each."""

    __slots__ = ("check", "fd", "fresh", "held", "lost", "measured", "seen", "size", "skims", "sock", "total")

    def __init__(self, sock: socket.socket, check: Check, *, measured: bool = True) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.check = check
        self.size = check.size
        self.total = 0  # bytes
        self.lost = 0  # frames that are known to be missing so far
        self.skims = 0
        self.held = b""  # the beginning of a frame whose end has not come yet (`read`)
        self.seen = 0  # frames (`read`)
        self.measured = measured
        self.fresh: tuple[int, int] | None = None  # numbers of the first and last frame of a read's sample

    @property
    def received(self) -> int:
        """Whole frames so far."""
        return self.total // self.size

    def skim(self, buffer: bytearray, flags: int = 0) -> int:
        """Take what is there, without looking at it seven times of eight; return the bytes taken.

        0: nothing was there. Raises BenchError when the relay closed or the sample isn't as sent.
        """
        self.skims += 1
        look = self.skims % (SKIMS_PER_CHECK + 1) == 0
        try:
            count = self.sock.recv_into(buffer, 0, 0 if look else socket.MSG_TRUNC)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise BenchError(f"a receiver's connection broke: {error}") from error
        if not count:
            raise BenchError("the relay closed a receiver's connection")
        self.fresh = self.sample(buffer, count) if look else None
        self.total += count
        return count

    def take(self, buffer: bytearray) -> int:
        """As `skim`, but always looking."""
        self.skims = SKIMS_PER_CHECK
        return self.skim(buffer)

    def sample(self, buffer: bytearray, count: int) -> tuple[int, int] | None:
        """Check the first and the last whole frame of what was just read; return their numbers.

        All frames have one size, so that a frame's place in the stream says how many came before it,
        and its number how many should have. Raises BenchError for a duplicate or a wrong order.
        """
        start = -self.total % self.size
        whole = (count - start) // self.size
        if whole < 1:
            return None
        before = (self.total + start) // self.size
        first = self.check.sequence(buffer, start)
        last = self.check.sequence(buffer, start + (whole - 1) * self.size)
        if not self.lost <= first - before <= last - (before + whole - 1):
            raise BenchError(
                f"frames came twice or out of order: number {first} to {last} in places {before} to "
                f"{before + whole - 1}, {self.lost} known to be lost"
            )
        self.lost = last - (before + whole - 1)
        return first, last

    def read(self, buffer: bytearray, view: memoryview) -> list[int]:
        """Take what is there and check every frame; return their numbers.

        Raises BenchError as `skim` does.
        """
        held = len(self.held)
        if held:
            buffer[:held] = self.held
        try:
            count = self.sock.recv_into(view[held:] if held else view)
        except BlockingIOError:
            return []
        except OSError as error:
            raise BenchError(f"a receiver's connection broke: {error}") from error
        if not count:
            raise BenchError("the relay closed a receiver's connection")
        self.total += count
        stop = held + count
        size = self.size
        numbers: list[int] = []
        start = 0
        while start + size <= stop:
            number = self.check.sequence(buffer, start)
            if number < self.seen + self.lost:
                raise BenchError(f"frames came twice or out of order: {number} after {self.seen + self.lost}")
            self.lost = number - self.seen
            self.seen += 1
            numbers.append(number)
            start += size
        self.held = bytes(buffer[start:stop])
        return numbers


@dataclass(slots=True)
class Link:
    """One sender's connection with its frames, and the receivers of those."""

    sock: socket.socket
    ring: Ring
    receivers: list[Receiver]
    measured: bool = True


def ring_frames(spec: Spec) -> int:
    """Frames in one sender's ring: whole writes, enough for big ones, and all rings within the caches."""
    size = frame_bytes(spec.payload)
    if spec.receivers > 1:
        return spec.receivers * 64
    least = 64 * 1024 // size if spec.mode == "bulk" else 8 * spec.burst
    most = 4096 if spec.mode == "bulk" else 64 * spec.burst
    frames = max(min(RING_BYTES // (size * spec.pairs), most), least, 1)
    return -(-frames // spec.burst) * spec.burst


def open_links(spec: Spec) -> list[Link]:
    """All connections of a load, registered and ready. The sockets don't block.

    With `spec.extra_rate` one more link comes last, not measured. Raises BenchError.
    """
    count = spec.pairs + (1 if spec.extra_rate else 0)
    raise_file_limit(count * (1 + spec.receivers) + 200)
    links: list[Link] = []
    opened: list[tuple[socket.socket, bytes]] = []
    frames = ring_frames(spec)
    number = 0
    try:
        for pair in range(count):
            extra = pair == spec.pairs
            sock = connect(spec)
            own = key_of(number)
            number += 1
            opened.append((sock, own))
            keys: list[bytes] = []
            receivers: list[Receiver] = []
            for _ in range(spec.receivers):
                # What doesn't fit a stalled reader's small buffer has to wait in the relay.
                other = connect(spec, receive_bytes=4096 if extra and spec.stalled else 0)
                key = key_of(number)
                number += 1
                opened.append((other, key))
                keys.append(key)
                # A forwarder rewrites nothing: its receivers see the destination's key.
                check = Check(own if spec.wire == "relay" else key, spec.payload, frames // spec.receivers)
                receivers.append(Receiver(other, check, measured=not extra))
            order = keys * (frames // len(keys))
            random.Random(pair).shuffle(order)
            links.append(Link(sock, Ring(order, spec.payload), receivers, measured=not extra))
            if spec.wire == "relay":
                # As they come, so that the relay never sees many that have not registered.
                for fresh, key in opened[-1 - spec.receivers :]:
                    register(fresh, key)
        for sock, key in opened:
            if spec.wire == "relay":
                await_echo(sock, key)
            sock.setblocking(False)
    except BaseException:
        for sock, _ in opened:
            sock.close()
        raise
    return links


def close_links(links: list[Link]) -> None:
    """Close all connections of a load."""
    for link in links:
        link.sock.close()
        for receiver in link.receivers:
            receiver.sock.close()


def received_by(links: list[Link]) -> int:
    """Whole frames that all measured receivers have so far."""
    return sum(r.received for link in links for r in link.receivers if r.measured)


def checked_by(links: list[Link]) -> int:
    """Frames that were compared byte for byte."""
    return sum(r.check.checked for link in links for r in link.receivers)


def poller_of(links: list[Link]) -> select.epoll:
    """An epoll object that watches all receivers, and all senders for what should not come."""
    epoll = select.epoll()
    for link in links:
        epoll.register(link.sock.fileno(), select.EPOLLIN)
        for receiver in link.receivers:
            epoll.register(receiver.fd, select.EPOLLIN)
    return epoll


@contextlib.contextmanager
def connected(spec: Spec) -> Iterator[tuple[list[Link], select.epoll]]:
    """`open_links(spec)` and their `poller_of`, closed at the end. Raises BenchError."""
    links = open_links(spec)
    epoll = poller_of(links)
    try:
        yield links, epoll
    finally:
        epoll.close()
        close_links(links)


def explain_sender(sock: socket.socket) -> BenchError:
    """Why a sender's connection became readable, which it never should."""
    try:
        data = sock.recv(600)
    except OSError as error:
        return BenchError(f"a sender's connection broke: {errno.errorcode.get(error.errno or 0, error)}")
    if not data:
        return BenchError("the relay closed a sender's connection")
    if len(data) > 4 and data[4] == 0xFF:
        return BenchError(f"the relay answered with an Error: {data[5:].decode(errors='replace')}")
    return BenchError(f"the relay sent something to a sender: {data[:48]!r}")


def drain(links: list[Link], epoll: select.epoll, buffer: bytearray, outstanding: int) -> float:
    """Read until `outstanding` more frames' bytes are here, or 1 s passed without any; seconds taken."""
    receivers = {receiver.fd: receiver for link in links for receiver in link.receivers}
    started = last = time.monotonic()
    while outstanding > 0:
        got = 0
        for fd, _ in epoll.poll(0.05):
            receiver = receivers.get(fd)
            if receiver is not None:
                with contextlib.suppress(BlockingIOError):
                    count = receiver.take(buffer)
                    got += count
                    if receiver.measured:
                        outstanding -= count
        now = time.monotonic()
        if got:
            last = now
        elif now - last > 1.0:
            break
    return last - started
