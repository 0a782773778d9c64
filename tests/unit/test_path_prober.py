"""The shell around the pathfinders: two of them, sealed messages through a relay and over ports that aren't
there."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_address
from math import inf

import trio
import trio.testing

from relayd.agent.path_prober import AT_ONCE, PathProber, Proxied
from relayd.endpoints import Endpoint
from relayd.kernel.wireguard import Interface, Peer
from relayd.keys import PrivateKey, PublicKey
from relayd.netio.raw_udp import Address, Datagram
from relayd.paths.acquaintance import Local
from relayd.paths.candidates import make
from relayd.paths.pathfinder import Pathfinder
from relayd.wire.frames import KEYED_BYTES
from tests.helpers.identities import ALICE, BOB, MALLORY, drawn
from tests.helpers.sealing import Draws

HOMES = {"a": Endpoint.parse("192.0.2.1:51820"), "b": Endpoint.parse("192.0.2.2:51820")}


@dataclass
class Counted:
    rx_bytes: int = 0
    address: IPv4Address = field(default_factory=lambda: IPv4Address("127.64.0.1"))


class Side:
    """One agent's prober, with everything around it faked, and connected to the other side."""

    def __init__(self, name: str, key: PrivateKey, peer: PublicKey) -> None:
        self.name, self.key, self.peer = name, key, peer
        self.other: Side | None = None
        self.connected = True
        self.estimated = False
        self.error: OSError | None = None
        self.ports: list[int] = []
        self.direct: dict[PublicKey, Endpoint | None] = {}
        self.nudges = 0
        self.peers: Mapping[PublicKey, Proxied] = {peer: Counted()}
        self.endpoint: Endpoint | None = None
        self.prober = PathProber(
            self.interface(),
            link=self,
            proxy=self,
            nudge=self.nudge,
            draw=Draws(name),
            wall_clock=lambda: 0.0,
        )

    def interface(self, **more: object) -> Interface:
        peer = Peer(self.peer, self.endpoint, (), None, 0, 0, 0)
        whole = Interface("wg0", self.key.public(), 51820, 0, {peer.key: peer}, self.key)
        return replace(whole, **more)  # type: ignore[arg-type]

    def begin(self) -> None:
        self.prober.use(self)
        self.prober.saw(self.interface(), trio.current_time())
        self.prober.localize(Local(candidates=(make("host", HOMES[self.name]),), hold_s=inf), moved=False)

    def look(self) -> None:
        """What the reconciler does."""
        now = trio.current_time()
        self.prober.saw(self.interface(), now)
        verdict = self.prober.verdicts(now).get(self.peer)
        if verdict is not None and verdict.endpoint != self.endpoint:
            self.endpoint = verdict.endpoint
            self.prober.was_set(self.peer, verdict.endpoint)

    def nudge(self) -> None:
        self.nudges += 1

    # Link, port, proxy.

    def send(
        self, what: Sequence[bytes | memoryview] | bytes, to: int | Endpoint, *, source: Address | None = None
    ) -> None:
        other = self.other
        if self.error is not None and isinstance(to, Endpoint):
            raise self.error
        if other is None:
            return
        if isinstance(to, Endpoint):
            assert isinstance(what, bytes)
            if to == HOMES[other.name]:
                heard = Datagram(payload=what, source=HOMES[self.name], local=to.address)
                self.later(lambda: other.prober.on_datagram(heard))
        elif self.connected and other.connected:
            (frame,) = what
            payload = bytes(frame)[KEYED_BYTES:]
            self.later(lambda: other.prober.on_relayed(self.key.public().raw, payload, 0.0))

    def later(self, what: Callable[[], None]) -> None:
        self.nursery.start_soon(self._after, what)

    nursery: trio.Nursery

    async def _after(self, what: Callable[[], None]) -> None:
        await trio.sleep(0.01)
        what()

    def set_port(self, port: int) -> None:
        self.ports.append(port)

    def set_direct(self, key: PublicKey, endpoint: Endpoint | None) -> None:
        self.direct[key] = endpoint


