"""What to do when the process or the host has no file descriptors left: turn newcomers away, and say so.

A connection that can't be accepted stays in the listener's queue, and its agent waits for nothing. So one
descriptor is kept to be given up at that moment: with it the connection is accepted, and closed.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable

from relayd.observe import log

SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What accept() says when there is a connection and no means to have it (accept(2))."""


CALM_S = 30.0
"""Without a shortage for so long, there is enough again: before, an accept() may go well by chance."""


class Spare:
    """One descriptor that stands for nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._clock = clock
        self._short_at: float | None = None

    def short(self, error: OSError) -> None:
        """accept() failed with one of SCARCE. Said once, until there is enough again."""
        first = self._short_at is None
        self._short_at = self._clock()
        if first:
            log.get().error(
                "relay.descriptors_exhausted",
                reason=error.strerror,
                meaning="new connections are turned away, and those that there are stay",
                hint="LimitNOFILE= of the unit, or max_connections below it",
            )

    def enough(self) -> None:
        """accept() went well."""
        if self._short_at is not None and self._clock() - self._short_at >= CALM_S:
            self._short_at = None
            log.get().info("relay.descriptors_suffice")

    def turn_away(self, listener: socket.socket) -> bool:
        """Close the connection that waits longest in `listener`, which doesn't block. -> whether there was
        one"""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        try:
            listener.accept()[0].close()
        except OSError:  # nobody any more, or another thread or process took the descriptor
            return False
        finally:
            try:
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # the next one that is turned away may leave us one
                self._fd = -1
        return True

    def close(self) -> None:
        """Give it back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
