"""What peers are told of this end: at once, after STUN has answered, and after a change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from math import inf

import pytest
import trio
import trio.testing

from relayd.agent import own_addresses
from relayd.agent.discovery.stun_answers import StunAnswers
from relayd.agent.discovery.stun_client import StunClient
from relayd.agent.discovery.stun_servers import RESOLVE_S, Resolver, StunServer
from relayd.agent.own_addresses import OwnAddresses
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.addresses import HostAddress
from relayd.kernel.links import Link
from relayd.netio.raw_udp import Address, Datagram
from relayd.paths.acquaintance import Local
from relayd.paths.candidates import Candidate, make
from relayd.wire import stun

SERVER, SECOND = Endpoint.parse("192.0.2.1:3478"), Endpoint.parse("192.0.2.1:3479")
INNER = ip_address("10.0.0.2")


class World:
    """The host, its NAT, and a STUN server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[Address] = [INNER]
        self.mapped: dict[Endpoint, Endpoint] = {
            one: Endpoint.parse("203.0.113.5:40000") for one in (SERVER, SECOND)
        }
        self.answers = True
        self.changed: Callable[[], None] = lambda: None
        self.told: list[tuple[Local, bool]] = []
        self.client = StunClient(self)

        async def find(_name: str) -> Link:
            await trio.lowlevel.checkpoint()
            return Link("wg0", 7, "wireguard", 1420, is_up=True)

        monkeypatch.setattr("relayd.kernel.links.find", find)

    async def host_addresses(self) -> list[HostAddress]:
        await trio.lowlevel.checkpoint()
        found = [
            HostAddress(address=one, interface="eth0", kind="", leads_out=True) for one in self.addresses
        ]
        tunnel = HostAddress(
            address=ip_address("10.99.0.1"), interface="wg0", kind="wireguard", leads_out=False
        )
        return [*found, tunnel]

    async def watch(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        await trio.sleep_forever()

    def send(self, payload: bytes, to: Endpoint, *, source: Address | None = None) -> None:
        if not self.answers or to not in self.mapped:
            return
        transaction = payload[8:20]
        mapped = stun.xored(stun.encode_address(self.mapped[to]), transaction)
        told = [(stun.XOR_MAPPED_ADDRESS, mapped), (stun.OTHER_ADDRESS, stun.encode_address(SECOND))]
        answer = stun.encode(stun.BINDING_SUCCESS, transaction, told, fingerprint=False)
        self.client.on_datagram(Datagram(payload=answer, source=to, local=self.addresses[0]))

    def publish(self, local: Local, *, moved: bool) -> None:
        self.told.append((local, moved))

    def made(self) -> OwnAddresses:
        return OwnAddresses(
            "wg0",
            client=self.client,
            servers=[StunServer("192.0.2.1", 3478)],
            publish=self.publish,
            port=lambda: 51820,
            connected=lambda: True,
            watch=self.watch,
            addresses=self.host_addresses,
            hold_s=10.0,
        )


def endpoints(local: Local) -> set[str]:
    return {str(one.endpoint) for one in local.candidates}


async def test_own_addresses_are_told_at_once_and_mappings_when_they_are_known(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    assert endpoints(world.told[0][0]) == {"10.0.0.2:51820"}
    last, moved = world.told[-1]
    assert endpoints(last) == {"10.0.0.2:51820", "203.0.113.5:40000"}
    assert not moved
    assert last.hold_s == 10.0
    assert ip_address("10.99.0.1") in last.own  # and no candidate


async def test_stun_is_asked_though_the_hosts_addresses_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)

    async def unreadable() -> list[HostAddress]:
        await trio.lowlevel.checkpoint()
        raise HostError("no netlink here")

    world.host_addresses = unreadable  # type: ignore[method-assign]
    made, asked = world.made(), list[StunAnswers]()
    made._asked = asked.append
    await nursery.start(made.run)
    await trio.sleep(1.0)
    assert made.problem == "no netlink here"
    assert len(asked) == 1  # discovery waits for it
    assert endpoints(world.told[-1][0]) == {"203.0.113.5:40000"}


async def test_who_sees_no_nat_holds_no_mapping(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    for server in world.mapped:
        world.mapped[server] = Endpoint(INNER, 51820)
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    last, _ = world.told[-1]
    assert endpoints(last) == {"10.0.0.2:51820"}
    assert last.hold_s == inf


async def test_a_new_address_is_told_within_a_moment_and_forgets_what_the_old_one_was_seen_as(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    world.told.clear()
    world.addresses, world.answers = [ip_address("10.0.0.9")], False
    world.changed()
    await trio.sleep(0.2)
    first, moved = world.told[0]
    assert moved
    assert endpoints(first) == {"10.0.0.9:51820"}


async def test_who_changes_networks_and_has_no_address_in_between_has_moved(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    world.answers = False
    for addresses, told in (([], set()), ([ip_address("10.0.7.7")], {"10.0.7.7:51820"})):
        world.told.clear()
        world.addresses = list(addresses)
        world.changed()
        await trio.sleep(20.0)
        first, moved = world.told[0]
        assert (endpoints(first), moved) == (told, True)
        assert not any(moved for _, moved in world.told[1:])


async def test_an_address_that_comes_while_stun_servers_are_silent_is_told_within_a_moment(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    world.answers = False
    await nursery.start(world.made().run)
    await trio.sleep(10.0)
    for last in (7, 8, 9):
        world.told.clear()
        world.addresses = [ip_address(f"10.0.7.{last}")]
        world.changed()
        await trio.sleep(0.2)  # less than a question takes
        ((local, moved),) = world.told
        assert (endpoints(local), moved) == ({f"10.0.7.{last}:51820"}, True)
    world.answers = True
    world.changed()
    await trio.sleep(4.0)
    assert endpoints(world.told[-1][0]) == {"10.0.7.9:51820", "203.0.113.5:40000"}


async def test_link_local_candidates_are_tried_where_peers_may_be_and_not_on_each_pods_link(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    found = world.host_addresses

    async def with_pods() -> list[HostAddress]:
        pods = [f"{name}{number}" for name in ("cali", "veth") for number in range(100)]
        return [
            *await found(),
            HostAddress(address=ip_address("fe80::1%eth0"), interface="eth0", kind="", leads_out=True),
            *(
                HostAddress(
                    address=ip_address(f"fe80::1%{name}"), interface=name, kind="veth", leads_out=False
                )
                for name in pods
            ),
        ]

    world.host_addresses = with_pods  # type: ignore[method-assign]
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    last, _ = world.told[-1]
    assert last.links == ("eth0",)
    assert endpoints(last) == {"10.0.0.2:51820", "[fe80::1%eth0]:51820", "203.0.113.5:40000"}
    assert len(last.own) > 200, "nobody may send us to any of them"


async def test_what_was_predicted_of_a_nat_is_forgotten_with_it(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    world.mapped = {SERVER: Endpoint.parse("203.0.113.5:40000"), SECOND: Endpoint.parse("203.0.113.5:40001")}
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    assert world.told[-1][0].prediction is not None
    world.answers, world.addresses = False, [ip_address("10.0.7.7")]
    world.changed()
    await trio.sleep(10.0)
    last = world.told[-1][0]
    assert (last.prediction, last.symmetric) == (None, False)


async def test_a_stun_server_that_falls_silent_takes_nothing_away(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    world.answers = False
    world.changed()
    await trio.sleep(10.0)
    last, moved = world.told[-1]
    assert "203.0.113.5:40000" in endpoints(last)
    assert not moved


async def test_another_mapping_counts_as_a_move(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    for server in world.mapped:
        world.mapped[server] = Endpoint.parse("203.0.113.77:40000")
    world.told.clear()
    await trio.sleep(own_addresses.REFRESH_S + 1)  # nobody told: it is found out by asking again
    assert ("203.0.113.77:40000" in endpoints(world.told[-1][0]), True) in [
        (True, moved) for _, moved in world.told
    ]


async def test_a_symmetric_nat_that_gives_out_other_ports_has_not_moved_us(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    for ports, address, moves in (((1000, 9000), 5, False), ((2000, 7000), 5, False), ((1, 3000), 6, True)):
        for server, port in zip(world.mapped, ports, strict=True):
            world.mapped[server] = Endpoint(ip_address(f"203.0.113.{address}"), port)
        if not world.told:
            await nursery.start(world.made().run)
        world.told.clear()
        await trio.sleep(own_addresses.REFRESH_S + 1)
        assert any(moved for _, moved in world.told) is moves
        assert world.told[-1][0].symmetric


async def test_a_nat_that_counts_is_predicted(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    world.mapped = {SERVER: Endpoint.parse("203.0.113.5:40000"), SECOND: Endpoint.parse("203.0.113.5:40001")}
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    last, _ = world.told[-1]
    assert last.prediction is not None
    assert (str(last.prediction.first), last.prediction.step) == ("203.0.113.5:40002", 1)
    assert len([one for one in last.candidates if one.type == "srflx"]) == 1


async def test_while_it_is_wanted_a_counting_nat_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    world.mapped = {SERVER: Endpoint.parse("203.0.113.5:40000"), SECOND: Endpoint.parse("203.0.113.5:40001")}

    @asynccontextmanager
    async def fresh() -> AsyncIterator[tuple[object, StunClient]]:
        other = World(monkeypatch)  # the same NAT, later
        other.mapped = {SERVER: Endpoint.parse("203.0.113.5:40777")}
        yield None, other.client

    made = world.made()
    made._fresh, made._wanted = fresh, lambda: True
    await nursery.start(made.run)
    await trio.sleep(own_addresses.COUNT_EVERY_S + 1)
    last, moved = world.told[-1]
    assert last.prediction is not None
    assert (last.prediction.first.port, last.prediction.step, moved) == (40778, 1, False)


async def test_what_is_found_again_is_no_news(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Else all peers would be told all addresses twice a minute, since STUN answers a moment later than the
    kernel, and the freshest come first."""
    world = World(monkeypatch)
    await nursery.start(world.made().run)
    await trio.sleep(1.0)
    known, _ = world.told[-1]
    world.told.clear()
    await trio.sleep(5 * own_addresses.REFRESH_S)
    assert len(world.told) == 10
    assert all(local.is_like(known) for local, _ in world.told)


async def test_what_others_found_out_is_told_too_and_they_hear_of_a_move(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)
    world.answers = False
    more: list[Candidate] = []
    moves: list[float] = []
    made = OwnAddresses(
        "wg0",
        client=world.client,
        servers=[],
        publish=world.publish,
        port=lambda: 51820,
        connected=lambda: True,
        watch=world.watch,
        addresses=world.host_addresses,
        hold_s=10.0,
        more=lambda: more,
        moved=lambda: moves.append(trio.current_time()),
    )
    await nursery.start(made.run)
    await trio.sleep(1.0)
    assert endpoints(made.local) == {"10.0.0.2:51820"}
    more.append(make("srflx", Endpoint.parse("203.0.113.9:51820"), base=INNER, method="upnp"))
    made.tell()
    assert endpoints(world.told[-1][0]) == {"10.0.0.2:51820", "203.0.113.9:51820"}
    assert moves == []
    world.addresses = [ip_address("10.0.7.7")]
    world.changed()
    await trio.sleep(1.0)
    assert len(moves) == 1


async def test_g15_names_that_dns_does_not_answer_for_cost_their_seconds_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(monkeypatch)

    async def dead(*_: object, **__: object) -> list[tuple[object, ...]]:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    names = [StunServer(f"{name}.example.net", 3478) for name in ("a", "b", "c", "d")]
    made = OwnAddresses(
        "wg0",
        client=world.client,
        servers=[*names, StunServer("192.0.2.1", 3478)],
        publish=world.publish,
        port=lambda: 51820,
        connected=lambda: True,
        watch=world.watch,
        addresses=world.host_addresses,
        hold_s=10.0,
        resolver=Resolver(dead),
    )
    await nursery.start(made.run)
    await trio.sleep(RESOLVE_S + 0.5)
    assert endpoints(made.local) == {"10.0.0.2:51820", "203.0.113.5:40000"}
