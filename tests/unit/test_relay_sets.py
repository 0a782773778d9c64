"""A name that stands for several relays: each of its addresses is one; what a look-up doesn't say stays."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from relayd.agent.relay_sets import EVERY_S, MAX_RELAYS, RESOLVE_S, SOON_S, RelaySets, addresses_of
from relayd.join import JoinString

NAME = JoinString("relays.example.net", 3478)
FIXED = JoinString("relay.example.net", 3478)


class Resolver:
    """A name server, and what was made of it."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[str] | None = list(addresses)
        """None: it fails."""
        self.is_dead = False
        self.asked: list[float] = []
        self.used: list[tuple[str, ...]] = []
        self.is_connected = True

    async def resolve(self, _name: JoinString) -> Sequence[str]:
        self.asked.append(trio.current_time())
        if self.is_dead:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if self.addresses is None:
            raise OSError("Name or service not known")
        return self.addresses

    def use(self, relays: Sequence[JoinString]) -> None:
        self.used.append(tuple(one.address for one in relays))

    def sets(self) -> RelaySets:
        return RelaySets(self.use, connected=lambda: self.is_connected, resolve=self.resolve)


async def test_each_address_is_a_relay_and_they_share_what_is_known_of_the_name(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = Resolver("192.0.2.1", "192.0.2.2")
    sets = server.sets()
    sets.follow([FIXED], [NAME])
    await nursery.start(sets.run)
    assert [one.address for one in sets.relays] == [FIXED.address, "192.0.2.1:3478", "192.0.2.2:3478"]
    assert [one.known_as for one in sets.relays] == [FIXED.address, NAME.address, NAME.address]
    assert server.used[-1] == tuple(one.address for one in sets.relays)
    server.addresses = ["192.0.2.2", "192.0.2.3"]
    await trio.sleep(EVERY_S + 1.0)
    assert server.used[-1] == (FIXED.address, "192.0.2.2:3478", "192.0.2.3:3478")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("failure", ["an error", "silence", "no addresses"])
async def test_a_look_up_that_fails_changes_nothing(
    failure: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = Resolver("192.0.2.1")
    sets = server.sets()
    sets.follow([], [NAME])
    await nursery.start(sets.run)
    used = len(server.used)
    server.addresses = {"an error": None, "silence": ["192.0.2.9"], "no addresses": []}[failure]
    server.is_dead = failure == "silence"
    await trio.sleep(3 * EVERY_S)
    assert len(server.used) == used
    assert [one.address for one in sets.relays] == ["192.0.2.1:3478"]
    assert bool(sets.problem) is (failure != "no addresses")
    nursery.cancel_scope.cancel()


async def test_a_start_does_not_wait_for_a_dead_name_server_for_long(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = Resolver()
    server.is_dead = True
    sets = server.sets()
    sets.follow([], [NAME])
    await nursery.start(sets.run)
    assert trio.current_time() == pytest.approx(RESOLVE_S)
    assert sets.relays == (NAME,), "its link says that the name isn't known"
    nursery.cancel_scope.cancel()


async def test_a_relay_that_is_lost_and_a_peer_that_is_absent_have_it_looked_up_soon(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = Resolver("192.0.2.1")
    sets = server.sets()
    sets.follow([], [NAME])
    await nursery.start(sets.run)
    await trio.sleep(5.0)
    sets.look_soon()
    await trio.sleep(0.1)
    assert len(server.asked) == 2
    for _ in range(100):  # a crowd of absent peers
        sets.look_soon()
        await trio.sleep(0.01)
    assert len(server.asked) <= 3
    server.is_connected = False
    before = len(server.asked)
    await trio.sleep(10 * SOON_S)
    assert 9 <= len(server.asked) - before <= 11
    nursery.cancel_scope.cancel()


async def test_names_come_and_go_with_the_mesh(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    server = Resolver("192.0.2.1")
    sets = server.sets()
    sets.follow([FIXED], [])
    await nursery.start(sets.run)
    await trio.sleep(1000.0)
    assert server.asked == []
    sets.follow([], [NAME])
    await trio.sleep(1.0)
    assert server.used[-1] == ("192.0.2.1:3478",)
    sets.follow([FIXED], [])
    assert server.used[-1] == (FIXED.address,)
    nursery.cancel_scope.cancel()


async def test_a_name_has_so_many_relays_and_no_more_and_of_one_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        await trio.lowlevel.checkpoint()
        numbers = random.sample(range(1, 201), 200)  # in no order, as name servers give them
        found = [f"192.0.2.{number}" for number in numbers] + ["2001:db8::1"]
        return [(0, 0, 0, "", (address, 3478)) for address in found]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    found = await addresses_of(NAME)
    assert len(found) == MAX_RELAYS
    assert await addresses_of(NAME) == found, "every agent takes the same ones"


async def test_the_hosts_own_names_are_looked_up() -> None:
    assert await addresses_of(JoinString("localhost", 1)) == ["127.0.0.1"]
    assert await addresses_of(JoinString("::1", 1)) == ["::1"]
    with pytest.raises(OSError, match=r"not known|No address|failure"):
        await addresses_of(JoinString("relay.invalid", 1))
