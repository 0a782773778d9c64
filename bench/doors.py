"""The way in: what a handshake costs the relay, and what a crowd that says nothing does to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator

from bench.connections import connect, raise_file_limit
from bench.frames import key_of
from bench.model import BenchError, Generator, Latency, Measurement, Spec
from bench.process import Usage, peak_kib, resident_kib
from relayd.keys import PrivateKey
from relayd.wire.agent_handshake import AgentHandshake
from relayd.wire.boxes import NONCE_BYTES
from relayd.wire.identity import Welcomed
from relayd.wire.identity_frames import AGENT_NONCE_BYTES

KEYS = 500
"""So many agents take turns: the one whose turn it is has long been seen off."""

AT_ONCE = 50
"""Handshakes side by side, as after a restart: below what one address may have."""

SOURCES = 200
"""Addresses of 127.0.0.0/8 that the crowd comes from."""

HELD_S = 2.0
"""For how long the crowd is held once it stands."""


def _keys(count: int) -> list[PrivateKey]:
    return [PrivateKey(key_of(number)) for number in range(count)]


class _Handshaking:
    """One connection, a step at a time: so many can be in the middle of it at once."""

    def __init__(self, spec: Spec, key: PrivateKey, source: str = "") -> None:
        self.sock = connect(spec, source=source)
        self._agent = AgentHandshake(
            key,
            agent_nonce=secrets.token_bytes(AGENT_NONCE_BYTES),
            nonce=secrets.token_bytes(NONCE_BYTES),
            now=0.0,
        )
        self._held = b""
        self.sock.sendall(self._agent.hello())

    def step(self) -> None:
        """Take one frame, and answer it. Raises BenchError when the relay closes or says no."""
        while len(self._held) < 4 or len(self._held) < 4 + int.from_bytes(self._held[:4], "big"):
            part = self.sock.recv(4096)
            if not part:
                raise BenchError("the relay closed a connection in the middle of its handshake")
            self._held += part
        size = 4 + int.from_bytes(self._held[:4], "big")
        step = self._agent.on_frame(self._held[4], self._held[5:size], 0.0)
        self._held = self._held[size:]
        if step.send:
            self.sock.sendall(step.send)
        if step.outcome is not None and not isinstance(step.outcome, Welcomed):
            raise BenchError(f"the handshake failed: {step.outcome}")


def admitted(spec: Spec, key: PrivateKey, *, source: str = "") -> socket.socket:
    """A connection that has completed the handshake. Raises BenchError when the relay refuses it."""
    one = _Handshaking(spec, key, source)
    try:
        one.step()
        one.step()
    except BaseException:
        one.sock.close()
        raise
    return one.sock


def run_handshakes(spec: Spec, pids: tuple[int, ...]) -> Measurement:
    """Complete handshakes (Register, Challenge, Proof, Welcome), AT_ONCE of them side by side.

    Counted as frames. Raises BenchError when one fails, or no process was named.
    """
    if len(pids) != 1:
        raise BenchError("handshakes are counted by the relay's CPU time: --pid")
    keys = _keys(KEYS)
    done = 0

    def some() -> None:
        nonlocal done
        together = [_Handshaking(spec, keys[(done + number) % KEYS]) for number in range(AT_ONCE)]
        for _ in range(2):
            for one in together:
                one.step()
        for one in together:
            one.sock.close()
        done += AT_ONCE

    some()
    first, before = Usage.now(pids, spec.relay_cpu), done
    until = time.monotonic() + spec.seconds
    while time.monotonic() < until:
        some()
    last = Usage.now(pids, spec.relay_cpu)
    count = done - before
    elapsed, cpu = (last.at - first.at) / 1e9, (last.cpu - first.cpu) / 1e9
    return Measurement(
        elapsed_s=round(elapsed, 3),
        frames=count,
        sent=count,
        received=count,
        frames_per_s=round(count / elapsed, 1),
        frames_per_cpu_s=round(count / cpu, 1),
        cpu_share=round(cpu / elapsed, 5),
        memory_kib=peak_kib(pids[0]),
        generator=Generator(
            cpu_share=round((last.own_cpu - first.own_cpu) / 1e9 / elapsed, 5), busy_share=0.0
        ),
    )


@contextlib.contextmanager
def _crowd(spec: Spec) -> Iterator[int]:
    """A process that opens `spec.connections`, says nothing, and holds what isn't closed. Yields its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            raise_file_limit(spec.connections + 200)
            held = []
            for number in range(spec.connections):
                sock = socket.socket()
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((f"127.0.4.{1 + number % SOURCES}", 0))
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect((spec.host, spec.port))
                held.append(sock)
            time.sleep(HELD_S)
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run_silent(spec: Spec, pids: tuple[int, ...]) -> Measurement:
    """A crowd that says nothing, and agents that are admitted meanwhile: their latency, the relay's memory.

    Raises BenchError when an agent is refused, or no process was named.
    """
    if len(pids) != 1:
        raise BenchError("memory can't be measured without the relay's process: --pid")
    keys = _keys(KEYS)
    before = resident_kib(pids[0])
    first = Usage.now(pids, spec.relay_cpu)
    times_us: list[float] = []
    with _crowd(spec) as crowd:
        while os.waitpid(crowd, os.WNOHANG) == (0, 0):
            started = time.monotonic()
            admitted(spec, keys[len(times_us) % KEYS], source="127.0.0.9").close()
            times_us.append((time.monotonic() - started) * 1e6)
    last = Usage.now(pids, spec.relay_cpu)
    times_us.sort()
    elapsed, cpu = (last.at - first.at) / 1e9, (last.cpu - first.cpu) / 1e9

    def at(part: float) -> float:
        return round(times_us[min(int(len(times_us) * part), len(times_us) - 1)], 1)

    return Measurement(
        elapsed_s=round(elapsed, 3),
        frames=len(times_us),
        sent=len(times_us),
        received=len(times_us),
        latency=Latency(
            count=len(times_us), p50=at(0.5), p99=at(0.99), p999=at(0.999), max=round(times_us[-1], 1)
        ),
        cpu_share=round(cpu / elapsed, 5),
        memory_kib=peak_kib(pids[0]),
        memory_before_kib=before,
        generator=Generator(cpu_share=0.0, busy_share=0.0),
    )
