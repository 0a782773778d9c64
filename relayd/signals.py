"""What signals ask of a running process, for its job to act on: the other half of `relayd.process`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio


class Signals:
    """One process's. Without a job that acts on it, SIGTERM stops at once and SIGHUP does too."""

    def __init__(self) -> None:
        self.drain_s = 0.0
        """How long the job may go on after SIGTERM, to end in order: it sets `drained` when it has."""
        self.draining = trio.Event()
        """SIGTERM came, and `drain_s` isn't 0."""
        self.drained = trio.Event()
        self.on_reload: list[Callable[[], None]] = []
        """SIGHUP calls each: read files again, soon. They don't block and don't raise."""
        self.on_config: list[Callable[[Any], None]] = []
        """SIGHUP calls each with the configuration that is in force from now on, if it has changed: only
        fields of settings that are `live` differ. They don't block and don't raise."""