async def together(
    nursery: trio.Nursery, *, a: Callable[[Side], None] = lambda _side: None
) -> tuple[Side, Side]:
    """Both sides, started."""
    sides = Side("a", ALICE, BOB.public()), Side("b", BOB, ALICE.public())
    a(sides[0])
    for side, other in (sides, sides[::-1]):
        side.other, side.nursery = other, nursery
        side.begin()
        await nursery.start(side.prober.run)

    async def looks(side: Side) -> None:
        while True:
            await trio.sleep(0.2)
            side.look()

    for side in sides:
        nursery.start_soon(looks, side)
    return sides


async def test_two_agents_find_the_direct_path_and_tell_proxy_and_reconciler(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    a, b = await together(nursery)
    await trio.sleep(2.0)
    for side, other in ((a, b), (b, a)):
        assert side.endpoint == HOMES[other.name]
        assert side.direct == {other.key.public(): HOMES[other.name]}
        assert side.nudges
        verdict = side.prober.verdicts(trio.current_time())[other.key.public()]
        assert verdict.direct


async def test_without_the_port_no_verdict_is_ever_given(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    def no_raw_sockets(side: Side) -> None:
        side.estimated = True

    a, b = await together(nursery, a=no_raw_sockets)
    await trio.sleep(30.0)
    for side in (a, b):
        assert side.prober.verdicts(trio.current_time()) == {}
        assert side.endpoint is None


async def test_a_search_is_called_off_and_taken_up_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    a, b = await together(nursery)
    await trio.sleep(2.0)
    assert a.endpoint == HOMES["b"]
    for side in (a, b):
        side.prober.search(False)
        side.endpoint = None  # as the reconciler sees to
    await trio.sleep(5.0)
    before = [side.prober.counts["directly"] for side in (a, b)]
    await trio.sleep(60.0)
    for side, count in zip((a, b), before, strict=True):
        assert side.prober.verdicts(trio.current_time()) == {}
        assert side.prober.counts["directly"] == count, "no Ping goes there"
        assert side.direct[side.peer] is None
    for side in (a, b):
        side.prober.search(True)
    await trio.sleep(60.0)
    assert (a.endpoint, b.endpoint) == (HOMES["b"], HOMES["a"])


async def test_peers_are_told_of_addresses_once_however_often_they_are_found_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    a, _ = await together(nursery)
    await trio.sleep(10.0)
    addresses = HOMES["a"], Endpoint.parse("192.0.2.77:51820")

    def found(*endpoints: Endpoint) -> Local:
        now = trio.current_time()
        candidates = (make("host", one, found_at=now - number) for number, one in enumerate(endpoints))
        return Local(candidates=tuple(candidates), hold_s=inf)

    a.prober.localize(found(*addresses), moved=False)
    await trio.sleep(1.0)
    said = a.prober.counts["by relay"]
    for _ in range(5):
        await trio.sleep(1.0)
        a.prober.localize(found(*addresses), moved=False)
        await trio.sleep(1.0)
        a.prober.localize(found(*reversed(addresses)), moved=False)
    assert a.prober.counts["by relay"] == said
    a.prober.localize(found(HOMES["a"]), moved=False)
    await trio.sleep(0.1)
    assert a.prober.counts["by relay"] > said


async def test_a_thousand_peers_that_have_something_to_say_leave_others_their_turn(
    nursery: trio.Nursery,
) -> None:
    side = Side("a", ALICE, BOB.public())
    side.connected, side.nursery = False, nursery
    keys = [PrivateKey(drawn(f"peer {number}")).public() for number in range(4 * AT_ONCE)]
    side.peers = {key: Counted() for key in keys}
    peers = {key: Peer(key, None, (), None, 0, 0, 0) for key in keys}
    side.prober.use(side)
    side.prober.saw(side.interface(peers=peers), trio.current_time())
    await nursery.start(side.prober.run)
    in_a_row: list[int] = []
    act = side.prober._act

    def counted(finder: Pathfinder, now: float) -> None:
        in_a_row[-1] += 1
        act(finder, now)

    async def until_all_have_acted() -> None:
        in_a_row.clear()
        while sum(in_a_row) < len(keys):
            in_a_row.append(0)
            await trio.lowlevel.checkpoint()

    side.prober._act = counted  # type: ignore[method-assign]
    in_a_row.append(0)
    side.connected = True
    await until_all_have_acted()
    assert max(in_a_row) <= 2 * AT_ONCE  # a turn of ours may come after one of theirs and before the next
    side.prober.localize(Local(candidates=(make("host", HOMES["a"]),), hold_s=inf), moved=True)
    await until_all_have_acted()
    assert max(in_a_row) <= 2 * AT_ONCE  # a turn of ours may come after one of theirs and before the next


async def test_a_pair_that_cannot_be_sent_to_fails_and_harms_nobody(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    def no_route(side: Side) -> None:
        side.error = OSError(errno.ENETUNREACH, "Network is unreachable")

    a, _ = await together(nursery, a=no_route)
    await trio.sleep(10.0)
    assert a.endpoint is None
    assert a.prober.counts["unsent: Network is unreachable"] > 0
    assert not a.prober.verdicts(trio.current_time())[a.peer].direct


async def test_peers_and_keys_come_and_go(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    a, _ = await together(nursery)
    now = trio.current_time()
    a.prober.saw(a.interface(peers={}), now)
    assert a.prober.finders == {}
    stranger = MALLORY.public()
    peers = {stranger: Peer(stranger, None, (), None, 0, 0, 0)}
    a.prober.saw(a.interface(peers=peers, private_key=MALLORY, public_key=stranger), now)
    assert set(a.prober.finders) == {stranger}
    a.prober.was_set(BOB.public(), None)  # of a peer that went meanwhile


async def test_with_another_key_nothing_of_the_old_peers_is_left(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """As when `wg-quick down; wg-quick up` with another configuration comes between two reads."""
    a, _ = await together(nursery)
    await trio.sleep(2.0)
    assert a.direct == {BOB.public(): HOMES["b"]}
    stranger = MALLORY.public()
    peers = {stranger: Peer(stranger, None, (), None, 0, 0, 0)}
    a.peer = stranger
    interface = a.interface(peers=peers, private_key=MALLORY, public_key=stranger)
    a.prober.saw(interface, trio.current_time())
    assert a.direct == {BOB.public(): None}, "late packets of its are no direct ones any more"
    assert a.prober._due.keys() <= {stranger}  # else the clock would strike for ever


async def test_a_new_listen_port_is_followed(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    a, _ = await together(nursery)
    a.prober.saw(a.interface(listen_port=40_000), trio.current_time())
    assert a.ports == [40_000]


async def test_strangers_and_garbage_are_counted_and_no_more(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    a, _ = await together(nursery)
    from relayd.wire.sealed import Channel
    from relayd.wire.sealed_messages import Ping

    stranger = Channel.between(MALLORY, ALICE.public()).seal(Ping(bytes(12)), bytes(24))
    a.prober.on_relayed(b"", stranger, 0.0)
    a.prober.on_relayed(b"", b"Rubbish", 0.0)
    a.prober.on_datagram(Datagram(payload=stranger, source=HOMES["b"], local=ip_address("192.0.2.1")))
    assert a.prober.drops() == {"sealed_unknown_key": 2, "sealed_malformed": 1}


async def test_a_relay_that_comes_late_is_noticed(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    def no_relay(side: Side) -> None:
        side.connected = False

    a, b = await together(nursery, a=no_relay)
    await trio.sleep(20.0)
    assert not a.prober.verdicts(trio.current_time())
    a.connected = True
    await trio.sleep(3.0)
    assert (a.endpoint, b.endpoint) == (HOMES["b"], HOMES["a"])
