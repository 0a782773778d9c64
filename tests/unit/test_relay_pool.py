"""relay_pool: several relays, real links to relays' ends on loopback, under a clock that stands still."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from ipaddress import IPv4Address

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from relayd.agent.link_settings import LinkSettings
from relayd.agent.relay_choice import order
from relayd.agent.relay_connection import OnRuns
from relayd.agent.relay_link import RelayLink
from relayd.agent.relay_pool import LINGER_S, MAX_ROUTES, RelayPool
from relayd.coordination.model import RelayAddress
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.netio.poller import Poller
from relayd.wire.frames import DATA, KEYED_BYTES, NAT_PROBE, NatProbe, encode_data
from relayd.wire.identity_frames import PING, PeerGone, Welcome, encode_pong
from relayd.wire.runs import Run
from tests.helpers.identities import GATE, RELAY, TOKEN
from tests.helpers.link_rig import OWN, OWN_PRIVATE
from tests.helpers.tiny_relay import Session, TinyRelay, dial_unmarked, settle, until

SETTINGS = LinkSettings(queue_age_s=3600.0)
IDLE_S = 10.0


def peer_whose_home_is(address: str, relays: Sequence[str]) -> PublicKey:
    """Some node that is at home at that relay."""
    return next(
        key
        for number in range(1000)
        if order(key := PublicKey(number.to_bytes(32, "big")), tuple(relays))[0] == address
    )


NAME = "relays.example.net:3478"


def join_of(relay: TinyRelay, one_of: str = "") -> JoinString:
    return JoinString(relay.join.host, relay.join.port, key=RELAY.public, token=TOKEN, one_of=one_of)


class Rig:
    """A pool, its relays by address (ours first), and what came out."""

    def __init__(self, relays: Sequence[TinyRelay], one_of: str) -> None:
        by_address = {relay.join.address: relay for relay in relays}
        self.addresses = order(OWN, tuple(by_address))
        self.relays = [by_address[address] for address in self.addresses]
        self.poller = Poller()
        self.delivered: list[bytes] = []
        self.gone: list[PeerGone] = []
        self.home_keys: list[PublicKey | None] = []
        self.dead: set[int] = set()
        self.taken: dict[Session, list[bytes]] = {}
        self.pool = RelayPool(
            [join_of(relay, one_of) for relay in relays],
            OWN_PRIVATE,
            self._make_link,
            on_runs=self._on_runs,
            on_gone=self.gone.append,
            idle_s=IDLE_S,
        )

    def _make_link(
        self,
        relay: JoinString,
        key: PrivateKey,
        home_key: PublicKey | None,
        on_runs: OnRuns,
        on_gone: Callable[[PeerGone], None],
    ) -> RelayLink:
        self.home_keys.append(home_key)
        return RelayLink(
            self.poller,
            relay,
            key,
            on_runs,
            SETTINGS,
            home_key=home_key,
            on_gone=on_gone,
            dial=self._dial,
            uniform=lambda low, high: high,
        )

    async def _dial(self, relay: RelayAddress, *, timeout_s: float, **_more: object) -> socket.socket:
        if relay.port in self.dead:
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError("nobody there")
        return await dial_unmarked(relay, timeout_s=timeout_s)

    def _on_runs(self, buffer: bytearray, runs: Sequence[Run], now: float) -> None:
        for _, _, first, stop, size in runs:
            for start in range(first, stop, size):
                self.delivered.append(bytes(buffer[start + KEYED_BYTES : start + size]))

    def send(self, *frames: bytes) -> None:
        run = b"".join(frames)
        self.pool.send([run], len(run))

    async def welcomed(self, index: int, instance: bytes = b"") -> Session:
        """The relay's end of a connection that has just come up at our relay number `index`."""
        session = await self.relays[index].accept()
        await session.admit(RELAY.private, GATE.admit, Welcome(relay=instance or bytes([index])))
        await settle()
        await self.serve(session)
        return session

    async def serve(self, session: Session) -> None:
        """Answer the Pings that have come, and keep the Data."""
        for kind, body in await session.frames_so_far():
            if kind == PING:
                await session.send(encode_pong(body))
            elif kind == DATA:
                self.taken.setdefault(session, []).append(body[32:])
        await settle()

    async def datas(self, session: Session) -> list[bytes]:
        """Payloads that the relay has got by this connection since it was asked last."""
        await settle()
        await self.serve(session)
        return self.taken.pop(session, [])

    async def pass_time(self, clock: MockClock, seconds: float, *sessions: Session) -> None:
        """Let time pass, with the relays answering Pings."""
        for _ in range(round(seconds / 0.5)):
            await settle()
            clock.jump(0.5)
            for session in sessions:
                await self.serve(session)
        await settle()

    def states(self) -> list[object]:
        return [one["state"] for one in self.pool.status()]


@asynccontextmanager
async def running(count: int, *, one_of: str = "") -> AsyncIterator[Rig]:
    with ExitStack() as stack:
        rig = Rig([stack.enter_context(TinyRelay()) for _ in range(count)], one_of)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(rig.poller.run)
                await nursery.start(rig.pool.run)
                yield rig
                nursery.cancel_scope.cancel()
        finally:
            rig.poller.close()


