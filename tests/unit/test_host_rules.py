"""host_rules: what is written to a host, and what isn't. Values and fakes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from relayd import marks
from relayd.errors import HostError
from relayd.kernel import host_rules
from relayd.kernel.host_rules import HostRules, LoopError, source_for
from relayd.kernel.routing import LOCAL, MAIN, Route, RoutingChanges, RoutingState, Rule
from relayd.kernel.sysctls import Sysctl, Sysctls
from tests.helpers.fake_host import FakeFirewall, FakeRouting, default_rules, proc_sys

ADDRESSES = tuple(ip_interface(text) for text in ("10.8.0.1/24", "10.9.0.1/16", "fd08::1/64"))
OURS = host_rules.owned("wire_kube", ADDRESSES, [ip_network("10.9.7.0/24"), ip_network("fd77::/64")])
RELAY = ip_address("192.0.2.9")


@pytest.fixture
def routing() -> FakeRouting:
    return FakeRouting()


@pytest.fixture
def rules(routing: FakeRouting, tmp_path: Path) -> HostRules:
    root = proc_sys(
        tmp_path / "proc",
        net__ipv4__conf__wire_kube__rp_filter="0",
        net__ipv4__conf__lo__accept_local="0",
    )
    return HostRules(routing, Sysctls(tmp_path / "state", root), FakeFirewall(nft=[False]))


@pytest.mark.parametrize(
    ("network", "source"),
    [
        ("10.9.7.0/24", "10.9.0.1"),  # of the network that it is in
        ("10.8.0.2/32", "10.8.0.1"),
        ("172.20.0.0/16", "10.8.0.1"),  # else the first
        ("0.0.0.0/0", "10.8.0.1"),
        ("fd77::/64", "fd08::1"),
    ],
)
def test_a_route_has_the_nodes_own_address_for_its_source(network: str, source: str) -> None:
    assert source_for(ip_network(network), ADDRESSES) == ip_address(source)


def test_without_an_address_of_the_family_the_kernel_chooses_the_source() -> None:
    assert source_for(ip_network("fd77::/64"), ADDRESSES[:1]) is None


@pytest.mark.parametrize(
    ("local", "mark"), [(0, 110), (99, 110), (100, 110), (101, 111), (189, 199), (500, 199)]
)
def test_marked_packets_come_after_the_local_table_and_before_ours(local: int, mark: int) -> None:
    state = RoutingState(versions=(4,), rules=(Rule(version=4, priority=local, table=LOCAL),), routes=())
    assert host_rules.mark_rule(state, 4).priority == mark


def test_a_rule_that_selects_by_more_is_not_ours() -> None:
    table, mark = host_rules.table_rule(4), Rule(version=4, priority=110, table=MAIN, mark=marks.FWMARK)
    assert host_rules.is_table_rule(replace(table, priority=7))
    assert host_rules.is_mark_rule(replace(mark, priority=7))
    for strange in (
        replace(table, selectors=("FRA_SRC",)),
        replace(table, mark=1),
        replace(table, table=MAIN),
        replace(mark, mask=0xFFFF),
        replace(mark, mark=1),
        replace(mark, table=7),
        replace(mark, selectors=("not",)),
        replace(mark, action=6),
    ):
        assert not host_rules.is_table_rule(strange)
        assert not host_rules.is_mark_rule(strange)


async def test_what_is_right_is_not_written_again(rules: HostRules, routing: FakeRouting) -> None:
    first = await rules.apply(OURS, [RELAY])
    assert len(first.written) == 9  # four rules, two routes, two switches, the firewall's rule
    writes = len(routing.writes)
    again = await rules.apply(OURS, [RELAY])
    assert (again.written, again.problems, len(routing.writes)) == ([], [], writes)


async def test_a_kernel_without_ipv6_gets_ipv4_alone(routing: FakeRouting) -> None:
    state = RoutingState(versions=(4,), rules=tuple(default_rules()), routes=())
    changes = host_rules.plan(OURS, state)
    assert {rule.version for rule in changes.add_rules} == {4}
    assert [str(route.destination) for route in changes.set_routes] == ["10.9.7.0/24"]


async def test_routes_of_other_interfaces_and_rules_of_other_agents_stay(
    rules: HostRules, routing: FakeRouting
) -> None:
    other = Route(destination=ip_network("10.66.0.0/16"), device="wire_b")
    await routing.write(RoutingChanges(set_routes=(other,)))
    await rules.apply(OURS, [])
    await rules.apply(host_rules.adopted("wg0", mark_rule=False), [])
    assert other in routing.routes
    assert len([rule for rule in routing.rules if host_rules.is_table_rule(rule)]) == 2


async def test_a_loop_is_refused_before_anything_is_added(rules: HostRules, routing: FakeRouting) -> None:
    routing.main[ip_network("192.0.2.0/24")] = "wire_kube"
    with pytest.raises(LoopError, match=r"the relay 192\.0\.2\.9 would be reached through wire_kube itself"):
        await rules.apply(OURS, [RELAY])
    assert routing.rules == default_rules()
    assert routing.routes == []


async def test_a_loop_that_comes_later_takes_no_rule_from_wireguards_own_packets(
    rules: HostRules, routing: FakeRouting
) -> None:
    """A flush of the rules, say, while the relay's name leads into the tunnel."""
    await rules.apply(OURS, [RELAY])
    right = list(routing.rules)
    routing.main[ip_network("192.0.2.0/24")] = "wire_kube"
    routing.rules = [rule for rule in right if rule.mark is None]
    for _ in range(2):
        with pytest.raises(LoopError):
            await rules.apply(OURS, [RELAY])
        assert routing.rules == right
    with pytest.raises(LoopError):
        await rules.apply(replace(OURS, routes=OURS.routes[1:]), [RELAY])
    assert tuple(routing.routes) == OURS.routes[1:], "and a peer that was deleted goes"


