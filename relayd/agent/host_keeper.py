"""Keeps on the host what relayd added to it: looks every half minute, and at once when the kernel has news.

What is right isn't written again. What somebody removed comes back, with a line in the log; what can't be put
back is said once, and tried again. When the agent ends, all of it stays.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address

import trio

from relayd.errors import HostError
from relayd.join import JoinString
from relayd.kernel import events
from relayd.kernel.firewall import legacy_size
from relayd.kernel.host_rules import Applied, HostRules, Inventory, LoopError
from relayd.kernel.routing import Address
from relayd.observe import log

EVERY_S = 30.0
"""For what the kernel tells nobody."""

SETTLE_S = 0.2
"""After news, for those that come with them: `ip route flush` is one piece of news a route."""

LEGACY_EVERY_S = 1.0
"""Legacy iptables tells nobody of changes; its size is cheap to ask for."""

RESOLVE_S = 5.0
"""For the relay's name. What isn't known then isn't proved now: the next look tries again."""


async def addresses_of(relays: Sequence[JoinString]) -> list[Address]:
    """The relays' addresses, within RESOLVE_S; of a name that can't be looked up now, none."""
    found: dict[Address, None] = {}

    async def look_up(relay: JoinString) -> None:
        try:
            entries = await trio.socket.getaddrinfo(relay.host, relay.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the link tells of it, at each dial
            return
        found.update(dict.fromkeys(ip_address(str(entry[4][0])) for entry in entries))

    with trio.move_on_after(RESOLVE_S):
        async with trio.open_nursery() as nursery:
            for relay in relays:
                nursery.start_soon(look_up, relay)
    return list(found)


class HostKeeper:
    """The inventory of one interface, and the host that it is kept on."""

    def __init__(
        self,
        rules: HostRules,
        inventory: Inventory,
        relays: Sequence[JoinString],
        *,
        keep_interface: Callable[[], Awaitable[list[str]]] | None = None,
        resolve: Callable[[Sequence[JoinString]], Awaitable[Sequence[Address]]] = addresses_of,
        watch: Callable[[str, Callable[[], None]], Awaitable[None]] = events.watch,
        every_s: float = EVERY_S,
    ) -> None:
        """`keep_interface` puts the interface itself right and says what it wrote; None: it isn't ours."""
        self.inventory = inventory
        self.problems: list[str] = []
        """What couldn't be done at the last look."""
        self._rules, self._relays, self._keep_interface = rules, relays, keep_interface
        self._resolve, self._watch, self._every_s = resolve, watch, every_s
        self._addresses: list[Address] = []
        self._news = trio.Event()
        self._log = log.get(interface=inventory.interface)

    async def begin(self) -> None:
        """The first look, at start. Raises LoopError or HostError for what an agent can't work without."""
        await self._resolve_again()
        if not self.inventory.mark_rule and await self._rules.has_mark_rule():
            # Somebody needed it, most likely this agent in a life before: it can't be told any more.
            self.inventory = replace(self.inventory, mark_rule=True)
        done = await self._apply()
        for line in done.written:
            self._log.info("host.changed", what=line)
        self._tell(done.problems)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again and again, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, self.inventory.interface, self._wake)
            nursery.start_soon(self._watch_legacy)
            task_status.started()
            while True:
                with trio.move_on_after(self._every_s) as periodic:
                    await self._news.wait()
                await trio.sleep(SETTLE_S)
                self._news = trio.Event()
                if periodic.cancelled_caught:
                    await self._resolve_again()
                await self.look()

    async def look(self) -> None:
        """Put right what is wrong."""
        problems, written = [], []
        try:
            if self._keep_interface is not None:
                written += await self._keep_interface()
            done = await self._apply()
            written += done.written
            problems = done.problems
        except HostError as error:
            problems = [str(error)]
        for line in written:
            self._log.warning("host.restored", what=line)
        self._tell(problems)

    async def _apply(self) -> Applied:
        """With the rule that keeps the relay's connection out of the tunnel, if that is what it takes."""
        try:
            return await self._rules.apply(self.inventory, self._addresses)
        except LoopError as error:
            if self.inventory.mark_rule:
                raise
            with_rule = replace(self.inventory, mark_rule=True)
            done = await self._rules.apply(with_rule, self._addresses)  # raises if that doesn't help
            self._log.warning("host.rule_needed", reason=error)
            self.inventory = with_rule
            return done

    def _wake(self) -> None:
        self._news.set()

    async def _resolve_again(self) -> None:
        found = await self._resolve(self._relays)
        self._addresses = list(found) or self._addresses  # a name server that is away changes no address

    async def _watch_legacy(self) -> None:
        if not self.inventory.firewall:
            return
        seen = legacy_size()
        while True:
            await trio.sleep(LEGACY_EVERY_S)
            size = legacy_size()
            if size != seen:
                self._wake()
            seen = size

    def _tell(self, problems: list[str]) -> None:
        for problem in problems:
            if problem not in self.problems:
                self._log.error("host.wrong", problem=problem)
        if self.problems and not problems:
            self._log.info("host.right")
        self.problems = problems
