"""Runs the tier's tests in several processes at once, each in namespaces of its own.

Emulation gives each of the machine's processors a core of the host, and a test keeps less than one busy: it
waits for a process, or that one waits for the kernel. So once all tests are collected this process forks.
Parent and children take the next test from one queue, each in a network namespace and with a /run of its own
(names of namespaces and interfaces don't clash, nor do locks); the parent tells all results. An import or a
collection costs seconds under emulation, and none is done twice: pytest-xdist starts interpreters.

A test marked `alone` is one about time, and runs when nothing else does.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests.kernel.shell import sh

ALONE = "alone"

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
_INDEX, _LENGTH = struct.Struct("H"), struct.Struct("I")

_APART = """
mount --make-rprivate /
mount -t tmpfs -o mode=755 run /run; mkdir /run/lock /run/netns /run/wireguard
mount -t sysfs sysfs /sys
ip link set lo up
"""
"""/sys too: it shows the interfaces of the namespace that it was mounted in."""


def _apart() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    sh(_APART)


class _Queue:
    """The tests that nobody has taken. A read of one index from a pipe is one process's."""

    def __init__(self, items: Sequence[pytest.Item], lock: Path) -> None:
        self._items, self._lock = items, lock
        last = [number for number, item in enumerate(items) if _is_alone(item)]
        order = [number for number in range(len(items)) if number not in last] + last
        self._taken, given = os.pipe()
        os.write(given, b"".join(map(_INDEX.pack, order)))  # a few hundred bytes: a pipe holds 64 KiB
        os.close(given)

    def take(self) -> pytest.Item | None:
        """None: there are no more."""
        data = os.read(self._taken, _INDEX.size)
        return self._items[_INDEX.unpack(data)[0]] if data else None

    @contextmanager
    def turn(self, item: pytest.Item) -> Iterator[None]:
        """While `item` runs; one that is to be alone waits until it is."""
        with self._lock.open() as lock:  # anew each time: a lock is shared by those who share the descriptor
            fcntl.flock(lock, fcntl.LOCK_EX if _is_alone(item) else fcntl.LOCK_SH)
            yield


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker(ALONE) is not None


def _work(session: pytest.Session, queue: _Queue, done: Callable[[], None]) -> int:
    """Run tests until there are no more. -> how many

    The next one is known before one ends: by that pytest decides which fixtures go.
    """
    coming, count = queue.take(), 0
    while coming is not None:
        item, coming = coming, queue.take()
        with queue.turn(item):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=coming)
        count += 1
        done()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
    return count


class _Teller:
    """In a child: writes down what the parent is to tell."""

    def __init__(self, config: pytest.Config, to: IO[bytes]) -> None:
        self._config, self._to = config, to

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A plugin's hook."""
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        text = pickle.dumps((report.nodeid, report.location, data))
        self._to.write(_LENGTH.pack(len(text)) + text)
        self._to.flush()


@dataclass
class _Child:
    pid: int
    told: IO[bytes]
    ended: int = 0
    """Tests that it has run to their end."""

    def _next(self) -> bytes | None:
        """None: not yet, or not yet all of it."""
        at = self.told.tell()
        head = self.told.read(_LENGTH.size)
        text = self.told.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
        if not text or len(text) < _LENGTH.unpack(head)[0]:
            self.told.seek(at)
            return None
        return text

    def pass_on(self, config: pytest.Config) -> None:
        """What it has told since the last time."""
        while (text := self._next()) is not None:
            nodeid, location, data = pickle.loads(text)
            report: Any = config.hook.pytest_report_from_serializable(config=config, data=data)
            if report.when == "setup":
                config.hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
            config.hook.pytest_runtest_logreport(report=report)
            if report.when == "teardown":
                self.ended += 1
                config.hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)


def run(session: pytest.Session, processes: int) -> bool:
    """All of the session's tests. For the hook pytest_runtestloop."""
    config = session.config
    with tempfile.NamedTemporaryFile() as lock, tempfile.TemporaryDirectory() as directory:
        queue = _Queue(session.items, Path(lock.name))
        children = [_fork(session, queue, Path(directory, str(number))) for number in range(1, processes)]

        def pass_on() -> None:
            for child in children:
                child.pass_on(config)

        try:
            _apart()
            own = _work(session, queue, pass_on)
            statuses = [os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) for child in children]
        except BaseException:
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            raise
        finally:
            pass_on()
            for child in children:
                child.told.close()
    ended = own + sum(child.ended for child in children)
    if any(statuses) or ended != len(session.items):
        raise session.Failed(
            f"{ended} of {len(session.items)} tests were run; processes ended with {statuses}"
        )
    return True


def _fork(session: pytest.Session, queue: _Queue, told: Path) -> _Child:
    told.touch()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return _Child(pid, told.open("rb"))
    status = 1
    manager = session.config.pluginmanager
    capture = manager.getplugin("capturemanager")
    try:
        capture.stop_global_capturing()  # into files that are the parent's too
        capture.start_global_capturing()
        manager.unregister(name="terminalreporter")
        with told.open("wb") as to:
            manager.register(_Teller(session.config, to))
            _apart()
            _work(session, queue, lambda: None)
        status = 0
    except BaseException:  # noqa: BLE001 (the end of the process; the parent sees its status)
        capture.stop_global_capturing()
        traceback.print_exc()
    finally:
        os._exit(status)
