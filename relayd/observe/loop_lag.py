"""How long the event loop was held up, measured where it happens: between two waits for I/O.

trio calls its instruments around every wait. What lies between the end of one wait and the start of the
next is work, and whoever wants the loop meanwhile waits for all of it. Exact, where a task that sleeps
and looks at the clock would miss what falls between its ticks, and free while nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

WINDOW_S = 60.0


class LoopLag(trio.abc.Instrument):
    """The longest stretch of work without a wait, over the last one to two windows of WINDOW_S seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._woke_at = self._window_from = clock()
        self._worst_s = self._worst_before_s = 0.0

    def after_io_wait(self, timeout: float) -> None:
        """trio has waited for I/O: work begins."""
        self._woke_at = self._clock()

    def before_io_wait(self, timeout: float) -> None:
        """The work is done: trio waits again."""
        now = self._clock()
        self._turn_window(now)
        self._worst_s = max(self._worst_s, now - self._woke_at)

    def max_s(self) -> float:
        """The longest, in seconds."""
        self._turn_window(self._clock())
        return max(self._worst_s, self._worst_before_s)

    def _turn_window(self, now: float) -> None:
        elapsed = now - self._window_from
        if elapsed < WINDOW_S:
            return
        self._worst_before_s = self._worst_s if elapsed < 2 * WINDOW_S else 0.0
        self._worst_s = 0.0
        self._window_from = now
