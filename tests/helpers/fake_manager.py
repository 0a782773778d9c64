"""Plays the service manager: starts a process, hears it, keeps its descriptors, starts it anew.

What systemd does by sd_notify(3), sd_listen_fds(3) and its descriptor store, in one process and without root.
It runs no thread: whoever waits for something calls `wait`, which reads what came.
"""

from __future__ import annotations

import array
import fcntl
import os
import resource
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

MAX_FDS = 64
"""Beside one notification; relayd sends one."""

_LAUNCH = 'export LISTEN_PID=$$ WATCHDOG_PID=$$; exec "$@"'
"""The pid must be known before exec, and is known only after fork."""


class Store:
    """NOTIFY_SOCKET, and what is kept."""

    def __init__(self, address: str, *, limit: int = 1 << 20, receive_buffer: int | None = None) -> None:
        """`limit`: descriptors that are kept at most (FileDescriptorStoreMax=)."""
        self.address, self._limit = address, limit
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        if receive_buffer is not None:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._sock.bind("\0" + address[1:] if address[0] == "@" else address)
        self._sock.setblocking(False)
        self.kept: list[tuple[str, int]] = []
        """(name, descriptor), in order."""
        self.heard: list[str] = []
        """Every line of every notification."""
        self.refused = 0
        """Descriptors that there was no room for."""

    def take(self) -> None:
        """Read all that came."""
        with suppress(BlockingIOError):
            while True:
                data, rights, _, _ = self._sock.recvmsg(
                    4096, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
                )
                fds = array.array("i")
                for _, _, payload in rights:
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._hear(data.decode().splitlines(), list(fds))

    def _hear(self, lines: list[str], fds: list[int]) -> None:
        self.heard += lines
        told = dict(line.split("=", 1) for line in lines)
        if told.get("FDSTORE") == "1" and fds:
            if len(self.kept) + len(fds) <= self._limit:
                self.kept += [(told.get("FDNAME", "stored"), fd) for fd in fds]
                fds = []
            else:
                self.refused += len(fds)
        if told.get("FDSTOREREMOVE") == "1":
            for name, fd in [one for one in self.kept if one[0] == told["FDNAME"]]:
                self.kept.remove((name, fd))
                os.close(fd)
        for fd in fds:  # BARRIER's pipe among them: closing it is the answer
            os.close(fd)

    def environ(self, names: Sequence[str]) -> dict[str, str]:
        """What a process is told that gets descriptors of these names; LISTEN_PID is missing."""
        return {
            "NOTIFY_SOCKET": self.address,
            "LISTEN_FDS": str(len(names)),
            "LISTEN_FDNAMES": ":".join(names),
        }

    def names(self) -> list[str]:
        """Of what is kept now."""
        self.take()
        return sorted(name for name, _ in self.kept)

    def wait(self, true: Callable[[], bool], what: str, *, within_s: float = 20.0) -> None:
        """Take in what comes until it is true."""
        deadline = time.monotonic() + within_s
        while True:
            self.take()
            if true():
                return
            left = deadline - time.monotonic()
            assert left > 0, f"not within {within_s} s: {what}; heard {self.heard[-8:]}"
            select.select([self._sock], [], [], min(left, 0.02))

    def close(self) -> None:
        """All that is kept is closed, as at the end of a service's life. Once is enough."""
        if self._sock.fileno() < 0:
            return
        self.take()
        for _, fd in self.kept:
            os.close(fd)
        self.kept = []
        self._sock.close()


class FakeManager:
    """One service: its listeners, its store, its process."""

    def __init__(
        self,
        argv: Sequence[str],
        directory: Path,
        *,
        listeners: Mapping[str, socket.socket] | None = None,
        watchdog_s: float | None = None,
        limit: int = 1 << 20,
    ) -> None:
        """`argv[0]` is a path. `listeners` are passed at every start, under their names."""
        self.argv, self._listeners = list(argv), dict(listeners or {})
        self._watchdog_s = watchdog_s
        self._directory = tempfile.TemporaryDirectory(
            prefix="manager-", dir="/tmp"
        )  # short: sun_path has 108
        self.store = Store(f"{self._directory.name}/notify", limit=limit)
        self.log = directory / "service.log"
        self.log.touch()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.store.close()
        self._directory.cleanup()

    def start(self) -> None:
        """Start the process, with all that is kept; return when it says READY."""
        self.begin()
        ready = self.store.heard.count("READY=1")
        self.store.wait(lambda: self.store.heard.count("READY=1") > ready or self.ended(), "READY=1")
        assert not self.ended(), self.output()

    def begin(self) -> None:
        """Start the process, and return at once."""
        self.store.take()
        passed = [(name, sock.fileno()) for name, sock in self._listeners.items()] + self.store.kept
        environ = {**os.environ, **self.store.environ([name for name, _ in passed])}
        if self._watchdog_s is not None:
            environ["WATCHDOG_USEC"] = str(round(self._watchdog_s * 1e6))
        with self.log.open("ab") as log:
            self.process = launch([fd for _, fd in passed], self.argv, environ, log.fileno())

    def ended(self) -> bool:
        """Whether the process has."""
        return self.process is not None and self.process.poll() is not None

    def stop(self, number: signal.Signals) -> int:
        """Send a signal, wait for the end. -> exit status, or minus the signal"""
        assert self.process is not None
        self.process.send_signal(number)
        self.store.wait(self.ended, "the process ends")
        self.store.take()
        return self.process.wait()

    def restart(self, number: signal.Signals = signal.SIGTERM) -> int:
        """As `systemctl restart`, or a crash and what the manager does then. -> exit status"""
        status = self.stop(number)
        self.start()
        return status

    def output(self) -> str:
        """All that the processes said."""
        return self.log.read_text()


def launch(
    fds: Sequence[int], argv: Sequence[str], environ: Mapping[str, str], output: int
) -> subprocess.Popen[bytes]:
    """A process with `fds` as its descriptors from 3 on."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _LAUNCH, "sh", *argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=dict(environ),
        close_fds=False,
        preexec_fn=lambda: place(fds),  # noqa: PLW1509 (no threads here)
    )


def place(fds: Sequence[int]) -> None:
    """In a child: `fds` become its descriptors from 3 on, and there are no others."""
    end = 3 + len(fds)
    # Out of the way first: a descriptor may stand where another is to go.
    for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, end) for fd in fds], 3):
        os.dup2(fd, number, inheritable=True)
    os.closerange(end, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
