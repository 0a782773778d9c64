"""What `relayd check` finds in policy rules, in firewall rules about marks, and in Kubernetes' chains."""

from __future__ import annotations

from dataclasses import replace

from relayd.doctor.facts import FirewallDump, HostFacts, UnreadFirewall
from relayd.kernel import firewall
from relayd.kernel.firewall import Chain
from relayd.kernel.routing import LOCAL, RoutingState, Rule
from tests.helpers.doctor_facts import (
    BARE,
    KERNEL_RULES,
    SET_UP,
    mark_rule,
    of,
    one,
    table_rule,
    with_rules,
)

# --- policy rules ---


def test_our_table_without_the_rule_for_marked_packets_is_an_error() -> None:
    found = one("rules", with_rules(table_rule()))
    assert found.level == "error"
    assert found.command == "ip rule add priority 110 fwmark 0x574b lookup main"


def test_the_rule_that_is_missing_goes_after_the_local_tables() -> None:
    moved = Rule(version=6, priority=105, table=LOCAL)
    routing = RoutingState(versions=(4, 6), rules=(KERNEL_RULES[0], moved, table_rule(6)), routes=())
    found = one("rules", replace(BARE, routing=routing))
    assert found.command == "ip -6 rule add priority 115 fwmark 0x574b lookup main"


def test_marked_packets_that_skip_the_local_table_are_an_error() -> None:
    rules = (Rule(version=4, priority=120, table=LOCAL), mark_rule(), table_rule())
    found = one("rules", replace(BARE, routing=RoutingState(versions=(4,), rules=rules, routes=())))
    assert (found.level, "comes before the local table's" in found.text) == ("error", True)
    add, delete = found.command.splitlines()
    assert add == "ip rule add priority 130 fwmark 0x574b lookup main"
    assert delete == "ip rule del priority 110 fwmark 0x574b lookup main"


def test_a_second_rule_is_a_warning_with_the_command_for_that_one() -> None:
    found = one("rules", with_rules(mark_rule(), mark_rule(priority=130), table_rule()))
    assert (found.level, found.command) == ("warning", "ip rule del priority 130 fwmark 0x574b lookup main")


def test_rules_that_cannot_be_read_are_a_warning() -> None:
    assert one("rules", replace(BARE, routing_problem="no netlink")).level == "warning"


# --- marks of others ---


def test_a_rule_of_others_that_takes_our_packets_is_printed_with_its_mask() -> None:
    foreign = Rule(version=4, priority=50, table=99, mark=0x200, mask=0xF00)
    other = replace(foreign, mark=0x300)
    found = of("marks", with_rules(foreign, replace(other, priority=51), mark_rule(), table_rule()))
    assert [finding.level for finding in found] == ["ok"]
    taking = replace(foreign, mark=0x700, priority=52)
    found = of("marks", with_rules(taking, mark_rule(), table_rule()))
    assert (found[0].level, "fwmark 0x700/0xf00" in found[0].text) == ("warning", True)
    assert found[0].command.startswith("ip rule del priority 52")


def test_a_rule_that_is_asked_after_ours_takes_nothing() -> None:
    late = Rule(version=4, priority=150, table=99, mark=0x700, mask=0xF00)
    assert [finding.level for finding in of("marks", with_rules(late, mark_rule(), table_rule()))] == ["ok"]
    assert [finding.level for finding in of("marks", with_rules(late))] == ["ok"]


KUBE_PROXY = """\
*nat
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
"""


MASQUERADE = """\
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
COMMIT
"""


def test_a_masquerade_of_others_is_a_warning_with_the_rule_that_goes_before_it() -> None:
    found = of("marks", replace(BARE, firewalls=(FirewallDump("iptables-nft", MASQUERADE),)))
    assert [finding.level for finding in found] == ["warning", "ok"]
    assert "0x574b & 0x4000 is 0x4000" in found[0].meaning
    assert found[0].command == "iptables-nft -t nat -I POSTROUTING 1 -m mark --mark 0x574b -j ACCEPT"


