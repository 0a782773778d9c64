"""Where this end may be reached, as far as its peers are told: its own addresses, and what STUN servers see.

Asked from WireGuard's own port: at start, when an address or a default route changes (at once, by netlink),
when the relay's link is back, and every REFRESH_S, since a NAT may map the port anew without telling
anybody. What STUN doesn't answer this time stays as it was; own addresses are told before it has answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import pairwise
from math import inf

import trio

from relayd.agent.discovery.stun_client import Answer, NoAnswerError, StunClient
from relayd.agent.discovery.stun_look import fresh_client
from relayd.agent.discovery.stun_servers import Resolver, StunServer
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel import events, links
from relayd.kernel.addresses import HostAddress, host_addresses
from relayd.observe import log
from relayd.paths.acquaintance import Local
from relayd.paths.candidates import Candidate, LocalAddress, chosen, host_candidates, make
from relayd.wire.sealed import full_size_body_bytes
from relayd.wire.sealed_messages import MAX_PREDICTED

REFRESH_S = 60.0
"""Between two questions when nothing happened: a third of what RFC 4787 has mappings live without traffic."""

SETTLE_S = 0.1
"""After news from the kernel, for those that come with them."""

HOLD_S = 10.0
"""Between two datagrams that hold a NAT's mapping: the shortest-lived in the field are gone after 20 to 30
s."""

PACE_S = 0.002
"""Between two questions: in the order of asking, a NAT that counts its ports up is seen counting."""

COUNT_EVERY_S = 5.0
"""As often as a pair is checked at most; others' flows through the NAT count too, but not by dozens
meanwhile."""

MAX_STEP = 64
"""Ports between two mappings, past which a NAT isn't counting but drawing."""

Publish = Callable[..., None]
"""`publish(local, moved=...)`: `path_prober.PathProber.localize`."""


