"""The line that `systemctl status` shows of a running process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from relayd.manager.manager import Manager
from relayd.manager.notifier import Notifier
from relayd.services import Service

EVERY_S = 5.0
"""Between two looks: a person's patience, and next to nothing for the manager."""


async def _tell(notifier: Notifier, text: Callable[[], str], *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    told = ""
    while True:
        if (now := text()) != told:
            notifier.status(now)
            told = now
        await trio.sleep(EVERY_S)


def status_services(manager: Manager, text: Callable[[], str]) -> list[Service]:
    """What tells the manager `text()` whenever it has changed: nothing where there is none."""
    if not manager.notifier.connected:
        return []
    return [Service(name="status line", run=partial(_tell, manager.notifier, text))]
