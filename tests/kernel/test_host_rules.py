"""What relayd adds to a host, in a real kernel: added, proved, put back, and not written twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from relayd.kernel import host_rules
from relayd.kernel.firewall import Iptables
from relayd.kernel.host_rules import HostRules, Inventory, LoopError
from relayd.kernel.routing import NetlinkRouting
from relayd.kernel.sysctls import Sysctls
from tests.kernel.shell import UNDO_RULES, host, removed, sh

ADDRESSES = (ip_interface("10.8.0.1/24"), ip_interface("fd08::1/64"))
ALLOWED = [ip_network(text) for text in ("10.8.0.2/32", "10.77.0.0/16", "fd77::/64")]
RELAY = ip_address("192.0.2.9")
OURS = host_rules.owned("tunnel0", ADDRESSES, ALLOWED)


@pytest.fixture
def rules(tmp_path: Path) -> Iterator[HostRules]:
    """On a host with tunnel0, and eth9 by which the relay is reached."""
    sh(
        "ip link add eth9 type veth peer name eth10; "
        "ip link set eth9 addrgenmode none; ip link set eth10 addrgenmode none; "
        "ip link set eth9 up; ip link set eth10 up; "
        "ip address add 192.0.2.1/24 dev eth9; "
        "ip link add tunnel0 type wireguard; ip link set tunnel0 up; "
        "ip address add 10.8.0.1/24 dev tunnel0; ip address add fd08::1/64 dev tunnel0"
    )
    yield HostRules(NetlinkRouting(), Sysctls(tmp_path), Iptables())
    removed("tunnel0", "eth9")
    sh(f"{UNDO_RULES}\nsysctl -qw net.ipv4.conf.lo.accept_local=0")


def kept(*, of: int) -> list[str]:
    """The lines of `ip rule`, or `ip -6 rule`, that are ours."""
    listed = sh(f"ip -{of} rule").replace("\t", " ").splitlines()
    return [line for line in listed if "22347" in line or "0x574b" in line]


async def test_everything_in_the_inventory_is_added_once(rules: HostRules) -> None:
    done = await rules.apply(OURS, [RELAY])
    assert done.problems == []
    for version in (4, 6):
        assert kept(of=version) == [
            "110: from all fwmark 0x574b lookup main",
            "200: from all lookup 22347",
        ]
    assert [line.strip() for line in sh("ip route show table 22347").splitlines()] == [
        "10.8.0.2 dev tunnel0 proto static scope link src 10.8.0.1",
        "10.77.0.0/16 dev tunnel0 proto static scope link src 10.8.0.1",
    ]
    assert "fd77::/64 dev tunnel0 proto static src fd08::1" in sh("ip -6 route show table 22347")
    assert sh("sysctl -n net.ipv4.conf.tunnel0.rp_filter net.ipv4.conf.lo.accept_local") == "2\n1\n"
    before = host()
    again = await rules.apply(OURS, [RELAY])
    assert (again.written, again.problems) == ([], [])
    assert host() == before


@pytest.mark.parametrize(("local", "mark"), [(100, 110), (105, 115), (300, 199)])
async def test_marked_packets_follow_the_local_table_wherever_a_cni_moved_it(
    rules: HostRules, local: int, mark: int
) -> None:
    await rules.apply(OURS, [RELAY])
    sh(f"ip rule add from all lookup local priority {local}; ip rule del from all lookup local priority 0")
    try:
        await rules.apply(OURS, [RELAY])
        assert kept(of=4) == [f"{mark}: from all fwmark 0x574b lookup main", "200: from all lookup 22347"]
        assert kept(of=6)[0].startswith("110:")
    finally:
        sh(
            "ip rule add from all lookup local priority 0; "
            f"ip rule del from all lookup local priority {local}"
        )


async def test_what_was_removed_comes_back_and_what_is_wrong_is_replaced(rules: HostRules) -> None:
    await rules.apply(OURS, [RELAY])
    right = host()
    sh(
        "ip rule del priority 110; ip -6 rule del priority 200; ip route flush table 22347; "
        "ip route add 10.8.0.2/32 dev eth9 table 22347; ip route add 10.99.0.0/16 dev tunnel0 table 22347; "
        "ip rule add fwmark 0x574b lookup main priority 115; sysctl -qw net.ipv4.conf.tunnel0.rp_filter=1"
    )
    done = await rules.apply(OURS, [RELAY])
    assert len(done.written) == 7, done.written
    assert host() == right


async def test_strangers_rules_and_routes_are_left_alone(rules: HostRules) -> None:
    strange = (
        "ip rule add from 10.5.0.0/16 lookup 100 priority 200; ip rule add fwmark 0x574b/0xffff lookup 7"
    )
    sh(f"{strange} priority 115; ip route add 10.66.0.0/16 dev eth9 table 22347")
    await rules.apply(replace(OURS, routes=OURS.routes[:1]), [RELAY])
    await rules.apply(Inventory(interface="wg9"), [RELAY])
    listed = sh("ip rule")
    assert "from 10.5.0.0/16 lookup 100" in listed
    assert "fwmark 0x574b/0xffff lookup 7" in listed
    assert "10.66.0.0/16 dev eth9" in sh("ip route show table 22347")
    sh("ip rule del from 10.5.0.0/16 lookup 100; ip rule del fwmark 0x574b/0xffff lookup 7")


async def test_a_peer_whose_network_holds_the_relay_is_no_loop(rules: HostRules) -> None:
    with_relay = host_rules.owned("tunnel0", ADDRESSES, [ip_network("192.0.2.0/24"), ip_network("0.0.0.0/0")])
    for _ in range(2):
        await rules.apply(with_relay, [RELAY])
    assert "dev tunnel0" in sh("ip route get 192.0.2.9")
    assert "dev eth9" in sh("ip route get 192.0.2.9 mark 0x574b")


async def test_a_relay_behind_the_tunnel_is_refused_and_nothing_is_added(rules: HostRules) -> None:
    sh("ip route add 198.51.100.0/24 dev tunnel0")
    before = host()
    with pytest.raises(LoopError) as refused:
        await rules.apply(OURS, [RELAY, ip_address("198.51.100.7")])
    assert "the relay 198.51.100.7 would be reached through tunnel0 itself" in str(refused.value)
    assert "dev tunnel0 table main src 10.8.0.1" in str(refused.value)
    assert "ip route get 198.51.100.7 mark 0x574b" in str(refused.value)
    assert host() == before


async def test_a_rule_before_ours_that_leads_into_the_tunnel_is_refused(rules: HostRules) -> None:
    sh("ip rule add from all lookup 22347 priority 50; ip rule add to 192.0.2.9 lookup 22347 priority 51")
    with pytest.raises(LoopError, match="a rule stands before the one that keeps marked packets out"):
        await rules.apply(replace(OURS, table_rule=False), [RELAY])
    sh("ip rule del to 192.0.2.9 lookup 22347 priority 51")


async def test_a_host_without_a_way_to_the_relay_is_no_loop(rules: HostRules) -> None:
    await rules.apply(host_rules.owned("tunnel0", ADDRESSES, [ip_network("0.0.0.0/0")]), [RELAY])
    sh("ip link set eth9 down")
    await rules.apply(OURS, [RELAY])


async def test_a_peers_ipv6_on_a_host_without_keeps_nothing_else_from_its_place(rules: HostRules) -> None:
    sh("sysctl -qw net.ipv6.conf.tunnel0.disable_ipv6=1")
    done = await rules.apply(OURS, [RELAY])
    (problem,) = done.problems
    assert "cannot set route fd77::/64 dev tunnel0 table 22347" in problem
    assert "IPv6 is disabled on tunnel0" in problem
    assert sh("ip route show table 22347").count("dev tunnel0") == 2
    assert sh("sysctl -n net.ipv4.conf.tunnel0.rp_filter") == "2\n"
    again = await rules.apply(OURS, [RELAY])
    assert (again.written, again.problems) == ([], [problem]), "what wasn't written isn't said to be"
