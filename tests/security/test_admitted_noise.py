"""Agents that are let in, and then send whatever can be framed, in any amount and in any pieces, read or not,
and come back for the same keys: they disturb each other, and nobody else."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from relayd.wire import frames
from relayd.wire.frames import BIMODAL_HINT, DATA, KEEPALIVE, NAT_PROBE, RELAY_PROBE
from relayd.wire.identity_frames import PING, PONG, encode_ping
from tests.helpers.identities import ALICE
from tests.security.relays import SOON_S, Agent, RelayProcess, key_number, relay

SENDERS = 6
KEYS = [key_number(number) for number in range(SENDERS)]
TYPES = (DATA, KEEPALIVE, NAT_PROBE, BIMODAL_HINT, RELAY_PROBE, PING, PONG, 0x20, 0x77)
MOST_AT_ONCE = 300_000


def something(rng: random.Random) -> bytes:
    """What an agent may send, or nearly."""

    def odd() -> bytes:
        return frames.encode(rng.choice(TYPES), rng.randbytes(rng.choice((0, 8, 8, 31, 32, 40))))

    kind = rng.random()
    if kind < 0.4:
        payload = rng.randbytes(rng.choice((0, 1, 100, 1400, 60_000)))
        return frames.encode_data(rng.choice(KEYS).public(), payload) * rng.choice((1, 1, 5, 40))
    if kind < 0.6:
        return b"".join(odd() for _ in range(rng.choice((1, 300, 3000))))
    if kind < 0.65:
        return frames.encode(rng.randrange(256), rng.randbytes(rng.randrange(200)))
    if kind < 0.8:
        return encode_ping(b"12345678") * rng.choice((1, 1000))
    return frames.KEEPALIVE_FRAME * rng.choice((1, 5000))


class Sender(threading.Thread):
    """One that comes again and again, with keys that others use too."""

    def __init__(self, running: RelayProcess, seed: int, over: threading.Event) -> None:
        super().__init__()
        self._running, self._over = running, over
        self._rng, self._source = random.Random(seed), f"127.0.3.{seed + 1}"
        self.times = 0

    def run(self) -> None:
        while not self._over.is_set():
            with suppress(OSError, EOFError):  # displaced, or thrown out
                self._once()

    def _once(self) -> None:
        rng = self._rng
        tls = rng.random() < 0.3
        with Agent(self._running, rng.choice(KEYS), source=self._source, tls=tls) as agent:
            self.times += 1
            agent.sock.settimeout(0.2)
            if rng.random() < 0.3:
                agent.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(rng.randrange(1, 60)):
                data = something(rng)
                cut = rng.randrange(len(data) + 1)
                agent.sock.sendall(data[:cut])
                agent.sock.sendall(data[cut:])
                if rng.random() < 0.5:
                    with suppress(TimeoutError):
                        agent.sock.recv(MOST_AT_ONCE)
            if rng.random() < 0.2:
                agent.sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    "limits", [(), ("--rate-frames-s", "20000", "--rate-bytes-s", "3000000")], ids=["free", "limited"]
)
def test_g2_what_admitted_agents_send_disturbs_nobody_else(tmp_path: Path, limits: tuple[str, ...]) -> None:
    seconds = float(os.environ.get("RELAYD_NOISE_S", "3"))
    flags = ("--open", "--tls-self-signed", "--queue-bytes", "70000", "--memory-bytes", "2000000")
    over = threading.Event()
    with relay(tmp_path, *flags, *limits) as running, Agent(running, ALICE) as good:
        descriptors_before = running.descriptors()
        senders = [Sender(running, seed, over) for seed in range(SENDERS)]
        for one in senders:
            one.start()
        trips_s, until = [], time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                trips_s.append(good.round_trip_s())
        finally:
            over.set()
            for one in senders:
                one.join()
        trips_s.sort()
        print(f"{len(trips_s)} round trips, p99 {trips_s[int(len(trips_s) * 0.99)] * 1e3:.1f} ms")
        assert all(one.times for one in senders)
        until = time.monotonic() + SOON_S
        while running.descriptors() > descriptors_before and time.monotonic() < until:
            good.round_trip_s()
            time.sleep(0.05)
        assert running.descriptors() <= descriptors_before
        assert running.stop() == 0