async def test_one_relay_is_one_link(mock_clock: MockClock) -> None:
    async with running(1) as rig:
        session = await rig.welcomed(0)
        rig.send(encode_data(OWN, b"x"), encode_data(PublicKey(b"p" * 32), b"y"))
        await settle()
        assert await rig.datas(session) == [b"x", b"y"]
        assert rig.states() == ["connected"]


async def test_only_the_home_is_connected_to_until_there_is_something_for_another(
    mock_clock: MockClock,
) -> None:
    async with running(3) as rig:
        home = await rig.welcomed(0)
        await rig.pass_time(mock_clock, 10, home)
        assert rig.states() == ["connected", "idle", "idle"]
        peer = peer_whose_home_is(rig.addresses[1], rig.addresses)
        rig.send(encode_data(peer, b"first"))
        other = await rig.welcomed(1)
        rig.send(encode_data(peer, b"second"))
        await settle()
        assert await rig.datas(other) == [b"first", b"second"]
        assert await rig.datas(home) == []
        assert rig.home_keys == [None, peer]
        await other.deliver(peer, b"by the other")
        await home.deliver(peer, b"by our home")
        await until(lambda: len(rig.delivered) == 2)


async def test_a_run_of_several_peers_is_cut_where_the_relay_changes(mock_clock: MockClock) -> None:
    async with running(2) as rig:
        home = await rig.welcomed(0)
        here, there = (peer_whose_home_is(address, rig.addresses) for address in rig.addresses)
        run = [encode_data(key, bytes([n])) for n, key in enumerate([here, here, there, here, there, there])]
        rig.send(*run)
        other = await rig.welcomed(1)
        assert await rig.datas(home) == [b"\x00", b"\x01", b"\x03"]
        assert await rig.datas(other) == [b"\x02", b"\x04", b"\x05"]


async def test_a_dead_home_moves_us_to_the_next_and_its_return_moves_us_back(mock_clock: MockClock) -> None:
    async with running(2) as rig:
        home = await rig.welcomed(0)
        rig.dead.add(rig.relays[0].join.port)
        home.sock.close()
        await until(lambda: not rig.pool.connected)
        await rig.pass_time(mock_clock, 2.0)
        spare = await rig.welcomed(1)
        await rig.pass_time(mock_clock, 1.0, spare)
        assert rig.pool.status()[1]["home"]
        rig.dead.clear()
        with trio.move_on_after(60):
            while not rig.relays[0].has_waiting():
                await rig.pass_time(mock_clock, 1.0, spare)
        home = await rig.welcomed(0)
        await rig.pass_time(mock_clock, 1.0, spare, home)
        assert rig.pool.status()[0]["home"]
        assert rig.states() == ["connected", "connected"]
        # As long as others still use the spare one it stays, and then it goes.
        for _ in range(3):
            await spare.deliver(PublicKey(b"p" * 32), b"still there")
            await rig.pass_time(mock_clock, 8.0, spare, home)
            assert rig.states() == ["connected", "connected"]
        await rig.pass_time(mock_clock, 3.0, spare, home)
        assert rig.states() == ["connected", "idle"]


async def test_what_is_for_the_relay_itself_goes_to_our_home(mock_clock: MockClock) -> None:
    async with running(2) as rig:
        home = await rig.welcomed(0)
        assert str(rig.pool.relay_endpoint) == rig.addresses[0]
        rig.send(NatProbe(IPv4Address("192.0.2.1"), 51820).encode())
        assert (NAT_PROBE, bytes([192, 0, 2, 1, 0xCA, 0x6C])) == await home.next_frame()
        assert rig.states() == ["connected", "idle"]


async def test_a_peer_that_is_absent_at_its_home_is_sought_at_the_next(mock_clock: MockClock) -> None:
    async with running(2) as rig:
        home = await rig.welcomed(0)
        peer = peer_whose_home_is(rig.addresses[0], rig.addresses)
        rig.send(encode_data(peer, b"lost"))
        await settle()
        assert await rig.datas(home) == [b"lost"]
        await home.send(PeerGone(peer, 0).encode())
        await until(lambda: rig.gone == [PeerGone(peer, 0)])
        rig.send(encode_data(peer, b"found"))
        other = await rig.welcomed(1)
        assert await rig.datas(other) == [b"found"]


async def test_a_peer_that_does_not_read_stays_where_it_is(mock_clock: MockClock) -> None:
    async with running(2) as rig:
        home = await rig.welcomed(0)
        peer = peer_whose_home_is(rig.addresses[0], rig.addresses)
        await home.send(PeerGone(peer, 1).encode())
        await until(lambda: len(rig.gone) == 1)
        rig.send(encode_data(peer, b"all the same"))
        await settle()
        assert await rig.datas(home) == [b"all the same"]