class OwnAddresses:
    """What is known of this end, and the task that keeps it true."""

    def __init__(
        self,
        interface: str,
        *,
        client: StunClient,
        servers: Sequence[StunServer],
        publish: Publish,
        port: Callable[[], int],
        connected: Callable[[], bool],
        only: Collection[str] = (),
        hold_s: float = HOLD_S,
        more: Callable[[], Sequence[Candidate]] = list,
        moved: Callable[[], None] = lambda: None,
        wanted: Callable[[], bool] = lambda: False,
        fresh: Callable[[], AbstractAsyncContextManager[tuple[object, StunClient]]] = fresh_client,
        resolver: Resolver | None = None,
        watch: Callable[[Callable[[], None]], Awaitable[None]] = events.watch_addresses,
        addresses: Callable[[], Awaitable[list[HostAddress]]] = host_addresses,
    ) -> None:
        """`interface` is WireGuard's, whose own addresses don't count. `port`: what WireGuard listens on now.
        `connected`: whether the relay is. `only`: the interfaces that count; empty: all that aren't
        virtual. `more`: candidates that others found out, by a gateway's port mapping for one. `moved` is
        called when an own address came or went. `wanted`: whether a prediction of a NAT's next port is of
        use to anybody now. `fresh` gives a client on a port of its own."""
        self._more, self._moved = more, moved
        self._interface, self._client, self._servers = interface, client, tuple(servers)
        self._publish, self._port, self._connected, self._only = publish, port, connected, only
        self._hold_s, self._wanted, self._fresh = hold_s, wanted, fresh
        self._resolver = resolver if resolver is not None else Resolver()
        self._watch, self._addresses = watch, addresses
        self._news = trio.Event()
        self._hosts: list[Candidate] = []
        self._mapped: dict[int, list[Candidate]] = {}
        """By IP version, what STUN saw last."""
        self._prediction: tuple[Endpoint, int, int] | None = None
        self._log = log.get(interface=interface)
        self.local = Local(shares_port=False)
        self.problem = ""
        self.symmetric = False
        """Whether the NAT maps each destination anew, over IPv4."""

    async def _follow_counting(self) -> None:
        """What a NAT that counts gives out next is old in seconds: while it is wanted, look where it is."""
        while True:
            await trio.sleep(COUNT_EVERY_S)
            if self._prediction is not None and self._wanted():
                await self._count(self._prediction)

    async def _count(self, known: tuple[Endpoint, int, int]) -> None:
        """Ask once from a port of its own: the mapping that it gets is the counter."""
        _, step, many = known
        for server in self._servers:
            try:
                target = (await self._resolver.resolve(server))[0]
                async with self._fresh() as (_port, client):
                    mapped = (await client.ask(target, give_up_s=COUNT_EVERY_S / 2)).mapped
            except (OSError, NoAnswerError) as error:
                self._log.debug("paths.uncounted", server=str(server), error=str(error))
                continue
            if mapped.address.version == 4 and 1 <= mapped.port + step <= 65535:
                self._prediction = (Endpoint(mapped.address, mapped.port + step), step, many)
                self._tell(self.local, moved=False)
            return

    def look_again(self) -> None:
        """Something happened: ask at once."""
        self._news.set()

    def mapped_ports(self) -> list[int]:
        """What a NAT that maps each destination anew gave for WireGuard's port, in the order of asking; empty
        where there is none."""
        return [one.endpoint.port for one in self._mapped.get(4, ())] if self.symmetric else []

    def use_servers(self, servers: Sequence[StunServer]) -> None:
        """These are the STUN servers from now on."""
        if tuple(servers) != self._servers:
            self._servers = tuple(servers)
            self.look_again()

    def take(self, *, only: Collection[str], hold_s: float) -> None:
        """Tell of these interfaces alone, if any, and hold a NAT's mapping so often, from now on."""
        if (only, hold_s) != (self._only, self._hold_s):
            self._only, self._hold_s = only, hold_s
            self.look_again()

    def tell(self) -> None:
        """`more` has something else to say now."""
        self._tell(self.local, moved=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it true until cancelled. Ready at once: nobody waits for a STUN server."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, self.look_again)
            nursery.start_soon(self._follow_relay)
            nursery.start_soon(self._follow_counting)
            task_status.started()
            while True:
                self._news = trio.Event()
                await self._look()
                with trio.move_on_after(REFRESH_S):
                    await self._news.wait()
                    await trio.sleep(SETTLE_S)

    async def _follow_relay(self) -> None:
        """The relay's link came back: the way to it, and so our address, may be another one."""
        connected = True
        while True:
            if self._connected() and not connected:
                self.look_again()
            connected = self._connected()
            await trio.sleep(1.0)

    async def _look(self) -> None:
        try:
            found = await self._addresses()
            link = await links.find(self._interface)
        except HostError as error:
            if str(error) != self.problem:
                self._log.warning("paths.addresses_unknown", reason=str(error))
            self.problem = str(error)
            return
        self.problem = ""
        now = trio.current_time()
        inner = [one.address for one in found if one.interface == self._interface]
        outer = [one for one in found if one.interface != self._interface]
        facts = [
            LocalAddress(address=one.address, interface=one.interface, kind=one.kind, leads_out=one.leads_out)
            for one in outer
        ]
        hosts = host_candidates(facts, self._port(), only=self._only, now=now)
        moved = bool(self._hosts) and {one.endpoint for one in hosts} != {one.endpoint for one in self._hosts}
        self._hosts = hosts
        if moved:
            self._mapped.clear()  # seen from an address that isn't ours any more, maybe
            self._moved()
        base = replace(
            self.local,
            own=frozenset((*(one.address for one in outer), *inner)),
            links=tuple(sorted({one.interface for one in outer if one.address.is_link_local})),
            full_body_bytes=full_size_body_bytes(link.mtu)
            if link is not None
            else self.local.full_body_bytes,
        )
        self._tell(base, moved=moved)
        if await self._ask():
            self._tell(self.local, moved=True)
        else:
            self._tell(self.local, moved=False)

    async def _ask(self) -> bool:
        """Ask the STUN servers. Whether a mapping that was known is another one now."""
        answers: list[Answer] = []
        found: dict[StunServer, list[Endpoint]] = {}

        async def resolve(server: StunServer) -> None:
            try:
                found[server] = await self._resolver.resolve(server)
            except OSError as error:
                self._log.debug("paths.stun_unresolved", server=str(server), error=str(error))

        # All at once: while DNS is dead, names cost some seconds, and not as often as there are names.
        async with trio.open_nursery() as nursery:
            for server in self._servers:
                nursery.start_soon(resolve, server)
        targets = [target for server in self._servers for target in found.get(server, ())]

        async def one(target: Endpoint) -> None:
            try:
                answers.append(await self._client.ask(target))
            except NoAnswerError as error:
                self._log.debug("paths.stun_unanswered", server=str(target), error=str(error))

        async def all_of(some: Sequence[Endpoint]) -> None:
            async with trio.open_nursery() as nursery:
                for target in some:
                    nursery.start_soon(one, target)
                    await trio.sleep(PACE_S)

        await all_of(targets)
        # A server's second port tells whether each destination gets a mapping of its own.
        second = [
            Endpoint(answer.source.address, answer.said.other.port)
            for answer in answers
            if answer.said.other is not None and answer.said.other.port != answer.source.port
        ]
        more = [one for one in dict.fromkeys(second) if one not in targets]
        await all_of(more)
        return self._learn(answers, [*targets, *more])

    def _learn(self, answers: Sequence[Answer], targets: Sequence[Endpoint]) -> bool:
        now, changed = trio.current_time(), False
        answers = sorted(answers, key=lambda one: targets.index(one.source) if one.source in targets else 0)
        for version in (4, 6):
            of_version = [one for one in answers if one.mapped.address.version == version]
            if not of_version:
                continue
            mapped = list(dict.fromkeys(one.mapped for one in of_version))
            before = {one.endpoint for one in self._mapped.get(version, [])}
            changed |= bool(before) and not before & set(mapped)
            self._mapped[version] = [
                make("srflx", one.mapped, base=one.local, server=str(one.source), found_at=now, method="STUN")
                for one in of_version
            ]
            if version == 4:
                self._prediction = predicted([one.mapped for one in of_version])
                self.symmetric = len(mapped) > 1
        return changed

    def _tell(self, base: Local, *, moved: bool) -> None:
        mapped = [one for some in self._mapped.values() for one in some]
        behind_nat = not mapped or any(one.endpoint.address not in base.own for one in mapped)
        self.local = replace(
            base,
            # What a symmetric NAT gave for a STUN server isn't what a peer gets, but one has to be told: a
            # peer whose own NAT filters by address alone opens it by a Ping there.
            candidates=tuple(
                chosen([*self._hosts, *self._more(), *(mapped[:1] if self.symmetric else mapped)])
            ),
            hold_s=self._hold_s if behind_nat else inf,
            prediction=self._prediction,
        )
        self._publish(self.local, moved=moved)


def predicted(mapped: Sequence[Endpoint]) -> tuple[Endpoint, int, int] | None:
    """What a NAT that maps each destination anew will likely give next: the first mapping, the step, how
    many.

    `mapped`: what it gave for one port, in the order of asking. None: it gives all destinations the same, or
    draws its ports.
    """
    ports = [one.port for one in mapped]
    if len(set(ports)) < 2 or len({one.address for one in mapped}) != 1:
        return None
    steps = {b - a for a, b in pairwise(ports)}
    step = min(steps, key=abs)
    if len(steps) > 2 or step == 0 or any(abs(one) > MAX_STEP or one % step for one in steps):
        return None
    first = mapped[-1].port + step
    if not 1 <= first <= 65535:
        return None
    return Endpoint(mapped[-1].address, first), step, MAX_PREDICTED
