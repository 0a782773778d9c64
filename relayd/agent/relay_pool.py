"""All relays of an agent: one link for each that is needed, and for each peer the one that its frames take.

    wg_proxy -> send -> the peer's route (relay_choice) -> that relay's link
    each link -> on_runs -> wg_proxy

With one relay everything goes straight to its link. With several, the home link is kept up always; a link to
another relay is made when there is something for a peer whose home that is, and goes when it has been idle
for IDLE_S. Frames of a peer take one relay at a time, so they stay in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf

import trio

from relayd import marks
from relayd.agent.handover import Absence, AgentHandover
from relayd.agent.link_settings import LinkSettings
from relayd.agent.relay_choice import Condition, LinkSeen, PeerRoute, homes, order
from relayd.agent.relay_connection import OnRuns
from relayd.agent.relay_link import RelayLink
from relayd.agent.relay_member import Member, run_link
from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.manager.manager import Manager
from relayd.netio.delays import Delays
from relayd.observe import log
from relayd.wire.frames import DATA, HEADER_BYTES, KEYED_BYTES, LENGTH_BYTES
from relayd.wire.identity_frames import Gone, PeerGone

NO_RELAY = JoinString("relay.invalid", marks.RELAY_PORT)
"""Stands for the relay of a mesh that has none: its link never runs, and what is sent there is dropped."""

LOOK_S = 0.5
"""Between two looks at which links are needed; a fault and a peer's absence are looked at at once."""

IDLE_S = 330.0
"""A link that is no home goes when nothing has moved on it for so long: longer than a sender holds it against
a relay that a peer was absent (`relay_choice.GONE_CAP_S`), so that nobody's frames meet a connection that has
just gone."""

LINGER_S = 20.0
"""A replica that its name doesn't lead to any more may be draining, and others still send by it: so long its
link is heard to the end. (config/relay gives a drain 15 s.)"""

MAX_ROUTES = 4096
"""Peers' ways remembered. Past that those go of which no relay has said that the peer is absent: they are
found anew in microseconds, and nodes come and go for as long as an agent runs."""

MakeLink = Callable[[JoinString, PrivateKey, PublicKey | None, OnRuns, Callable[[PeerGone], None]], RelayLink]
"""`make_link(relay, key, home_key, on_runs, on_gone)`: a link that isn't running yet. `key` is ours,
`home_key` that of the node for whose sake it is; None: our own."""