async def test_a_relay_inside_the_allowed_ips_is_reached_by_the_main_table(
    rules: HostRules, routing: FakeRouting
) -> None:
    routing.main[ip_network("0.0.0.0/0")] = "eth0"
    everything = host_rules.owned("wire_kube", ADDRESSES, [ip_network("0.0.0.0/0")])
    for _ in range(2):
        await rules.apply(everything, [RELAY])
    hops = await routing.look_up([RELAY, RELAY], mark=0)
    assert [hop and hop.device for hop in hops] == ["wire_kube", "wire_kube"]


async def test_marked_packets_are_kept_from_kube_proxys_chain_wherever_there_is_one(rules: HostRules) -> None:
    assert isinstance(rules.firewall, FakeFirewall)
    nat = rules.firewall.nat
    nat["nft", 4], nat["nft", 6], nat["legacy", 4] = ["jump"], ["calico", "jump", "ours"], ["docker"]
    done = await rules.apply(OURS, [RELAY])
    assert nat == {
        ("nft", 4): ["ours", "jump"],
        ("nft", 6): ["calico", "ours", "jump"],
        ("legacy", 4): ["docker"],
    }
    assert "added iptables-nft rule POSTROUTING -m mark --mark 0x574b ACCEPT" in done.written
    assert (await rules.apply(OURS, [RELAY])).written == []
    nat["nft", 4] = ["jump", "ours", "jump"]  # kube-proxy puts its jump first
    await rules.apply(OURS, [RELAY])
    assert nat["nft", 4] == ["ours", "jump", "jump"]
    nat["nft", 4] = ["ours"]  # kube-proxy has gone: no harm done
    assert (await rules.apply(OURS, [RELAY])).written == []


async def test_what_a_container_may_not_write_is_a_problem_and_not_the_end(
    rules: HostRules, routing: FakeRouting
) -> None:
    assert isinstance(rules.firewall, FakeFirewall)
    rules.firewall.failure = HostError("no iptables for you")
    done = await rules.apply(OURS, [RELAY])
    assert done.problems == ["no iptables for you"]
    assert len(done.written) == 8


async def test_a_route_that_cannot_be_is_a_problem_and_not_the_end(
    rules: HostRules, routing: FakeRouting
) -> None:
    assert isinstance(rules.firewall, FakeFirewall)
    more = [ip_network("fd78::/64"), ip_network("10.77.0.0/16")]
    routing.without = {6}
    wanted = host_rules.owned("wire_kube", ADDRESSES, [*(route.destination for route in OURS.routes), *more])
    done = await rules.apply(wanted, [RELAY])
    assert [str(route.destination) for route in routing.routes] == ["10.9.7.0/24", "10.77.0.0/16"]
    (problem,) = done.problems
    assert "fd77::/64" in problem
    assert problem.endswith("(and 1 routes more)")
    assert rules.firewall.chains_of == {"nft": [True, False]}, "the rest has its place"
    assert (await rules.apply(wanted, [RELAY])).written == []


def test_old_values_are_remembered_once_and_restored_from_ours_alone(tmp_path: Path) -> None:
    root = proc_sys(tmp_path / "proc", a__b="0", a__c="5")
    sysctls = Sysctls(tmp_path / "state", root)
    for sysctl in OURS.sysctls:
        sysctls.set(sysctl)  # there is no such switch: nothing to do
    assert sysctls.changed() == []
    b, c = Sysctl("a/b", "1"), Sysctl("a/c", "2")
    for sysctl in (b, c, b):
        sysctls.set(sysctl)
    assert (sysctls.read("a/b"), sysctls.read("a/c")) == ("1", "2")
    (root / "a/c").write_text("7\n")  # somebody else, since
    again = Sysctls(tmp_path / "state", root)
    assert again.changed() == [Sysctl("a/b", "0")]
    for old in again.changed():
        again.restore(old)
    assert (again.read("a/b"), again.read("a/c"), again.changed()) == ("0", "7", [])
    assert (tmp_path / "state/sysctls.json").stat().st_mode & 0o777 == 0o600