async def test_two_addresses_of_one_relay_are_found_out(mock_clock: MockClock) -> None:
    async with running(2) as rig:
        with capture_logs() as lines:
            home = await rig.welcomed(0, instance=b"the same")
            rig.send(encode_data(peer_whose_home_is(rig.addresses[1], rig.addresses), b"x"))
            await rig.welcomed(1, instance=b"the same")
            await rig.pass_time(mock_clock, 1.0, home)
            assert [one["address"] for one in rig.pool.status()] == [rig.addresses[0]]
        assert "relay.named_twice" in [line["event"] for line in lines]


async def test_relays_come_and_go_while_the_others_stay_connected(mock_clock: MockClock) -> None:
    async with running(3) as rig:
        home = await rig.welcomed(0)
        joins = list(map(join_of, rig.relays))
        rig.pool.update(joins[:1])
        await rig.pass_time(mock_clock, 1.0, home)
        assert rig.states() == ["connected"]
        rig.send(encode_data(PublicKey(b"p" * 32), b"straight"))
        await settle()
        assert await rig.datas(home) == [b"straight"]
        rig.pool.update(joins)
        await rig.pass_time(mock_clock, 1.0, home)
        assert rig.states() == ["connected", "idle", "idle"]
        rig.pool.update(joins[1:])
        await until(lambda: rig.states() == ["registering", "idle"])
        assert await home.next_frame() is None
        await rig.welcomed(1)
        assert rig.states() == ["connected", "idle"]


async def test_the_only_relay_goes_and_comes_back(mock_clock: MockClock) -> None:
    async with running(1) as rig:
        home = await rig.welcomed(0)
        await rig.pass_time(mock_clock, 1.0, home)
        assert rig.pool.connected
        rig.pool.update([])
        assert await home.next_frame() is None, "its connection ends"
        assert (rig.pool.connected, rig.pool.has_relay, rig.pool.status()) == (False, False, [])
        told = rig.pool.home_status()
        assert (told["state"], told["address"], told["dials"]) == ("none", "", 0)
        rig.send(encode_data(PublicKey(b"p" * 32), b"nowhere"))
        await rig.pass_time(mock_clock, 60.0)
        assert rig.pool.home_status()["dials"] == 0, "nothing is dialled"
        rig.pool.update([join_of(rig.relays[0])])
        home = await rig.welcomed(0)
        await rig.pass_time(mock_clock, 1.0, home)
        rig.send(encode_data(PublicKey(b"p" * 32), b"straight"))
        await settle()
        assert await rig.datas(home) == [b"straight"]
        assert rig.pool.connected


async def test_a_pool_begins_without_a_relay(mock_clock: MockClock) -> None:
    async with running(1) as rig:
        begun = RelayPool([], OWN_PRIVATE, rig._make_link, on_runs=rig._on_runs, on_gone=print)
        async with trio.open_nursery() as nursery:
            await nursery.start(begun.run)
            assert begun.home_status()["state"] == "none"
            await rig.welcomed(0)
            begun.update([join_of(rig.relays[0])])
            await rig.welcomed(0)
            assert begun.connected
            nursery.cancel_scope.cancel()


async def test_a_replica_that_its_name_leads_to_no_more_is_heard_to_the_end(mock_clock: MockClock) -> None:
    """Others send by it, until they have heard of it too."""
    async with running(2, one_of=NAME) as rig:
        sets = [join_of(relay, NAME) for relay in rig.relays]
        first = await rig.welcomed(0)
        rig.pool.update(sets[1:])
        second = await rig.welcomed(1)
        await rig.pass_time(mock_clock, 1.0, first, second)
        peer = b"p" * 32
        await first.send(encode_data(PublicKey(peer), b"late"))
        await settle()
        assert rig.delivered == [b"late"]
        rig.pool.update(sets)
        await rig.pass_time(mock_clock, 1.0, first, second)
        assert rig.states()[0] == "connected", "it is back, and was never gone"
        rig.pool.update(sets[1:])
        await rig.pass_time(mock_clock, LINGER_S + 1.0, first, second)
        assert await first.next_frame() is None, "its connection ends"
        assert rig.pool.connected


async def test_no_replica_is_heard_any_more_where_the_mesh_wants_no_relay(mock_clock: MockClock) -> None:
    async with running(2, one_of=NAME) as rig:
        sets = [join_of(relay, NAME) for relay in rig.relays]
        first = await rig.welcomed(0)
        rig.pool.update(sets[1:])
        rig.pool.update([])
        assert await first.next_frame() is None


async def test_the_ways_to_peers_that_came_and_went_are_not_kept_for_ever(mock_clock: MockClock) -> None:
    async with running(2) as rig:
        home = await rig.welcomed(0)
        absent = peer_whose_home_is(rig.addresses[0], rig.addresses)
        rig.send(encode_data(absent, b"x"))
        await home.send(PeerGone(absent, 0).encode())
        await until(lambda: rig.gone == [PeerGone(absent, 0)])
        for number in range(MAX_ROUTES + 10):
            rig.pool._route((1 << 200 | number).to_bytes(32, "big"))
        assert len(rig.pool._routes) < 50
        assert rig.pool._routes[absent.raw].held(trio.current_time())
