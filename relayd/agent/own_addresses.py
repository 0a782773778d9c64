"""Where this end may be reached, as far as its peers are told: its own addresses, and what STUN servers see.

Asked from WireGuard's own port: at start, when an address or a default route changes (at once, by netlink),
when the relay's link is back, and every REFRESH_S, since a NAT may map the port anew without telling
anybody. What STUN doesn't answer this time stays as it was; own addresses are told before it has answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from math import inf

import trio

from relayd.agent.discovery.stun_answers import Address, StunAnswers, ask_servers
from relayd.agent.discovery.stun_client import NoAnswerError, StunClient
from relayd.agent.discovery.stun_look import fresh_client
from relayd.agent.discovery.stun_servers import Resolver, StunServer
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel import events, links
from relayd.kernel.addresses import HostAddress, host_addresses
from relayd.observe import log
from relayd.paths.acquaintance import Local
from relayd.paths.candidates import Candidate, LocalAddress, chosen, counts, host_candidates, make
from relayd.paths.nat_class import SYMMETRIC, Prediction, predict
from relayd.wire.sealed import full_size_body_bytes

REFRESH_S = 60.0
"""Between two questions when nothing happened: a third of what RFC 4787 has mappings live without traffic."""

SETTLE_S = 0.1
"""After news from the kernel, for those that come with them."""

COUNT_EVERY_S = 5.0
"""As often as a pair is checked at most; others' flows through the NAT count too, but not by dozens
meanwhile."""

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
        hold_s: float,
        birthday: bool = False,
        demanded_s: Callable[[float, bool], float] = lambda hold_s, behind_nat: hold_s if behind_nat else inf,
        more: Callable[[], Sequence[Candidate]] = list,
        moved: Callable[[], None] = lambda: None,
        wanted: Callable[[], bool] = lambda: False,
        asked: Callable[[StunAnswers], None] = lambda _said: None,
        versions: Sequence[int] = (4, 6),
        fresh: Callable[[], AbstractAsyncContextManager[tuple[object, StunClient]]] = fresh_client,
        resolver: Resolver | None = None,
        watch: Callable[[Callable[[], None]], Awaitable[None]] = events.watch_addresses,
        addresses: Callable[[], Awaitable[list[HostAddress]]] = host_addresses,
    ) -> None:
        """`interface` is WireGuard's, whose own addresses don't count. `port`: what WireGuard listens on now.
        `connected`: whether the relay is. `only`: the interfaces that count; empty: all that aren't virtual.
        `hold_s`: how often a NAT's mapping is held. `demanded_s` has the last word on how often an idle path
        needs a datagram, of that and of whether there is a NAT. `more`: candidates that others found out, by
        a gateway's port mapping for one. `moved` is called when an own address came or went. `wanted`:
        whether a prediction of a NAT's next port is of use to anybody now. `asked` is told what STUN servers
        said, each time. `versions`: of IP, that `client` can send with. `fresh` gives a client on a port of
        its own."""
        self._more, self._moved, self._asked, self._versions = more, moved, asked, tuple(versions)
        self._interface, self._client, self._servers = interface, client, tuple(servers)
        self._publish, self._port, self._connected, self._only = publish, port, connected, only
        self._hold_s, self._demanded_s, self._wanted, self._fresh = hold_s, demanded_s, wanted, fresh
        self._resolver = resolver if resolver is not None else Resolver()
        self._watch, self._addresses = watch, addresses
        self._news, self._to_ask = trio.Event(), trio.Event()
        self._asking = trio.CancelScope()
        """Of the question to STUN servers that is under way."""
        self._hosts: list[Candidate] | None = None
        """None: the host's addresses haven't been read yet."""
        self._mapped: dict[int, list[Candidate]] = {}
        """By IP version, what STUN saw last."""
        self._places: dict[int, frozenset[Endpoint | Address]] = {}
        """Likewise, as far as another one means that we have moved."""
        self._prediction: Prediction | None = None
        self._log = log.get(interface=interface)
        self.local = Local(shares_port=False, birthday=birthday)
        self.problem = ""
        self.symmetric = False
        """Whether the NAT maps each destination anew, over IPv4."""

    async def _follow_counting(self) -> None:
        """What a NAT that counts gives out next is old in seconds: while it is wanted, look where it is."""
        while True:
            await trio.sleep(COUNT_EVERY_S)
            if self._prediction is not None and self._wanted():
                await self._count(self._prediction)

    async def _count(self, known: Prediction) -> None:
        """Ask once from a port of its own: the mapping that it gets is the counter."""
        for server in self._servers:
            try:
                target = (await self._resolver.resolve(server))[0]
                async with self._fresh() as (_port, client):
                    mapped = (await client.ask(target, give_up_s=COUNT_EVERY_S / 2)).mapped
            except (OSError, NoAnswerError) as error:
                self._log.debug("paths.uncounted", server=str(server), error=str(error))
                continue
            following = known.following(mapped)
            if following is not None:
                self._prediction = following
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

    def take(self, *, only: Collection[str], hold_s: float, birthday: bool) -> None:
        """Tell of these interfaces alone, if any, hold a NAT's mapping so often, and use the birthday method
        or not, from now on."""
        if (only, hold_s, birthday) != (self._only, self._hold_s, self.local.birthday):
            self._only, self._hold_s = only, hold_s
            self.local = replace(self.local, birthday=birthday)
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
            nursery.start_soon(self._keep_asking)
            task_status.started()
            while True:
                self._news = trio.Event()
                await self._look_at_host()  # others wait for what STUN says, whatever comes of this
                self._to_ask.set()
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

    async def _keep_asking(self) -> None:
        """Ask STUN servers whenever the host was looked at. On the side: where none of them answers that
        takes seconds, and the next address isn't told any later for it."""
        while True:
            await self._to_ask.wait()
            self._to_ask = trio.Event()
            with trio.CancelScope() as self._asking:
                moved = await self._ask()
                self._tell(self.local, moved=moved)

    async def _look_at_host(self) -> None:
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
        before, self._hosts = self._hosts, hosts
        # From none to one too: who changes networks has none in between.
        moved = before is not None and {one.endpoint for one in hosts} != {one.endpoint for one in before}
        if moved:
            self._asking.cancel()  # what it asks from has gone, maybe
            self._places.clear()
            self._mapped.clear()  # seen from an address that isn't ours any more, maybe
            self._prediction, self.symmetric = None, False
            self._moved()
        base = replace(
            self.local,
            own=frozenset((*(one.address for one in outer), *inner)),
            # A peer's link-local candidate is tried on each of these.
            links=tuple(
                sorted(
                    {one.interface for one in facts if one.address.is_link_local and counts(one, self._only)}
                )
            ),
            full_body_bytes=full_size_body_bytes(link.mtu)
            if link is not None
            else self.local.full_body_bytes,
        )
        self._tell(base, moved=moved)

    async def _ask(self) -> bool:
        """Ask the STUN servers. Whether a mapping that was known is another one now."""
        said = await ask_servers(self._client, self._resolver, self._servers, versions=self._versions)
        now, changed = trio.current_time(), False
        for version in (4, 6):
            seen = said.observations(version)
            if not seen:
                continue
            mapping, places = said.outline(version)
            known = self._places.get(version)
            changed |= known is not None and known.isdisjoint(places)
            self._places[version] = places
            self._mapped[version] = [
                make(
                    "srflx",
                    one.mapped,
                    base=one.local,
                    server=str(one.server),
                    found_at=now,
                    method="STUN",
                )
                for one in said.seen(version)
                if one.mapped is not None
            ]
            if version == 4:
                self._prediction = predict(seen)
                self.symmetric = mapping in SYMMETRIC
        self._asked(said)
        return changed

    def _tell(self, base: Local, *, moved: bool) -> None:
        mapped = [one for some in self._mapped.values() for one in some]
        behind_nat = not mapped or any(one.endpoint.address not in base.own for one in mapped)
        self.local = replace(
            base,
            # What a symmetric NAT gave for a STUN server isn't what a peer gets, but one has to be told: a
            # peer whose own NAT filters by address alone opens it by a Ping there.
            candidates=tuple(
                chosen([*(self._hosts or ()), *self._more(), *(mapped[:1] if self.symmetric else mapped)])
            ),
            hold_s=self._demanded_s(self._hold_s, behind_nat),
            prediction=self._prediction,
            symmetric=self.symmetric,
        )
        self._publish(self.local, moved=moved)
