"""The birthday method's sockets, real ones on loopback: opened, met, carried through, closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from math import inf

import pytest
import trio

from relayd.agent import carriers
from relayd.agent.carriers import Carriers
from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.netio.poller import Poller
from relayd.netio.raw_udp import Datagram
from relayd.paths.acquaintance import Local
from relayd.paths.birthday import SOCKETS, Attempt
from relayd.paths.pathfinder import Pathfinder
from relayd.paths.selector import State
from relayd.wire.port_messages import SEALED_MAGIC
from tests.helpers.identities import ALICE, BOB

LOOPBACK = IPv4Address("127.64.0.9")
GREETING, SEALED, PACKET = SEALED_MAGIC + b"hello", SEALED_MAGIC + b"sealed", b"\x04\0\0\0" + bytes(40)


def bound(address: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((address, 0))
    return sock


class Rig:
    """Carriers, a peer's one endpoint, and WireGuard's port."""

    def __init__(self, stack: ExitStack) -> None:
        self.poller = Poller()
        stack.callback(self.poller.close)
        self.peer, self.wireguard = (stack.enter_context(bound()) for _ in range(2))
        self.sealed: list[Datagram] = []
        self.carriers = Carriers(
            self.poller,
            wireguard_port=lambda: int(self.wireguard.getsockname()[1]),
            on_sealed=self.sealed.append,
        )
        stack.callback(self.carriers.close)
        self.finder = Pathfinder(
            ALICE.public(),
            BOB.public(),
            session=bytes(8),
            local=Local(),
            draw=bytes,
            now=0.0,
        )

    def begin(self) -> None:
        self.finder.birthday.attempt = Attempt(Endpoint.of_socket(self.peer.getsockname()), inf)

    def follow(self) -> int | None:
        return self.carriers.follow(self.finder, loopback=lambda: LOOPBACK, greeting=lambda: GREETING)

    def greeted_from(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        while True:
            try:
                data, source = self.peer.recvfrom(100)
            except BlockingIOError:
                return found
            assert data == GREETING
            found.append(source)

    async def turn(self) -> None:
        """What has come is served."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.poller.run)
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    async def met(self) -> tuple[Endpoint, tuple[str, int]]:
        """The loopback port, and the address of the socket that was met."""
        self.begin()
        assert self.follow() == SOCKETS
        self.places = self.greeted_from()
        place = self.places[7]
        self.peer.sendto(SEALED, place)
        await self.turn()
        [endpoint] = self.carriers.endpoints
        self.finder.checklist.meet(endpoint, 0.0, method="birthday")
        return endpoint, place


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack)


def test_an_attempt_opens_its_sockets_once_and_each_has_sent(rig: Rig) -> None:
    assert rig.follow() is None
    rig.begin()
    assert rig.follow() == SOCKETS == rig.carriers.open
    assert rig.follow() is None
    assert len(set(rig.greeted_from())) == SOCKETS
    rig.finder.birthday.attempt = None
    assert rig.follow() is None
    assert rig.carriers.open == 0


async def test_what_the_one_that_was_met_carries(rig: Rig) -> None:
    endpoint, place = await rig.met()
    assert endpoint.address == LOOPBACK
    assert [(one.payload, one.source) for one in rig.sealed] == [(SEALED, endpoint)]
    rig.peer.sendto(PACKET, place)
    await rig.turn()
    data, source = rig.wireguard.recvfrom(100)
    assert (data, source) == (PACKET, (str(endpoint.address), endpoint.port))
    rig.wireguard.sendto(PACKET[::-1], source)
    rig.carriers.send(b"a message", endpoint)
    await rig.turn()
    assert {rig.peer.recvfrom(100) for _ in range(2)} == {(PACKET[::-1], place), (b"a message", place)}
    rig.finder.birthday.attempt = None
    rig.follow()
    assert rig.carriers.open == 1  # the others are closed
    del rig.finder.checklist.pairs[endpoint]
    rig.follow()
    assert rig.carriers.open == 0


async def test_of_two_that_were_met_the_one_stays_that_is_the_path(rig: Rig) -> None:
    first, _place = await rig.met()
    rig.peer.sendto(SEALED, rig.places[9])
    await rig.turn()
    assert len(rig.carriers.endpoints) == 2
    second = next(one for one in rig.carriers.endpoints if one != first)
    rig.finder.checklist.meet(second, 0.0, method="birthday")
    selector = rig.finder.selector
    selector.ours, selector.state, selector.endpoint = True, State.DIRECT, second
    rig.follow()
    assert list(rig.carriers.endpoints) == [second]


async def test_neither_strangers_nor_noise_are_carried(rig: Rig) -> None:
    rig.begin()
    rig.follow()
    first, second = rig.greeted_from()[:2]
    rig.peer.sendto(PACKET, first)  # nobody's WireGuard can have met this socket before its agent has
    with bound() as stranger:
        stranger.sendto(SEALED, second)
        await rig.turn()
        assert list(rig.carriers.endpoints) == []
    rig.peer.sendto(SEALED, second)
    await rig.turn()
    [met] = rig.carriers.endpoints
    with bound() as stranger:
        stranger.sendto(b"from another port than WireGuard's", (str(met.address), met.port))
        await rig.turn()
    assert rig.carriers.counts["stranger"] == 1
    with pytest.raises(BlockingIOError):
        rig.peer.recv(100)


def test_a_peer_that_is_gone_leaves_nothing_open(rig: Rig) -> None:
    rig.begin()
    rig.follow()
    rig.carriers.keep([BOB.public()])
    assert rig.carriers.open == SOCKETS
    rig.carriers.keep([PublicKey(bytes(32))])
    assert rig.carriers.open == 0


def test_where_not_all_sockets_can_be_had_the_others_have_to_do(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [3]

    def scarce(*arguments: object) -> socket.socket:
        if not left[0]:
            raise OSError(24, "Too many open files")
        left[0] -= 1
        return bound()

    monkeypatch.setattr(carriers, "open_marked", scarce)
    rig.begin()
    assert rig.follow() == 3 == rig.carriers.open
    rig.finder.birthday.attempt = None
    rig.follow()
    rig.begin()
    assert rig.follow() == 0 == rig.carriers.open
