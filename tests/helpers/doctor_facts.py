"""Hosts as `relayd check` sees them: one that no agent has been on, one that is set up, and parts of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from relayd import marks
from relayd.doctor.checks import judge
from relayd.doctor.facts import (
    Buffers,
    Capabilities,
    HostFacts,
    PortHolder,
    Reach,
    RelayFacts,
    RouteProof,
    StateFacts,
    WireGuardFacts,
)
from relayd.doctor.finding import Finding
from relayd.kernel.routing import LOCAL, MAIN, Hop, Route, RoutingState, Rule
from relayd.wire.identity import Trust
from tests.helpers.identities import private

WANTED = 8 << 20
KERNEL_RULES = tuple(
    Rule(version=version, priority=priority, table=table)
    for version in (4, 6)
    for priority, table in ((0, LOCAL), (32766, MAIN))
)
RELAY = ip_address("192.0.2.1")
ETH0 = Hop(device="eth0", table=MAIN, gateway=ip_address("192.0.2.254"))
TUNNEL = Hop(device="wire_kube", table=marks.TABLE)

BARE = HostFacts(
    interface="wire_kube",
    listen_port=51820,
    proxy_port=22347,
    capabilities=Capabilities(net_admin=True, net_raw=True, may_mark=True),
    wireguard=WireGuardFacts(in_kernel=True),
    buffers=Buffers(wanted=WANTED, granted=WANTED, forced=True, rmem_max=212992),
    state=StateFacts(path="/var/lib/wirekube"),
    routing=RoutingState(versions=(4, 6), rules=KERNEL_RULES, routes=()),
)
"""A host that no agent has been started on."""


def mark_rule(version: int = 4, priority: int = 110) -> Rule:
    return Rule(version=version, priority=priority, table=MAIN, mark=marks.FWMARK)


def table_rule(version: int = 4, priority: int = 200) -> Rule:
    return Rule(version=version, priority=priority, table=marks.TABLE)


def with_rules(*rules: Rule, routes: tuple[Route, ...] = ()) -> HostFacts:
    everything = sorted((*KERNEL_RULES, *rules), key=lambda rule: rule.priority)
    return replace(BARE, routing=RoutingState(versions=(4, 6), rules=tuple(everything), routes=routes))


ROUTE = Route(destination=ip_network("10.9.0.0/24"), device="wire_kube")
SET_UP = replace(
    with_rules(mark_rule(), mark_rule(6), table_rule(), table_rule(6), routes=(ROUTE,)),
    wireguard=WireGuardFacts(
        in_kernel=True, link_kind="wireguard", is_up=True, listen_port=51820, fwmark=marks.FWMARK, peers=2
    ),
    sysctls={
        "net.ipv4.conf.all.rp_filter": 0,
        "net.ipv4.conf.wire_kube.rp_filter": 2,
        "net.ipv4.conf.lo.accept_local": 1,
    },
    agent_runs=True,
    ports=(PortHolder(22347, "0.0.0.0", 7, "python3", "python3 -m relayd agent --relay r:1"),),
    state=StateFacts(path="/var/lib/wirekube", directory_mode=0o700, key_mode=0o600),
)
"""One on which it runs, and has done everything."""


RELAY_KEY, OTHER_KEY = private("relay").public(), private("other").public()


def relay(**changes: Any) -> RelayFacts:
    facts = RelayFacts(
        address="192.0.2.1:3478",
        proofs=(RouteProof(address=RELAY, marked=ETH0, unmarked=ETH0),),
        marked=Reach(peer="192.0.2.1:3478", echo="welcomed", key=RELAY_KEY, trust=Trust.PINNED),
        unmarked=Reach(peer="192.0.2.1:3478"),
    )
    return replace(facts, **changes)


DOWN = Reach(problem="Connection refused")


def of(check: str, facts: HostFacts) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.check == check]


def one(check: str, facts: HostFacts) -> Finding:
    (finding,) = of(check, facts)
    return finding


def faults(facts: HostFacts) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.level != "ok"]
