"""Feeds the manager's watchdog for as long as the process does its work, and not merely exists.

A sign of life takes the whole way: a timer in trio's loop rings an eventfd that lies in the data plane's own
epoll, the poller's task serves it among the sockets, sends what its batch gathered, and only then is the
manager told. A loop that hangs, a poller that died or spins in a handler: no food, and the manager kills and
starts anew (WatchdogSec=).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial

import trio

from relayd.manager.manager import Manager
from relayd.manager.notifier import Notifier
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.services import Service

FEEDS_PER_PERIOD = 3
"""So that one that comes late isn't the end: sd_watchdog_enabled(3) advises two."""


class Pulse:
    """Proves that a poller serves events: `beat` returns when it has served one."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._rung = False
        self._beaten = trio.Event()
        poller.add(self._fd, self._on_ring)
        poller.after_batch.append(self._after_batch)

    async def beat(self) -> None:
        """Ring, and wait until the poller has served it and sent what that batch gathered."""
        self._beaten = trio.Event()
        os.eventfd_write(self._fd, 1)
        await self._beaten.wait()

    def close(self) -> None:
        """Leave the poller."""
        self._poller.after_batch.remove(self._after_batch)
        self._poller.remove(self._fd)
        os.close(self._fd)

    def _on_ring(self, _mask: int) -> None:
        os.eventfd_read(self._fd)
        self._rung = True

    def _after_batch(self) -> None:
        if self._rung:
            self._rung = False
            self._beaten.set()
            self._poller.yield_soon()


async def feed(
    notifier: Notifier,
    pulse: Pulse,
    period_s: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tell the manager that we live, thrice in `period_s` seconds, whenever the data plane has shown it."""
    task_status.started()
    every_s = period_s / FEEDS_PER_PERIOD
    while True:
        with trio.move_on_after(every_s) as patience:
            await pulse.beat()
        if patience.cancelled_caught:
            log.get().error("watchdog.withheld", reason="the data plane serves no events", period_s=period_s)
            continue
        notifier.alive()
        await trio.sleep(every_s)


def watchdog_services(manager: Manager, poller: Poller, stack: ExitStack) -> list[Service]:
    """What feeds the manager's watchdog with the pulse of `poller`: nothing where it has none.

    `stack` takes the pulse out of the poller again."""
    if manager.watchdog_period_s is None:
        return []
    pulse = Pulse(poller)
    stack.callback(pulse.close)
    return [Service(name="watchdog", run=partial(feed, manager.notifier, pulse, manager.watchdog_period_s))]
