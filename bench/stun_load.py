"""STUN requests from thousands of loopback addresses, as many in flight as fit a window; one in 64 answers is
compared byte for byte.

The relay gives each address so many answers a second and no more: a flood from one address would measure
that.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from functools import partial
from ipaddress import IPv4Address

from bench.messages import Intake
from bench.model import BenchError, Measurement, Spec
from bench.tally import Tally
from relayd.endpoints import Endpoint
from relayd.netio import mmsg
from relayd.wire import stun

BATCH = 64
BATCHES = 64
"""4,096 addresses: at 100 answers a second each, that is room for 400,000 a second."""
IN_FLIGHT = 16 * BATCH
"""At most. With 256 the two processes wait for each other: a fifth less comes back, and no more gets lost."""
BUFFER_BYTES = 4 << 20
ANSWER_COSTS = 1024
"""Bytes of the receive buffer that the kernel counts for an answer of 44: some 770, as sk_buff and head."""
FIRST_ADDRESS = IPv4Address("127.1.0.0")
ANSWER_BYTES = 256
LOST_AFTER_S = 0.2
"""Nothing came for so long: what is in flight is lost."""
DRAIN_S = 0.5


class Requests:
    """All the requests there are: number n comes from FIRST_ADDRESS + n, and has n as its transaction."""

    def __init__(self, to: tuple[str, int]) -> None:
        count = BATCH * BATCHES
        self._texts = bytearray(b"".join(stun.encode_request(n.to_bytes(12, "big")) for n in range(count)))
        self._controls = bytearray(b"".join(mmsg.pktinfo_cmsg(FIRST_ADDRESS + n) for n in range(count)))
        self._name = bytearray(mmsg.NAME.pack(socket.AF_INET, socket.htons(to[1]), IPv4Address(to[0]).packed))
        self._vectors = bytearray(count * mmsg.VECTOR.size)
        self._messages = bytearray(count * mmsg.MESSAGE_BYTES)
        texts, controls = mmsg.address_of(self._texts), mmsg.address_of(self._controls)
        name, vectors = mmsg.address_of(self._name), mmsg.address_of(self._vectors)
        for n in range(count):
            mmsg.VECTOR.pack_into(
                self._vectors, n * mmsg.VECTOR.size, texts + n * stun.HEADER_BYTES, stun.HEADER_BYTES
            )
            at = n * mmsg.MESSAGE_BYTES
            mmsg.NAME_POINTER.pack_into(self._messages, at, name, mmsg.NAME.size)
            mmsg.GATHER.pack_into(
                self._messages,
                at + mmsg.VECTORS_AT,
                vectors + n * mmsg.VECTOR.size,
                1,
                controls + n * mmsg.PKTINFO_BYTES,
                mmsg.PKTINFO_BYTES,
            )
        self._at = mmsg.address_of(self._messages)

    def send(self, fd: int, first: int, count: int) -> int:
        """How many went. Raises BenchError."""
        sent = mmsg.sendmmsg(fd, self._at + first * mmsg.MESSAGE_BYTES, count, socket.MSG_DONTWAIT)
        if sent < 0:
            raise BenchError(f"requests can't be sent: error {mmsg.get_errno()}")
        return sent


def _check(data: bytes, port: int) -> None:
    answer = stun.decode_answer_untrusted(data)
    number = int.from_bytes(answer.transaction, "big")
    if answer.mapped != Endpoint(FIRST_ADDRESS + number, port):
        raise BenchError(f"request {number} was told that it came from {answer.mapped}")


def _widen(sock: socket.socket) -> int:
    """How many requests may be in flight so that all their answers fit the socket's buffer, should nobody
    read for a while: what is lost is the relay's then, and not the load's own."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, mmsg.SO_RCVBUFFORCE, BUFFER_BYTES)
    except PermissionError:  # no CAP_NET_ADMIN: as much as net.core.rmem_max allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    room: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // ANSWER_COSTS
    return max(BATCH, min(IN_FLIGHT, room // BATCH * BATCH))


def run_stun(spec: Spec, pids: tuple[int, ...]) -> Measurement:
    """Run the load. Raises BenchError for a wrong answer."""
    requests = Requests((spec.host, spec.port))
    intake = Intake(BATCH, ANSWER_BYTES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("", 0))
        in_flight = _widen(sock)
        port = sock.getsockname()[1]
        fd, total = sock.fileno(), BATCH * BATCHES
        sent = received = checked = given_up = 0
        tally = Tally(spec, pids, partial(lambda: received))
        clock = time.monotonic
        gc.collect()
        gc.disable()
        begun = heard = now = clock()
        measuring = False
        idle = 0.0
        while (ahead := now - begun) < spec.warmup + spec.seconds:
            if not measuring and ahead >= spec.warmup:
                measuring, idle = True, 0.0
                tally.start()
            busy = sent - received - given_up <= in_flight - BATCH
            if busy:
                first = sent % total
                sent += requests.send(fd, first, min(BATCH, total - first))
            got = intake.receive(fd)
            if got:
                received += got
                heard = now
                checked += 1
                _check(bytes(intake.buffer[: intake.length(0)]), port)
            elif now - heard > LOST_AFTER_S:
                given_up, heard = sent - received, now
            then, now = now, clock()
            if not got and not busy:
                idle += now - then
        tally.stop()
        deadline = clock() + DRAIN_S
        while received < sent and (left := deadline - clock()) > 0:
            if select.select([sock], [], [], left)[0]:
                received += intake.receive(fd)
        return tally.finish(
            sent=sent,
            backpressure=0,
            drain_s=clock() - deadline + DRAIN_S,
            checked=checked,
            idle_ns=int(idle * 1e9),
        )
