"""G18: with a limit on its memory the relay sheds load, not life."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from relayd.observe.control import ask
from relayd.wire import frames
from tests.helpers.identities import ALICE, BOB
from tests.security.relays import Agent, allow_descriptors, key_number, relay

LIMIT_BYTES = 128 << 20
STOPPED = 300
"""Readers that don't read: with 1 MiB of queue each they would take more than twice the limit."""

V2, V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")


@contextlib.contextmanager
def memory_group() -> Iterator[Path]:
    """A control group with LIMIT_BYTES, of either version. Skips where there is none to be had."""
    found = None
    for root, name in ((V2, "memory.max"), (V1, "memory.limit_in_bytes")):
        group = root / f"relayd-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / "cgroup.procs").exists():  # a directory on a tmpfs, and no group
                raise FileNotFoundError
            (group / name).write_text(str(LIMIT_BYTES))
        except OSError:
            group.rmdir()
            continue
        found = group
        break
    if found is None:
        pytest.skip("no control group with a memory limit can be made here")
    try:
        yield found
    finally:
        found.rmdir()


def into_group(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def test_g18_under_a_memory_limit_queues_shrink_and_the_relay_lives(tmp_path: Path) -> None:
    assert allow_descriptors(2000)
    with memory_group() as group, contextlib.ExitStack() as stack:
        # As under systemd's MemoryMax: the relay is in its group from its first instruction on.
        home = Path("/proc/self/cgroup").read_text()
        into_group(group)
        try:
            running = stack.enter_context(relay(tmp_path, "--queue-age-ms", "60000", "--stalled-s", "600"))
        finally:
            leave_group(group, home)
        a, b = stack.enter_context(Agent(running, ALICE)), stack.enter_context(Agent(running, BOB))
        keys = [key_number(number).public() for number in range(STOPPED)]
        for number in range(STOPPED):
            one = stack.enter_context(Agent(running, key_number(number)))
            one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(40):
            for key in keys:
                a.sock.sendall(frames.encode_data(key, bytes(1400)) * 20)
            assert b.round_trip_s() < 5.0
        status = trio.run(ask, str(tmp_path / "c.sock"), "status")
        drops = status["drops"]
        print(f"queued {status['queued_bytes'] >> 20} MiB, RSS {running.status_kib('VmRSS') / 1024:.0f} MiB")
        assert drops["memory"] > 0
        assert running.process.poll() is None
        with Agent(running, key_number(9999)) as late:
            late.round_trip_s()


def leave_group(group: Path, home: str) -> None:
    """This process back to where it was."""
    for line in home.splitlines():
        _, controllers, path = line.split(":", 2)
        if group.parent == V1 and controllers == "memory":
            (V1 / path.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        elif group.parent == V2 and not controllers:
            (V2 / path.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
