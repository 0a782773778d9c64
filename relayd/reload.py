"""What SIGHUP does: read the configuration again, apply what can be, say what needs a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import trio

from relayd.config import AgentConfig, RelayConfig
from relayd.config.changes import applied, changes
from relayd.config.settings import AGENT, RELAY
from relayd.errors import ConfigError, HostError
from relayd.manager.notifier import Notifier
from relayd.observe import log
from relayd.signals import Signals


class Reload:
    """The configuration that is in force, and where a new one comes from."""

    def __init__(
        self,
        name: str,
        config: Any,
        again: Callable[[], Any] | None,
        signals: Signals,
        notifier: Notifier,
    ) -> None:
        """`name` is the noun of its events. `again` reads it all anew: flags, variables, file."""
        self.config = config
        self._name, self._again, self._signals, self._notifier = name, again, signals, notifier
        self._turn = trio.Lock()

    async def now(self) -> None:
        """Do it. The manager hears when it begins and when it is over; one at a time."""
        async with self._turn:
            log.get().info(f"{self._name}.reload_requested")
            self._notifier.reloading()
            try:
                await self._configure()
                for read_again in self._signals.on_reload:
                    read_again()
            finally:
                self._notifier.ready()

    async def _configure(self) -> None:
        if not isinstance(self.config, RelayConfig | AgentConfig) or self._again is None:
            return
        try:
            new = await trio.to_thread.run_sync(self._again)
        except (ConfigError, HostError) as error:
            meaning = "the configuration of before is in force"
            log.get().error(f"{self._name}.config_refused", reason=str(error), meaning=meaning)
            return
        role = RELAY if isinstance(self.config, RelayConfig) else AGENT
        found = changes(role, self.config, new)
        if found.live:
            self.config = applied(role, self.config, new)
            log.configure(self.config.log)
            for use in self._signals.on_config:
                use(self.config)
        log.get().info(f"{self._name}.reloaded", changed=_spoken(found.live))
        if found.restart:
            log.get().warning(f"{self._name}.restart_needed", settings=_spoken(found.restart))


def _spoken(fields: Iterable[str]) -> list[str]:
    """Names that an operator knows: of two fields that no setting has, the tables of the file."""
    return [{"owned": "[interface]", "peers": "[[peer]]"}.get(name, name) for name in fields]
