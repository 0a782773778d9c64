"""Crowds at the door: they cost what the limits say, and nobody else notices them.

Their effect on memory and on who is let in is asserted; times are, where an agent would give up.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.identities import ALICE, BOB
from tests.security.relays import SOON_S, Agent, RelayProcess, allow_descriptors, connect_many, relay

CROWD = 10_000
LIMIT_KIB = 100 * 1000 * 1000 // 1024
"""100 MB, the relay's own 50 included."""

MAX_DESCRIPTORS = 1024 + 256 + 50
"""Those at the door, those that are being told why they were refused, and the relay's own."""

ANNOUNCED = b"\x00\x01\x00\x00\x02"
"""The header of the largest frame."""


@pytest.fixture(autouse=True)
def descriptors() -> None:
    if not allow_descriptors(CROWD + 1000):
        pytest.skip(f"{CROWD} connections need as many descriptors (ulimit -n)")


def client_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


class Admissions(threading.Thread):
    """A good agent that comes again and again, as long as it is let."""

    def __init__(self, running: RelayProcess) -> None:
        super().__init__()
        self._running, self._over = running, threading.Event()
        self.times_s: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.02):
            started = time.monotonic()
            try:
                with Agent(self._running, ALICE, source="127.0.0.9"):
                    self.times_s.append(time.monotonic() - started)
            except (OSError, EOFError) as error:
                self.failures.append(repr(error))

    def __enter__(self) -> Admissions:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def crowd(running: RelayProcess, say: bytes) -> list[socket.socket]:
    """CROWD connections; each says `say` once it can."""
    socks: list[socket.socket] = []
    for sock in connect_many(running.join.port, CROWD):
        socks.append(sock)
        if say and len(socks) > 100:
            with contextlib.suppress(OSError):  # closed by the relay already
                socks[-100].send(say)
    return socks


@contextlib.contextmanager
def closed(socks: list[socket.socket]) -> Iterator[None]:
    try:
        yield
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.parametrize(
    ("flags", "say"),
    [
        pytest.param((), b"", id="g3-silent"),
        pytest.param(("--tls-self-signed",), b"", id="g3-silent-tls"),
        pytest.param(("--tls-self-signed",), client_hello(), id="g3-client-hello"),
        pytest.param((), ANNOUNCED, id="g4-announced"),
        pytest.param((), b"\x00\x00\x00\x21\x01" + b"k" * 32 + ANNOUNCED, id="g4-announced-after-register"),
    ],
)
def test_g3_g4_ten_thousand_connections_cost_a_bound_and_keep_nobody_out(
    tmp_path: Path, flags: tuple[str, ...], say: bytes
) -> None:
    with relay(tmp_path, *flags) as running, Agent(running, BOB) as good:
        with Admissions(running) as admissions:
            socks = crowd(running, say)
            with closed(socks):
                # All that have been accepted are dealt with when a newcomer has been.
                with Agent(running, ALICE):
                    pass
                peak_kib = running.status_kib("VmHWM")
                good.round_trip_s()
                descriptors = running.descriptors()
        assert peak_kib < LIMIT_KIB
        assert descriptors < MAX_DESCRIPTORS
        assert admissions.times_s
        assert not admissions.failures
        print(f"peak {peak_kib / 1024:.1f} MiB, slowest of {len(admissions.times_s)} admissions")
        print(f"{max(admissions.times_s) * 1e3:.0f} ms")


def test_sigterm_while_thousands_connect_ends_in_order(tmp_path: Path) -> None:
    for flags in ((), ("--tls-self-signed",)):
        (directory := tmp_path / str(len(flags))).mkdir()
        with relay(directory, *flags) as running:
            socks: list[socket.socket] = []
            with closed(socks):
                for sock in connect_many(running.join.port, 3000):
                    socks.append(sock)
                    if len(socks) == 1500:
                        running.process.terminate()
                assert running.process.wait(SOON_S) == 0
                assert "relay.stopped" in running.said()


def test_g2_one_byte_at_a_time_is_a_connection_as_any_other(tmp_path: Path) -> None:
    with relay(tmp_path, "--auth", "optional") as running, Agent(running, BOB) as good:
        key = ALICE.public()
        with socket.create_connection(("127.0.0.1", running.join.port)) as slow:
            slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            echo = b"\x00\x00\x00\x25\x02" + key.raw + b"slow"
            for byte in b"\x00\x00\x00\x21\x01" + key.raw + echo:
                slow.sendall(bytes([byte]))
                time.sleep(0.001)
            got = b""
            slow.settimeout(SOON_S)
            while not got.endswith(echo):
                got += slow.recv(4096)
        good.round_trip_s()


def noise_of(seed: int) -> Callable[[], bytes]:
    """Random bytes, or something that begins like a frame and goes on at random."""
    rng = random.Random(seed)

    def make() -> bytes:
        begin = rng.choice((b"", b"\x00\x00\x00\x21\x01" + rng.randbytes(32), b"\x16\x03\x01", ANNOUNCED))
        return begin + rng.randbytes(rng.randrange(1, 5000))

    return make


class Noise(threading.Thread):
    """A stranger that sends noise, and comes back whenever it is thrown out."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__()
        self._address, self._make = ("127.0.0.1", port), noise_of(seed)
        self._source = f"127.0.2.{seed + 1}"
        self._over = threading.Event()
        self.thrown_out = 0

    def run(self) -> None:
        while not self._over.is_set():
            try:
                with socket.create_connection(self._address, 5.0, source_address=(self._source, 0)) as sock:
                    while not self._over.is_set():
                        sock.sendall(self._make())
                        time.sleep(0.001)
            except OSError:
                self.thrown_out += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.parametrize("flags", [(), ("--auth", "optional"), ("--tls-self-signed",)], ids=" ".join)
def test_g2_random_bytes_from_eight_disturb_no_good_pair(tmp_path: Path, flags: tuple[str, ...]) -> None:
    seconds = float(os.environ.get("RELAYD_NOISE_S", "3"))
    with relay(tmp_path, *flags) as running, Agent(running, ALICE) as a, Agent(running, BOB) as b:
        noisy = [Noise(running.join.port, seed) for seed in range(8)]

        def trips(seconds: float) -> list[float]:
            times, until = [], time.monotonic() + seconds
            while time.monotonic() < until:
                times.append(a.round_trip_s())
                b.round_trip_s()
            return sorted(times)

        quiet = trips(seconds / 3)
        rss_before, descriptors_before = running.status_kib("VmRSS"), running.descriptors()
        for one in noisy:
            one.start()
        try:
            loud = trips(seconds)
        finally:
            for one in noisy:
                one.stop()
        for name, times in (("quiet", quiet), ("loud", loud)):
            p50, p99 = (times[int(len(times) * part)] * 1e3 for part in (0.5, 0.99))
            print(f"{name}: {len(times)} round trips, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        # Every round trip came back: nothing was lost. And what the noise cost is gone with it.
        assert sum(one.thrown_out for one in noisy) > 8
        with Agent(running, ALICE):
            pass
        until = time.monotonic() + SOON_S
        while running.descriptors() > descriptors_before + 8 and time.monotonic() < until:
            time.sleep(0.05)
        assert running.descriptors() <= descriptors_before + 8
        assert running.status_kib("VmRSS") - rss_before < 20_000
