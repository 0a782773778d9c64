"""Open-loop load for the agents' path: stands for WireGuard at both ends, and counts every datagram.

    payload := number:u64be filler

Datagrams go out on an exact schedule, several in one sendmmsg when several are due; each is a datagram
of its own, as WireGuard sends them. Numbers are checked on all that come back, contents, lengths and
source addresses on a sample.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from array import array
from contextlib import ExitStack
from pathlib import Path
from struct import Struct

from bench.frames import filler
from bench.messages import Intake, Messages
from bench.model import BenchError, Measurement, Spec
from bench.paced import LEAD_NS
from bench.tally import Tally

RING = 256
"""Datagrams in the ring: their place in it is the lowest byte of their number."""
NUMBER_BYTES = 8
BATCH = 64
SKIMS_PER_CHECK = 15
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
BUFFER_BYTES = 16 << 20
"""So that what is lost is not lost at the load's own socket; that it is not is looked up after the run."""


class DatagramRing:
    """Numbered datagrams, ready to be sent again and again."""

    def __init__(self, payload: int) -> None:
        if not 16 <= payload <= 9000:
            raise BenchError(f"a datagram of {payload} bytes (16 to 9000 are possible)")
        self.payload = payload
        self.block = 0
        self.buffer = bytearray().join(
            index.to_bytes(NUMBER_BYTES, "big") + filler(index, payload) for index in range(RING)
        )

    def advance(self) -> None:
        """Number them anew, after the last was handed to the kernel."""
        old = self.block.to_bytes(NUMBER_BYTES - 1, "big")
        self.block += 1
        new = self.block.to_bytes(NUMBER_BYTES - 1, "big")
        for place in range(NUMBER_BYTES - 1):
            if new[place] != old[place]:
                self.buffer[place :: self.payload] = new[place : place + 1] * RING


class _Arrivals:
    """The receiving end: counts, and finds what is missing, doubled, or not as sent."""

    def __init__(self, sock: socket.socket, payload: int, source: tuple[str, int]) -> None:
        self._fd = sock.fileno()
        self._payload, self._source = payload, source
        self._skim, self._look = Intake(BATCH, NUMBER_BYTES), Intake(BATCH, payload)
        self._numbers = [Struct(f">{count}Q") for count in range(BATCH + 1)]
        self.received = self.next = self.rounds = self.checked = 0

    def take(self) -> tuple[int, ...]:
        """The numbers of what has come. Raises BenchError for what should not have."""
        self.rounds += 1
        if self.rounds % (SKIMS_PER_CHECK + 1) == 0:
            return self._take_whole()
        count = self._skim.receive(self._fd)
        if not count:
            return ()
        return self._counted(self._numbers[count].unpack_from(self._skim.buffer))

    def _take_whole(self) -> tuple[int, ...]:
        intake, payload = self._look, self._payload
        numbers: list[int] = []
        for i in range(intake.receive(self._fd)):
            number = int.from_bytes(intake.buffer[i * payload : i * payload + NUMBER_BYTES], "big")
            if intake.length(i) != payload:
                raise BenchError(f"a datagram of {intake.length(i)} bytes came, {payload} were sent")
            if not intake.buffer.startswith(filler(number % RING, payload), i * payload + NUMBER_BYTES):
                raise BenchError(f"datagram {number} arrived with other bytes than were sent")
            if intake.source(i) != self._source:
                raise BenchError(f"a datagram came from {intake.source(i)}, not from {self._source}")
            numbers.append(number)
        self.checked += len(numbers)
        return self._counted(tuple(numbers))

    def _counted(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if numbers and numbers != tuple(range(self.next, self.next + len(numbers))):
            last = self.next - 1
            for number in numbers:
                if number <= last:
                    raise BenchError(f"datagrams came twice or out of order: {number} after {last}")
                last = number
        if numbers:
            self.next = numbers[-1] + 1
            self.received += len(numbers)
        return numbers


def _udp(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind(("127.0.0.1", port))
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:  # as much as net.core.rmem_max allows; own drops are looked up anyway
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise BenchError(f"no UDP socket on port {port}: {error}") from error
    return sock


def own_drops(port: int, table: str) -> int:
    """Datagrams that the kernel dropped at 127.0.0.1:`port`; `table` is the text of /proc/net/udp."""
    wanted = f"0100007F:{port:04X}"
    return sum(int(line.split()[-1]) for line in table.splitlines()[1:] if line.split()[1] == wanted)


def run_agents(spec: Spec, pids: tuple[int, ...]) -> Measurement:
    """Run the load; raises BenchError when a socket fails or a datagram isn't as sent."""
    with ExitStack() as stack:
        near = stack.enter_context(_udp(spec.wireguard_ports[0]))
        far = stack.enter_context(_udp(spec.wireguard_ports[1]))
        near.connect((spec.host, spec.port))
        epoll = stack.enter_context(select.epoll())
        epoll.register(far.fileno(), select.EPOLLIN)
        return _run(spec, pids, near, far, epoll)


def _run(
    spec: Spec, pids: tuple[int, ...], near: socket.socket, far: socket.socket, epoll: select.epoll
) -> Measurement:
    ring = DatagramRing(spec.payload)
    messages = Messages(ring.buffer, range(0, len(ring.buffer) + 1, spec.payload))
    arrivals = _Arrivals(far, spec.payload, spec.source)
    tally = Tally(spec, pids, lambda: arrivals.received)
    latencies: array[int] = array("q")
    interval = 1e9 / spec.rate
    total = int((spec.warmup + spec.seconds) * spec.rate)
    measured_from = int(spec.warmup * spec.rate)
    out, clock, poll = near.fileno(), time.monotonic_ns, epoll.poll
    sent = idle = refused = 0
    measuring = False
    gc.collect()
    gc.disable()
    start = clock() + LEAD_NS
    measure_at, stop_at = start + int(spec.warmup * 1e9), start + int((spec.warmup + spec.seconds) * 1e9)
    now = clock()
    while now < stop_at:
        busy = False
        due = min(int((now - start) / interval) + 1, total) - sent if now >= start else 0
        if due > 0:
            busy = True
            slot = sent % RING
            taken = messages.send(out, slot, min(due, BATCH, RING - slot))
            refused += not taken
            sent += taken
            if taken and slot + taken == RING:
                ring.advance()
        if poll(0):
            busy = True
            numbers = arrivals.take()
            arrived = clock() - start
            for number in numbers:
                if number >= measured_from:
                    latencies.append(arrived - int(number * interval))
        then, now = now, clock()
        if not busy:
            idle += now - then
        if not measuring and now >= measure_at:
            measuring = True
            idle = 0
            tally.start()
    tally.stop()
    ended = last = time.monotonic()
    while arrivals.next < sent and time.monotonic() - last < 0.5:
        if poll(0.05) and arrivals.take():
            last = time.monotonic()
    dropped_here = own_drops(spec.wireguard_ports[1], Path("/proc/net/udp").read_text())
    measurement = tally.finish(
        sent=sent,
        unsent=total - sent,
        backpressure=refused,
        drain_s=last - ended,
        latencies=latencies,
        idle_ns=idle,
        checked=arrivals.checked,
    )
    if dropped_here:
        measurement.notes.append(f"{dropped_here} datagrams were lost at the load's own socket")
    return measurement
