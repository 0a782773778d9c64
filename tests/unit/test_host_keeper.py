"""host_keeper: looks when there is news, every half minute anyway, and says each thing once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from relayd import marks
from relayd.agent.host_keeper import EVERY_S, RESOLVE_S, SETTLE_S, HostKeeper
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.join import JoinString
from relayd.kernel import host_rules
from relayd.kernel.device import Interface, Peer
from relayd.kernel.firewall import Chain
from relayd.kernel.host_rules import Applied, HostRules, Inventory, LoopError
from relayd.kernel.routing import Address, RoutingChanges
from relayd.kernel.sysctls import Sysctls
from tests.helpers.fake_host import FakeFirewall, FakeRouting, proc_sys
from tests.helpers.wireguard_contract import networks, new_key

OURS = host_rules.owned("wire_kube", [ip_interface("10.8.0.1/24")], [ip_network("10.9.0.0/24")])
RELAYS = (JoinString("relay.example.net", 3478),)


class Host:
    """A host in memory, and the keeper's surroundings."""

    def __init__(self, directory: Path) -> None:
        self.routing = FakeRouting()
        self.routing.main[ip_network("0.0.0.0/0")] = "eth0"
        self.firewall = FakeFirewall()
        self.rules = HostRules(self.routing, Sysctls(directory, proc_sys(directory / "proc")), self.firewall)
        self.addresses: list[Address] = [ip_address("192.0.2.9")]
        self.resolve_s = 0.0
        self.looks = 0
        self.interface_problem: HostError | None = None
        self.lesser_problems: list[str] = []
        self.news: Callable[[], None] = lambda: None
        self.firewall_news: Callable[[], None] = lambda: None
        self.lines: list[Mapping[str, object]] = []

    async def resolve(self, relays: Sequence[JoinString]) -> Sequence[Address]:
        await trio.sleep(self.resolve_s)
        return self.addresses

    async def keep_interface(self) -> Applied:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        if self.interface_problem is not None:
            raise self.interface_problem
        return Applied(problems=list(self.lesser_problems))

    async def watch(
        self, interface: str, changed: Callable[[], None], firewall_changed: Callable[[], None]
    ) -> None:
        self.news, self.firewall_news = changed, firewall_changed
        await trio.sleep_forever()

    def keeper(self, inventory: Inventory = OURS) -> HostKeeper:
        return HostKeeper(
            self.rules,
            inventory,
            RELAYS,
            keep_interface=self.keep_interface,
            resolve=self.resolve,
            watch=self.watch,
        )

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[HostKeeper]:
        keeper = self.keeper()
        with capture_logs() as lines:
            self.lines = lines  # type: ignore[assignment]  # structlog's own kind of mapping
            await keeper.begin()
            async with trio.open_nursery() as nursery:
                await nursery.start(keeper.run)
                yield keeper
                nursery.cancel_scope.cancel()

    def events(self) -> list[str]:
        return [str(line["event"]) for line in self.lines]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_what_goes_comes_back_as_soon_as_there_is_news(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with host.kept():
        right = list(host.routing.rules)
        await trio.sleep(1)
        del host.routing.rules[1]
        host.news()
        await trio.sleep(1.9)
        assert host.routing.rules == right
    assert host.events().count("host.restored") == 1


async def test_what_the_kernel_tells_nobody_comes_back_within_half_a_minute(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with host.kept():
        right = list(host.routing.rules)
        writes = len(host.routing.writes)
        await trio.sleep(10 * EVERY_S)
        assert len(host.routing.writes) == writes
        del host.routing.rules[1]
        await trio.sleep(EVERY_S + 1)
        assert host.routing.rules == right


WG = Interface("wire_kube", new_key().public(), 51820, 0x574B, {})
PEER = Peer(new_key().public(), None, networks("10.9.0.0/24"), None, rx_bytes=0, tx_bytes=0, keepalive_s=0)


@pytest.mark.parametrize(
    "changed",
    [
        replace(WG, public_key=new_key().public()),
        replace(WG, listen_port=51821),
        replace(WG, fwmark=0),
        replace(WG, peers={PEER.key: PEER}),
    ],
    ids=["key", "port", "mark", "peers"],
)
async def test_an_interface_that_reads_otherwise_than_before_is_looked_at(
    host: Host, autojump_clock: trio.testing.MockClock, changed: Interface
) -> None:
    async with host.kept() as keeper:
        for _ in range(5):
            keeper.interface_read(WG)
            await trio.sleep(1)
        assert host.looks == 0
        keeper.interface_read(changed)
        await trio.sleep(0.5)
        assert host.looks == 1


async def test_the_firewall_is_looked_at_when_it_has_news_and_now_and_then(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    """To list its chains is three processes: not for each route that comes or goes."""
    host.firewall.chains_of["nft"] = [False]
    async with host.kept():
        assert host.firewall.chains_of["nft"] == [True, False]
        host.firewall.chains_of["nft"] = [False]
        host.news()
        await trio.sleep(1)
        assert host.firewall.chains_of["nft"] == [False]
        host.firewall_news()
        await trio.sleep(1)
        assert host.firewall.chains_of["nft"] == [True, False]
        host.firewall.chains_of["nft"] = [False]
        await trio.sleep(EVERY_S + 1)
        assert host.firewall.chains_of["nft"] == [True, False]


async def test_a_firewall_that_cannot_be_read_counts_as_wrong_until_it_is_read(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.firewall.failure = HostError("no iptables for you")
    async with host.kept() as keeper:
        host.news()
        await trio.sleep(1)
        assert keeper.problems == ["no iptables for you"]
        host.firewall.failure = None
        host.news()
        await trio.sleep(1)
        assert keeper.problems == []
    assert host.events().count("host.right") == 1


async def test_an_iptables_that_waits_for_its_lock_holds_up_nothing_else(
    host: Host, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kube-proxy may hold it for seconds; a peer that was deleted must be gone within two."""
    async with host.kept() as keeper:
        await trio.sleep(1)

        async def chains() -> list[Chain]:
            await trio.sleep(60)
            return []

        monkeypatch.setattr(host.firewall, "chains", chains)
        host.firewall_news()
        await trio.sleep(1)
        with trio.fail_after(1):
            gone = replace(OURS, routes=())
            await keeper.follow(gone, RELAYS, now=host.keep_interface, later=host.keep_interface)
        assert host.routing.routes == []
        host.routing.rules.pop(1)
        host.news()
        await trio.sleep(1)
        assert any(rule.mark == marks.FWMARK for rule in host.routing.rules if rule.version == 4)


async def test_counters_handshakes_and_endpoints_are_no_change(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with host.kept() as keeper:
        for number in range(5):
            peer = replace(
                PEER, rx_bytes=number, handshake_at=float(number), endpoint=Endpoint.parse("192.0.2.1:7")
            )
            keeper.interface_read(replace(WG, peers={PEER.key: replace(peer, tx_bytes=number)}))
            await trio.sleep(1)
        assert host.looks == 0


async def test_a_switch_that_somebody_turns_is_turned_back_within_two_seconds(
    host: Host, autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    switch = tmp_path / "proc" / "net/ipv4/conf/lo/accept_local"
    switch.parent.mkdir(parents=True)
    switch.write_text("0")
    async with host.kept():
        assert switch.read_text().strip() == "1"
        await trio.sleep(3)
        switch.write_text("0")
        await trio.sleep(1.9)
        assert switch.read_text().strip() == "1"


async def test_many_pieces_of_news_are_one_look(host: Host, autojump_clock: trio.testing.MockClock) -> None:
    async with host.kept():
        await trio.sleep(1)
        looks = host.looks
        for _ in range(100):
            host.news()
            await trio.sleep(0.001)
        await trio.sleep(2)
        assert host.looks == looks + 1


async def test_a_problem_is_told_once_and_so_is_its_end(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with host.kept() as keeper:
        host.interface_problem = HostError("wire_kube is a veth interface")
        await trio.sleep(5 * EVERY_S)
        assert keeper.problems == ["wire_kube is a veth interface"]
        host.interface_problem = None
        await trio.sleep(2 * EVERY_S)
        assert keeper.problems == []
    assert [event for event in host.events() if event != "host.changed"] == ["host.wrong", "host.right"]


async def test_what_of_the_interface_cannot_be_keeps_no_route_that_should_go(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with host.kept() as keeper:
        await trio.sleep(1)
        host.lesser_problems = ["wire_kube cannot listen on UDP port 51999"]
        keeper.inventory = replace(OURS, routes=())
        host.news()
        await trio.sleep(2)
        assert keeper.problems == host.lesser_problems
        assert host.routing.routes == []


async def test_an_interface_that_is_not_ours_gets_no_routes(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with host.kept():
        await trio.sleep(1)
        host.interface_problem = HostError("wire_kube is a veth interface")
        host.routing.routes.clear()
        host.news()
        await trio.sleep(2)
        assert host.routing.routes == []


async def test_a_name_server_that_is_away_changes_no_address(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    async with host.kept() as keeper:
        host.addresses = []
        host.routing.main[ip_network("192.0.2.0/24")] = "wire_kube"
        await trio.sleep(2 * EVERY_S)
        assert "the relay 192.0.2.9 would be reached through wire_kube" in keeper.problems[0]


async def test_beside_an_adopted_full_tunnel_the_rule_is_added_when_it_helps(host: Host) -> None:
    # As wg-quick has it: a table that everything looks into before main.
    full = host_rules.table_rule(4)
    tunnel = replace(OURS.routes[0], destination=ip_network("0.0.0.0/0"), device="wg0", source=None)
    await host.routing.write(RoutingChanges(add_rules=(full,), set_routes=(tunnel,)))
    keeper = host.keeper(host_rules.adopted("wg0", mark_rule=False))
    with capture_logs() as lines:
        await keeper.begin()
    assert keeper.inventory.mark_rule
    assert "host.rule_needed" in [line["event"] for line in lines]
    # In its next life nothing shows any more that it was needed: it is kept all the same.
    again = host.keeper(host_rules.adopted("wg0", mark_rule=False))
    await again.begin()
    assert again.inventory.mark_rule


async def test_beside_an_adopted_tunnel_that_holds_the_relay_it_is_refused(host: Host) -> None:
    host.routing.main[ip_network("192.0.2.0/24")] = "wg0"
    before = list(host.routing.rules)
    with pytest.raises(LoopError, match="through wg0 itself"):
        await host.keeper(host_rules.adopted("wg0", mark_rule=False)).begin()
    assert host.routing.rules == before


async def test_beside_an_ordinary_tunnel_nothing_is_added(host: Host) -> None:
    before = list(host.routing.rules)
    await host.keeper(host_rules.adopted("wg0", mark_rule=False)).begin()
    assert host.routing.rules == before
    assert marks.TABLE not in {rule.table for rule in host.routing.rules}


async def test_g15_a_silent_name_server_does_not_hold_up_what_somebody_removed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    host = Host(tmp_path)
    keeper = host.keeper()
    await keeper.begin()
    await nursery.start(keeper.run)
    host.resolve_s, host.addresses = RESOLVE_S, []
    await trio.sleep(EVERY_S + 1.0)  # a look-up is under way
    looks = host.looks
    host.news()
    await trio.sleep(SETTLE_S + 0.1)
    assert host.looks == looks + 1
    assert keeper._addresses == [ip_address("192.0.2.9")]


async def test_a_relay_that_is_elsewhere_now_is_a_reason_to_look(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    host = Host(tmp_path)
    keeper = host.keeper()
    await keeper.begin()
    await nursery.start(keeper.run)
    host.addresses = [ip_address("192.0.2.77")]
    await trio.sleep(2 * EVERY_S + 1.0)
    assert keeper._addresses == host.addresses