class RelayPool:
    """The relays that an agent is told of. `send` and the callbacks belong to the poller's thread."""

    def __init__(
        self,
        relays: Sequence[JoinString],
        key: PrivateKey,
        make_link: MakeLink,
        *,
        on_runs: OnRuns,
        on_gone: Callable[[PeerGone], None],
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = trio.current_time,
        handover: AgentHandover | None = None,
    ) -> None:
        """`relays` differ in their addresses; all agents of a mesh name them alike. There may be none.
        `handover` has what an earlier process left of its connections, and of where peers are."""
        self.key, self._make_link, self._clock = key, make_link, clock
        """Ours."""
        self._on_runs, self._on_gone, self._idle_s = on_runs, on_gone, idle_s
        self._handover = handover if handover is not None else AgentHandover(Manager.none())
        self._members = {relay.address: Member(relay) for relay in relays or (NO_RELAY,)}
        self._ranked = order(key.public(), tuple(self._members))
        self._home = self._ranked[0]
        self._lingering: list[Member] = []
        """Not among the relays any more, and still heard."""
        self._routes: dict[bytes, PeerRoute] = {}
        self._nursery: trio.Nursery | None = None
        self._news = trio.Event()
        self._past_drops: Counter[str] = Counter()
        self._log = log.get()
        self._only: RelayLink | None = None
        """The one through which all goes, where there is but one."""
        self._settle()
        for one in self._handover.absent:
            # Before the first frame: a relay doesn't say again so soon that it can't reach somebody.
            if one.relay in self._members:
                self._route(one.key).hold(one.relay, self._now() + one.left_s, one.held_s)

    @property
    def home(self) -> RelayLink:
        """The link by which others reach us; while none works, the one that is worth most."""
        return self._link(self._home)

    @property
    def connected(self) -> bool:
        """Whether any relay has let us in."""
        return any(link.connected for link in self._links())

    @property
    def several(self) -> bool:
        """Whether there is more than one relay."""
        return self._only is None

    @property
    def relay_endpoint(self) -> Endpoint | None:
        """Where the connection to the home relay goes to; None: there is none."""
        return self.home.relay_endpoint

    @property
    def delays(self) -> Delays:
        """How long frames waited for the home relay."""
        return self.home.delays

    @property
    def queued_bytes(self) -> int:
        """What waits for relays to take it."""
        return sum(link.queued_bytes for link in self._links())

    def congested(self) -> bool:
        """Whether a relay takes less than it is sent, and half of its queue is full."""
        if self._only is not None:
            return self._only.congested()
        return any(link.congested() for link in self._links())

    def send(self, runs: Sequence[bytes | memoryview], total: int) -> None:
        """Data frames towards their keys: `runs` of whole frames of one size each, `total` bytes together.

        The buffers are used during the call only. Never blocks.
        """
        if self._only is not None:
            self._only.send(runs, total)
            return
        for run in runs:
            if run[LENGTH_BYTES] == DATA:
                self._send_run(run)
            else:  # for the relay itself: ours
                self.home.send((run,), len(run))

    def use(self, settings: LinkSettings) -> None:
        """These hold for all links that there are. (Those to come are told by who makes them.)"""
        for link in self._links():
            link.use(settings)

    def register_as(self, key: PrivateKey) -> None:
        """The interface has another key now."""
        if key == self.key:
            return
        self.key = key
        self._drop_lingering(lambda member: True)
        self._rank()
        for link in self._links():
            link.register_as(key)
        self._news.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the links up that are needed, until cancelled. Ready at once. Raises HostError as links do."""
        async with trio.open_nursery() as self._nursery:
            for member in self._members.values():
                self._keep(member)
            self._look()
            self._resume()
            task_status.started()
            while True:
                self._news = trio.Event()
                with trio.move_on_after(LOOK_S):
                    await self._news.wait()
                self._look()

    def update(self, relays: Sequence[JoinString]) -> None:
        """These are the relays from now on, or none is. Those that stay the same aren't touched."""
        wanted = {relay.address: relay for relay in relays or (NO_RELAY,)}
        if {address: member.relay for address, member in self._members.items()} == wanted:
            return
        for address, member in list(self._members.items()):
            if wanted.get(address) == member.relay:
                continue
            if relays and member.relay.one_of and member.link is not None and member.link.connected:
                member.used_at = self._now()
                self._lingering.append(member)
            else:
                self._let_go(address, member, "not one of our relays any more")
            del self._members[address]
        self._drop_lingering(lambda member: not relays)
        for member in [one for one in self._lingering if wanted.get(one.relay.address) == one.relay]:
            self._lingering.remove(member)
            self._members[member.relay.address] = member
        for address, relay in wanted.items():
            self._members.setdefault(address, Member(relay))
        self._rank()
        self._routes.clear()
        if self._home not in self._members:
            self._home = self._ranked[0]
        self._settle()
        self._news.set()

    def save(self) -> int:
        """Leave what the next process goes on with: for the end, when nothing runs any more. -> how many
        connections it gets"""
        now = self._now()
        absent = [
            Absence(key, relay, left_s, held_s)
            for key, route in self._routes.items()
            for relay, left_s, held_s in route.held(now)
        ]
        return self.home.save(absent)

    def _resume(self) -> None:
        """Go on with the connections that an earlier process left."""
        own_key = self.key.public()
        for address in [one for one in self._members if self._handover.has(one, own_key=own_key)]:
            self._link(address)

    @property
    def has_relay(self) -> bool:
        """Whether there is a relay at all."""
        return NO_RELAY.address not in self._members

    def home_status(self) -> dict[str, object]:
        """The home link, as `RelayLink.status` tells it."""
        told = self.home.status() | {"home": True}
        if not self.has_relay:
            told |= {"address": "", "state": "none", "reason": "the mesh has no relay"}
        return told

    def status(self) -> list[dict[str, object]]:
        """Each relay, the agent's favourite first."""
        told: list[dict[str, object]] = []
        if not self.has_relay:
            return told
        for address in self._ranked:
            member = self._members[address]
            state = member.link.status() if member.link is not None else {"address": address, "state": "idle"}
            told.append({**state, "home": address == self._home})
        return told

    def drops(self) -> dict[str, int]:
        """Frames lost on the way to relays, or from them before the proxy saw them, by reason."""
        total = Counter(self._past_drops)
        for link in self._links():
            total.update(link.drops())
        return dict(total)

    # Links --------------------------------------------------------------------------------------------------

    def _links(self) -> list[RelayLink]:
        return [member.link for member in self._members.values() if member.link is not None]

    def _link(self, address: str) -> RelayLink:
        member = self._members[address]
        return member.link if member.link is not None else self._start(address)

    def _start(self, address: str, home_key: PublicKey | None = None) -> RelayLink:
        """A link to that relay, for `home_key`'s sake (None: our own). It waits for `run` if that isn't there
        yet."""
        member = self._members[address]

        def on_runs(buffer: bytearray, runs: list[tuple[int, bytes, int, int, int]], now: float) -> None:
            member.used = True
            self._on_runs(buffer, runs, now)

        def on_gone(gone: PeerGone) -> None:
            self._peer_gone(address, gone)

        member.link = self._make_link(member.relay, self.key, home_key, on_runs, on_gone)
        member.used_at = self._now()
        member.seen = LinkSeen(Condition.CONNECTING, member.used_at)
        member.scope, member.runs = trio.CancelScope(), False
        self._keep(member)
        return member.link

    def _keep(self, member: Member) -> None:
        """Have the member's link run, if there is one and it doesn't."""
        if member.relay == NO_RELAY:
            return
        if self._nursery is not None and member.link is not None and not member.runs:
            member.runs = True
            self._nursery.start_soon(run_link, member.link, member.scope, name=f"link to {member.relay}")

    def _rank(self) -> None:
        self._ranked = order(self.key.public(), tuple(self._members))

    def _settle(self) -> None:
        """With one relay there is nothing to choose."""
        self._only = self._link(self._ranked[0]) if len(self._members) == 1 else None

    def _look(self) -> None:
        """See what the links are like, and have those that are needed."""
        now = self._now()
        self._drop_lingering(
            lambda one: now - one.used_at > LINGER_S or one.link is None or not one.link.connected
        )
        self._merge()
        seen = self._see(now)
        wanted = homes(self._ranked, seen, now)
        for address in wanted:
            if self._members[address].link is None:
                self._start(address)
        home = next((one for one in self._ranked if seen[one].condition is Condition.UP), wanted[-1])
        if home != self._home:
            self._log.info("relay.home_changed", relay=home, previous=self._home)
            self._home = home
        for address, member in self._members.items():
            if member.used:
                member.used, member.used_at = False, now
            if member.link is not None and address not in wanted and now - member.used_at > self._idle_s:
                self._let_go(address, member, f"nothing moved for {self._idle_s:g} s")

    def _see(self, now: float) -> dict[str, LinkSeen]:
        for member in self._members.values():
            condition = member.condition
            if condition is not member.seen.condition:
                carries_until = (member.link.leaves_at if member.link is not None else None) or -inf
                member.seen = LinkSeen(condition, now, carries_until)
        return {address: member.seen for address, member in self._members.items()}

    def _let_go(self, address: str, member: Member, reason: str) -> None:
        if member.link is None:
            return
        self._past_drops.update(member.link.drops())
        member.scope.cancel()
        member.link = None
        if member.relay != NO_RELAY:
            self._log.info("relay.let_go", relay=address, reason=reason)

    def _drop_lingering(self, unwanted: Callable[[Member], bool]) -> None:
        for member in [one for one in self._lingering if unwanted(one)]:
            self._lingering.remove(member)
            self._let_go(member.relay.address, member, "not one of our relays any more")

    def _merge(self) -> None:
        """Two addresses of one relay would have our own connections displace each other: keep the better
        one."""
        instances: dict[bytes, str] = {}
        for address in self._ranked:
            link = self._members[address].link
            if link is None or not link.instance:
                continue
            first = instances.setdefault(link.instance, address)
            if first != address:
                self._log.error("relay.named_twice", relay=address, same_as=first)
                self.update([self._members[one].relay for one in self._ranked if one != address])
                return

    def _now(self) -> float:
        return self._clock()

    # Frames -------------------------------------------------------------------------------------------------

    def _send_run(self, run: bytes | memoryview) -> None:
        """A run of the proxy's may hold frames of several peers, of one size: cut it where the relay
        changes."""
        size = int.from_bytes(run[:LENGTH_BYTES], "big") + LENGTH_BYTES
        now = self._now()
        begin = 0
        link: RelayLink | None = None
        key = b""
        for start in range(0, len(run), size):
            other = bytes(run[start + HEADER_BYTES : start + KEYED_BYTES])
            if other == key:
                continue
            key = other
            next_link = self._link_for(key, now)
            if next_link is not link:
                if link is not None:
                    link.send((run[begin:start],), start - begin)
                begin, link = start, next_link
        if link is not None:
            link.send((run[begin:],), len(run) - begin)

    def _link_for(self, key: bytes, now: float) -> RelayLink:
        address = self._route(key).choose(self._see(now), now)
        member = self._members[address]
        member.used = True
        return member.link if member.link is not None else self._start(address, PublicKey(key))

    def _route(self, key: bytes) -> PeerRoute:
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= MAX_ROUTES:
                now = self._now()
                self._routes = {one: known for one, known in self._routes.items() if known.held(now)}
            route = self._routes[key] = PeerRoute(order(PublicKey(key), tuple(self._members)))
        return route

    def _peer_gone(self, address: str, gone: PeerGone) -> None:
        route = self._routes.get(gone.key.raw)
        if route is not None and gone.reason != Gone.STALLED:
            route.gone(address, self._now())
        self._on_gone(gone)
