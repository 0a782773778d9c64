"""Sends notifications to the service manager, and never waits for it.

The manager's socket takes some hundreds of datagrams; a relay to which all its agents come back at once has
thousands to send. What isn't taken now waits in order, and `run` sends it on. Without a manager (no
NOTIFY_SOCKET) all of this does nothing.

Our own 100 lines and not a library: systemd-python, the only one that passes descriptors, has no wheel, and
needs a compiler and libsystemd's headers on every machine; the protocol is one datagram.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections import Counter, deque
from collections.abc import MutableMapping
from dataclasses import dataclass

import trio

from relayd.manager import messages
from relayd.observe import log

VARIABLE = "NOTIFY_SOCKET"

BUSY = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}
"""The manager is behind (or, the last, more descriptors are on their way than a user may have open)."""

RETRY_S = 0.05
"""After ETOOMANYREFS and its like, for which nothing can be waited on."""

MAX_WAITING = 65_536
"""Messages that wait for a manager that doesn't read: two for each connection of the largest store."""


@dataclass(slots=True)
class _Waiting:
    message: bytes
    fd: int = -1
    """A duplicate of our own, or -1."""


class Notifier:
    """The line to the manager. All calls belong to one thread; none of them waits or fails."""

    def __init__(self, address: str | None) -> None:
        """`address` is NOTIFY_SOCKET's: a path, or an abstract name after `@`. None: there is no manager."""
        self._sock: socket.socket | None = None
        self._waiting: deque[_Waiting] = deque()
        self._more = trio.Event()
        self.counts: Counter[str] = Counter()
        """Messages by what became of them: `sent`, `waited` (a part of those), `lost`."""
        if not address:
            return
        if address[0] not in "/@":
            log.get().warning("manager.unreachable", address=address, reason="neither a path nor @name")
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            sock.close()
            log.get().warning("manager.unreachable", address=address, reason=error.strerror)
        else:
            self._sock = sock

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Take NOTIFY_SOCKET out of `environ`: it is for this process, not for those that it starts."""
        return cls(environ.pop(VARIABLE, None))

    @property
    def connected(self) -> bool:
        """Whether there is a manager to tell."""
        return self._sock is not None

    def ready(self, status: str = "") -> None:
        """The start, or a reload, is over."""
        self._tell(messages.READY, status)

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._tell(messages.reloading(time.monotonic_ns() // 1000))

    def stopping(self, status: str = "") -> None:
        """The end has begun."""
        self._tell(messages.STOPPING, status)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(messages.status(text))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send(messages.WATCHDOG)

    def store(self, name: str, fd: int, *, poll: bool = True) -> None:
        """Have a duplicate of `fd` kept for the next process (see `messages.store`)."""
        self._send(messages.store(name, poll=poll), fd)

    def remove(self, name: str) -> None:
        """Have what is kept under `name` closed."""
        self._send(messages.remove(name))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send on what had to wait, for ever."""
        task_status.started()
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._waiting and self._sock is not None:
                await trio.lowlevel.wait_writable(self._sock)
                if not self._send_waiting():
                    await trio.sleep(RETRY_S)

    def settle(self, timeout_s: float) -> bool:
        """Block until the manager has seen all that was sent (sd_notify_barrier(3)): for the end of a
        process, when nothing else runs any more.

        False: it hadn't within `timeout_s` seconds, or there is none, or it is older than systemd 246.
        """
        if self._sock is None:
            return False
        deadline = time.monotonic() + timeout_s
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._send(messages.BARRIER, theirs)
            os.close(theirs)
            hung_up, writable = select.poll(), select.poll()
            hung_up.register(ours, 0)
            writable.register(self._sock, select.POLLOUT)
            while (left_s := deadline - time.monotonic()) > 0:
                if self._waiting:
                    if writable.poll(left_s * 1e3) and not self._send_waiting():
                        time.sleep(min(left_s, RETRY_S))
                elif hung_up.poll(left_s * 1e3):  # nobody has the write end any more
                    return True
            return False
        finally:
            os.close(ours)

    def close(self) -> None:
        """No more notifications; what waits is lost."""
        self.counts["lost"] += len(self._waiting)
        while self._waiting:
            self._discard(self._waiting.popleft())
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _tell(self, message: bytes, status: str = "") -> None:
        self._send(b"\n".join([message, messages.status(status)]) if status else message)

    def _send(self, message: bytes, fd: int = -1) -> None:
        if self._sock is None:
            return
        if not self._waiting and self._try(_Waiting(message, fd)):
            return
        if len(self._waiting) >= MAX_WAITING:
            self.counts["lost"] += 1
            return
        try:
            # A duplicate: the caller may close its own before this one's turn has come, and the number may by
            # then be another's.
            self._waiting.append(_Waiting(message, os.dup(fd) if fd >= 0 else -1))
        except OSError as error:  # no descriptors left
            self._lose(error)
            return
        self.counts["waited"] += 1
        self._more.set()

    def _send_waiting(self) -> bool:
        """Send what waits, as far as it goes. Whether all went."""
        while self._waiting:
            if not self._try(self._waiting[0]):
                return False
            self._discard(self._waiting.popleft())
        return True

    def _try(self, one: _Waiting) -> bool:
        """Whether the message is done with: sent, or lost for good. False: later."""
        if self._sock is None:
            return True
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fd]))] if one.fd >= 0 else []
        try:
            self._sock.sendmsg([one.message], rights, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno in BUSY:
                return False
            self._lose(error)
            return True
        self.counts["sent"] += 1
        return True

    def _lose(self, error: OSError) -> None:
        self.counts["lost"] += 1
        if self.counts["lost"] == 1:
            log.get().warning("manager.lost", reason=error.strerror)

    @staticmethod
    def _discard(one: _Waiting) -> None:
        if one.fd >= 0:
            os.close(one.fd)
