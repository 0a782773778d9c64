"""All that a long-lived process has of its service manager, in one object."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, MutableMapping

from relayd.errors import ConfigError
from relayd.manager.notifier import Notifier
from relayd.manager.passed import Passed, take_passed


class Manager:
    """The manager's end of things: who to tell, what it passed, how often it wants a sign of life."""

    def __init__(
        self,
        notifier: Notifier,
        passed: Iterable[Passed] = (),
        *,
        watchdog_period_s: float | None = None,
        store_limit: int | None = None,
    ) -> None:
        self.notifier = notifier
        self._passed = list(passed)
        self.watchdog_period_s = watchdog_period_s
        self.store_limit = store_limit
        """Descriptors that the manager keeps (FDSTORE, systemd 254); None: it doesn't say."""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Manager:
        """As systemd(1) tells it; takes its variables out of `environ`. Raises ConfigError."""
        try:
            passed = take_passed(environ)
            period_s = watchdog_period_s(environ)
            limit = environ.pop("FDSTORE", None)
            store_limit = int(limit) if limit is not None else None
        except ValueError as error:
            raise ConfigError(str(error), source="environment") from error
        return cls(
            Notifier.from_environment(environ), passed, watchdog_period_s=period_s, store_limit=store_limit
        )

    @classmethod
    def none(cls) -> Manager:
        """Nobody: as of a process that a person started."""
        return cls(Notifier(None))

    def take(self, *, prefix: str = "", without: str | None = None) -> list[Passed]:
        """The passed descriptors whose name begins with `prefix` and not with `without`; they are the
        caller's from now on."""
        taken = [
            one
            for one in self._passed
            if one.name.startswith(prefix) and not (without and one.name.startswith(without))
        ]
        self._passed = [one for one in self._passed if one not in taken]
        return taken

    def close(self) -> None:
        """Close what nobody took, and the line."""
        for one in self._passed:
            os.close(one.fd)
        self._passed = []
        self.notifier.close()


def watchdog_period_s(environ: Mapping[str, str], *, pid: int | None = None) -> float | None:
    """How long the manager waits for a sign of life, in seconds; None: for ever, or it isn't us it watches.

    `pid` is our own unless given. Raises ValueError when the variables aren't numbers.
    """
    period_us, whose = environ.get("WATCHDOG_USEC"), environ.get("WATCHDOG_PID")
    if not period_us or (whose and int(whose) != (os.getpid() if pid is None else pid)):
        return None
    return int(period_us) / 1e6 or None
