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

from relayd import marks
from relayd.errors import HostError
from relayd.join import JoinString
from relayd.kernel import events
from relayd.kernel.device import Interface
from relayd.kernel.firewall import legacy_size
from relayd.kernel.host_rules import Applied, HostRules, Inventory, LoopError
from relayd.kernel.routing import Address, Hop
from relayd.observe import log

EVERY_S = 30.0
"""For what nobody tells of, whatever it may be."""

SETTLE_S = 0.2
"""After news, for those that come with them: `ip route flush` is one piece of news a route."""

POLL_S = 1.0
"""Legacy iptables and the kernel's switches tell nobody of changes; both are cheap to ask for."""

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
        keep_interface: Callable[[], Awaitable[Applied]] | None = None,
        resolve: Callable[[Sequence[JoinString]], Awaitable[Sequence[Address]]] = addresses_of,
        watch: Callable[[str, Callable[[], None], Callable[[], None]], Awaitable[None]] = events.watch,
        every_s: float = EVERY_S,
    ) -> None:
        """`keep_interface` puts the interface itself right; None: it isn't ours."""
        self.inventory = inventory
        self._host_problems: list[str] = []
        self._firewall_problems: list[str] = []
        self._rules, self._relays, self._keep_interface = rules, relays, keep_interface
        self._resolve, self._watch, self._every_s = resolve, watch, every_s
        self._addresses: list[Address] = []
        self._settings: object = None
        """Of the interface, at its last read."""
        self._news = trio.Event()
        self._firewall_news = trio.Event()
        """The firewall is worth a look: to list its chains is three processes, or six."""
        self._turn = trio.Lock()
        self._log = log.get(interface=inventory.interface)

    @property
    def problems(self) -> list[str]:
        """What couldn't be done at the last look."""
        return list(dict.fromkeys((*self._host_problems, *self._firewall_problems)))

    async def begin(self) -> None:
        """The first look, at start. Raises LoopError or HostError for what an agent can't work without."""
        await self._resolve_again()
        if not self.inventory.mark_rule and await self._rules.has_mark_rule():
            # Somebody needed it, most likely this agent in a life before: it can't be told any more.
            self.inventory = replace(self.inventory, mark_rule=True)
        done, firewall = await self._apply(), await self._apply_firewall()
        for line in (*done.written, *firewall.written):
            self._log.info("host.changed", what=line)
        self._tell(host=done.problems, firewall=firewall.problems)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again and again, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, self.inventory.interface, self._wake, self._wake_for_firewall)
            nursery.start_soon(self._poll)
            nursery.start_soon(self._keep_firewall)
            nursery.start_soon(self._keep_resolved)
            task_status.started()
            while True:
                with trio.move_on_after(self._every_s):
                    await self._news.wait()
                await trio.sleep(SETTLE_S)
                self._news = trio.Event()
                await self.look()

    async def _keep_resolved(self) -> None:
        """By itself too: while the name server is silent, what somebody removes is back as soon as ever."""
        while True:
            await trio.sleep(self._every_s)
            known = self._addresses
            await self._resolve_again()
            if self._addresses != known:
                self._wake()

    async def _keep_firewall(self) -> None:
        """By itself: while others hold iptables' lock, rules and peers that are deleted don't wait for it."""
        while True:
            with trio.move_on_after(self._every_s):
                await self._firewall_news.wait()
            await trio.sleep(SETTLE_S)
            self._firewall_news = trio.Event()
            done = await self._apply_firewall()
            self._tell(firewall=done.problems)
            for line in done.written:
                self._log.warning("host.restored", what=line)

    async def look_up(self, addresses: Sequence[Address]) -> Sequence[Hop | None]:
        """Where WireGuard's own packets would go, an answer an address. Raises HostError."""
        return await self._rules.routing.look_up(addresses, mark=marks.FWMARK)

    async def look(self) -> None:
        """Put right what is wrong."""
        async with self._turn:
            for line in await self._put_right(self._keep_interface):
                self._log.warning("host.restored", what=line)

    async def follow(
        self,
        inventory: Inventory,
        relays: Sequence[JoinString],
        *,
        now: Callable[[], Awaitable[Applied]],
        later: Callable[[], Awaitable[Applied]],
    ) -> None:
        """The host is to be otherwise: `inventory`, and the interface as `now` puts it, and `later` keeps it.

        What can't be done is told and tried again, as at every look.
        """
        async with self._turn:
            moved = tuple(relays) != tuple(self._relays)
            self.inventory = replace(inventory, mark_rule=inventory.mark_rule or self.inventory.mark_rule)
            self._relays, self._keep_interface = relays, later
            for line in await self._put_right(now):
                self._log.info("host.changed", what=line)
        if moved:  # a name may take seconds: peers that are gone don't wait for it
            await self._resolve_again()
            await self.look()

    async def _put_right(self, keep_interface: Callable[[], Awaitable[Applied]] | None) -> list[str]:
        done = Applied()
        try:
            if keep_interface is not None:
                done.add(await keep_interface())
            done.add(await self._apply())
        except HostError as error:
            done.problems.append(str(error))
        self._tell(host=done.problems)
        return done.written

    async def _apply(self) -> Applied:
        """With the rule that keeps the relay's connection out of the tunnel, if that is what it takes."""
        wanted = replace(self.inventory, firewall=False)
        try:
            return await self._rules.apply(wanted, self._addresses)
        except LoopError as error:
            if self.inventory.mark_rule:
                raise
            wanted = replace(wanted, mark_rule=True)
            done = await self._rules.apply(wanted, self._addresses)  # raises if that doesn't help
            self._log.warning("host.rule_needed", reason=error)
            self.inventory = replace(self.inventory, mark_rule=True)
            return done

    async def _apply_firewall(self) -> Applied:
        return await self._rules.apply_firewall() if self.inventory.firewall else Applied()

    def _wake(self) -> None:
        self._news.set()
        if self._firewall_problems:  # what was wrong is looked at as often as the rest
            self._firewall_news.set()

    def _wake_for_firewall(self) -> None:
        self._firewall_news.set()

    async def _resolve_again(self) -> None:
        found = await self._resolve(self._relays)
        self._addresses = list(found) or self._addresses  # a name server that is away changes no address

    def interface_read(self, interface: Interface) -> None:
        """The interface as it is now: the reconciler reads it all the time. If it isn't as it was at the
        last read, somebody (perhaps the agent itself) has changed it, and a look follows."""
        if self._keep_interface is None:
            return
        settings = _settings_of(interface)
        if self._settings is not None and settings != self._settings:
            self._wake()
        self._settings = settings

    async def _poll(self) -> None:
        seen = self._polled()
        while True:
            await trio.sleep(POLL_S)
            now = self._polled()
            if now[0] != seen[0]:
                self._wake_for_firewall()
            if now[1] != seen[1]:
                self._wake()
            seen = now

    def _polled(self) -> tuple[object, object]:
        """Of the firewall and of the switches, what is to be compared with itself a moment later."""
        firewall = legacy_size() if self.inventory.firewall else ()
        try:
            wrong = self._rules.sysctls.wrong(self.inventory.sysctls)
        except HostError:  # the look tells of it
            wrong = []
        return firewall, wrong

    def _tell(self, *, host: list[str] | None = None, firewall: list[str] | None = None) -> None:
        """These are the problems now. None: no news of those."""
        before = self.problems
        self._host_problems = self._host_problems if host is None else host
        self._firewall_problems = self._firewall_problems if firewall is None else firewall
        for problem in self.problems:
            if problem not in before:
                self._log.error("host.wrong", problem=problem)
        if before and not self.problems:
            self._log.info("host.right")


def _settings_of(interface: Interface) -> object:
    """What nobody but its owner changes: not endpoints, handshakes and counters."""
    return (
        interface.public_key,
        interface.listen_port,
        interface.fwmark,
        {key: (peer.allowed_ips, peer.keepalive_s) for key, peer in interface.peers.items()},
    )
