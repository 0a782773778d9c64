"""Connections that do nothing: what does the process that holds them keep in memory for each?"""

from __future__ import annotations

import socket
import time

from bench.connections import await_echo, connect, raise_file_limit, register
from bench.frames import key_of
from bench.model import BenchError, Generator, Measurement, Spec
from bench.process import Usage, peak_kib, proportional_kib, resident_kib

AT_ONCE = 50
"""Connections that may be waiting for their echo."""
PER_SOURCE = 2000
"""Connections from one 127.0.0.x address: ephemeral ports suffice for many more."""
SETTLE_S = 1.0


def run_idle(spec: Spec, pids: tuple[int, ...]) -> Measurement:
    """Open, register and hold `spec.connections`; memory before and with them.

    Raises BenchError when the relay refuses one, closes one, or no process was named.
    """
    if len(pids) != 1:
        raise BenchError("memory can't be measured without the relay's process: --pid")
    pid = pids[0]
    raise_file_limit(spec.connections + 200)
    rss_before, pss_before = resident_kib(pid), proportional_kib(pid)
    opened: list[socket.socket] = []
    try:
        for first in range(0, spec.connections, AT_ONCE):
            fresh: list[tuple[socket.socket, bytes]] = []
            for number in range(first, min(first + AT_ONCE, spec.connections)):
                sock = connect(spec, source=f"127.0.0.{2 + number // PER_SOURCE}")
                opened.append(sock)
                if spec.wire == "relay":
                    key = key_of(number)
                    register(sock, key)
                    fresh.append((sock, key))
            for sock, key in fresh:
                await_echo(sock, key)
        time.sleep(SETTLE_S)
        rss, pss = resident_kib(pid), proportional_kib(pid)
        first_usage = Usage.now(pids, spec.relay_cpu)
        time.sleep(spec.seconds)
        usage = Usage.now(pids, spec.relay_cpu)
        for sock in opened:
            sock.setblocking(False)
            try:
                if not sock.recv(64):
                    raise BenchError("the relay closed an idle connection")
            except BlockingIOError:
                continue
            except OSError as error:
                raise BenchError(f"an idle connection broke: {error}") from error
            raise BenchError("the relay sent something to an idle connection")
    finally:
        for sock in opened:
            sock.close()
    elapsed = (usage.at - first_usage.at) / 1e9
    return Measurement(
        elapsed_s=round(elapsed, 3),
        cpu_share=round((usage.cpu - first_usage.cpu) / 1e9 / elapsed, 5),
        memory_kib=peak_kib(pid),
        memory_before_kib=rss_before,
        rss_per_connection_kib=round((rss - rss_before) / spec.connections, 3),
        pss_per_connection_kib=round((pss - pss_before) / spec.connections, 3),
        generator=Generator(cpu_share=0.0, busy_share=0.0),
    )