def test_and_is_none_once_that_rule_stands_there() -> None:
    first = "-A POSTROUTING"
    mended = MASQUERADE.replace(first, f"{first} -m mark --mark 0x574b -j ACCEPT\n{first}")
    found = of("marks", replace(BARE, firewalls=(FirewallDump("iptables-nft", mended),)))
    assert [finding.level for finding in found] == ["ok"]


def with_kube_proxy(facts: HostFacts, *ours: int, jump: int = 1) -> HostFacts:
    chain = Chain("nft", 1 + len(ours), ours, firewall.KUBE_PROXY, 4, jump)
    return replace(facts, firewalls=(FirewallDump("iptables-nft", KUBE_PROXY),), kube_chains=(chain,))


def test_kube_proxys_masquerade_is_an_error_once_the_host_is_set_up() -> None:
    facts = with_kube_proxy(SET_UP)
    found = one("kube-proxy", facts)
    assert (found.level, "no exception for 0x574b" in found.text) == ("error", True)
    assert found.command == (
        "iptables-nft -t nat -I POSTROUTING 1 -m mark --mark 0x574b -j ACCEPT "
        "-m comment --comment 'relayd: WireGuard packets keep their source'"
    )
    assert [finding.level for finding in of("marks", facts)] == ["ok"]  # it has its own finding
    assert one("kube-proxy", with_kube_proxy(BARE)).level == "ok"
    assert one("kube-proxy", BARE).level == "ok"


def test_the_exception_counts_before_kube_proxys_jump_and_once() -> None:
    assert one("kube-proxy", with_kube_proxy(SET_UP, 1, jump=2)).level == "ok"
    late = one("kube-proxy", with_kube_proxy(SET_UP, 2, jump=1))
    assert (late.level, late.command.count(" -D "), " -I POSTROUTING 1 " in late.command) == (
        "warning",
        1,
        True,
    )
    twice = one("kube-proxy", with_kube_proxy(SET_UP, 1, 2, jump=3))
    assert (twice.level, twice.command.count(" -D ")) == ("warning", 2)


def test_a_mark_that_is_overwritten_in_output_is_a_warning() -> None:
    text = "*mangle\n-A OUTPUT -j MARK --set-xmark 0x0/0xffffffff\nCOMMIT\n"
    found = of("marks", replace(BARE, firewalls=(FirewallDump("iptables-legacy", text),)))
    assert found[0].level == "warning"
    assert found[0].command == "iptables-legacy -t mangle -I OUTPUT 1 -m mark --mark 0x574b -j RETURN"


def test_a_firewall_that_tells_nothing_is_a_warning() -> None:
    unread = (UnreadFirewall("nft", "Operation not permitted"),)
    found = of("marks", replace(BARE, unread_firewalls=unread))
    assert (found[0].level, found[0].command) == ("warning", "sudo nft list ruleset")


# --- kubelet's chain ---


def test_kube_firewall_without_our_rule_is_an_error_once_the_host_is_set_up() -> None:
    chains = (Chain("nft", 2, ()),)
    found = one("kube-firewall", replace(SET_UP, kube_chains=chains))
    assert found.level == "error"
    assert found.command == (
        "iptables-nft -t filter -I KUBE-FIREWALL 1 -m mark --mark 0x574b -d 127.0.0.0/8 -j ACCEPT "
        "-m comment --comment 'wirekube: allow WG relay proxy on loopback'"
    )
    assert one("kube-firewall", replace(BARE, kube_chains=chains)).level == "ok"


def test_kube_firewall_with_our_rule_first_is_ok_and_later_or_twice_a_warning() -> None:
    assert one("kube-firewall", replace(SET_UP, kube_chains=(Chain("legacy", 3, (1,)),))).level == "ok"
    for ours in ((2,), (1, 2)):
        found = one("kube-firewall", replace(SET_UP, kube_chains=(Chain("legacy", 3, ours),)))
        assert found.level == "warning"
        assert found.command.count("iptables-legacy -t filter -D ") == len(ours)
