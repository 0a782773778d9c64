"""What holds for the routing and the firewall that relayd writes to: written once, run against the fakes and
the kernel.

A test module subclasses `RoutingContract` and gives it `routing`, on a host with an interface `tunnel0` that
is up and has 10.8.0.1/24 and fd08::1/64, and `FirewallContract` with `firewall`, which has KUBE-FIREWALL in
one variant, with one rule that isn't ours. `NatContract` wants `firewall` with POSTROUTING in one variant and
version: a rule of somebody, then the jump to KUBE-POSTROUTING.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from relayd import marks
from relayd.kernel import host_rules
from relayd.kernel.firewall import Firewall, put_right
from relayd.kernel.routing import LOCAL, MAIN, Hop, Route, Routing, RoutingChanges, Rule

V4, V6 = ip_address("10.8.0.1"), ip_address("fd08::1")
ROUTES = (
    Route(destination=ip_network("10.9.0.0/24"), device="tunnel0", source=V4),
    Route(destination=ip_network("10.9.1.7/32"), device="tunnel0"),
    Route(destination=ip_network("fd09::/64"), device="tunnel0", source=V6),
)
MARKED = tuple(Rule(version=version, priority=150, table=MAIN, mark=marks.FWMARK) for version in (4, 6))
ALL = tuple(Rule(version=version, priority=200, table=marks.TABLE) for version in (4, 6))


class RoutingContract:
    """The claims about rules and routes."""

    @pytest.fixture
    def routing(self) -> Routing:
        raise NotImplementedError

    async def test_a_namespace_begins_with_the_local_table_and_nothing_of_ours(
        self, routing: Routing
    ) -> None:
        state = await routing.read()
        assert state.versions == (4, 6)
        assert Rule(version=4, priority=0, table=LOCAL) in state.rules
        assert Rule(version=6, priority=32766, table=MAIN) in state.rules
        assert state.routes == ()

    async def test_what_was_written_is_read_back_and_goes_again(self, routing: Routing) -> None:
        before = await routing.read()
        added = RoutingChanges(add_rules=(*MARKED, *ALL), set_routes=ROUTES)
        for _ in range(2):  # what is there already is no error
            await routing.write(added)
            state = await routing.read()
            assert set(state.rules) == {*before.rules, *MARKED, *ALL}
            assert len(state.rules) == len(before.rules) + 4
            assert sorted(map(str, state.routes)) == sorted(map(str, ROUTES))
            assert set(state.routes) == set(ROUTES)
        for _ in range(2):  # nor what is gone
            await routing.write(RoutingChanges(remove_rules=(*MARKED, *ALL), remove_routes=ROUTES))
            assert await routing.read() == before

    async def test_a_route_that_is_set_takes_the_place_of_another(self, routing: Routing) -> None:
        await routing.write(RoutingChanges(set_routes=ROUTES))
        changed = (replace(ROUTES[0], source=None), replace(ROUTES[2], source=None))
        await routing.write(RoutingChanges(set_routes=changed))
        assert set((await routing.read()).routes) == {*changed, ROUTES[1]}

    async def test_a_look_up_follows_the_mark(self, routing: Routing) -> None:
        far, near = ip_address("10.9.0.77"), ip_address("127.0.0.1")
        await routing.write(RoutingChanges(add_rules=ALL, set_routes=ROUTES))
        hops = await routing.look_up([far, near, ip_address("fd09::7")], mark=0)
        assert [hop and (hop.device, hop.table) for hop in hops] == [
            ("tunnel0", marks.TABLE), ("lo", LOCAL), ("tunnel0", marks.TABLE),
        ]  # fmt: skip
        blackhole = replace(MARKED[0], priority=199)
        await routing.write(RoutingChanges(add_rules=(blackhole,)))
        (hop,) = await routing.look_up([far], mark=marks.FWMARK)
        # The main table knows no way there, and the search goes on.
        assert isinstance(hop, Hop)
        assert hop.table == marks.TABLE
        assert await routing.look_up([ip_address("198.51.100.1")], mark=0) == [None]

    async def test_only_the_rule_of_that_priority_goes(self, routing: Routing) -> None:
        low, high = replace(ALL[0], priority=201), replace(ALL[0], priority=199)
        await routing.write(RoutingChanges(add_rules=(low, ALL[0], high)))
        await routing.write(RoutingChanges(remove_rules=(ALL[0],)))
        rules = (await routing.read()).rules
        assert [rule for rule in rules if host_rules.is_table_rule(rule)] == [high, low]


class FirewallContract:
    """The claims about the rule in KUBE-FIREWALL."""

    @pytest.fixture
    def firewall(self) -> Firewall:
        raise NotImplementedError

    async def test_the_rule_becomes_the_first_and_only_one(self, firewall: Firewall) -> None:
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours, chain.is_right) == (1, (), False)
        await put_right(firewall, chain)
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours, chain.is_right) == (2, (1,), True)
        await firewall.insert(chain)
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours, chain.is_right) == (3, (1, 2), False)
        await put_right(firewall, chain)
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours) == (2, (1,))

    async def test_only_our_rule_is_deleted(self, firewall: Firewall) -> None:
        (chain,) = await firewall.chains()
        await firewall.insert(chain)
        for _ in range(3):
            await firewall.delete(chain)
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours) == (1, ())


class NatContract:
    """The claims about the rule before the jump to KUBE-POSTROUTING."""

    @pytest.fixture
    def firewall(self) -> Firewall:
        raise NotImplementedError

    async def test_the_rule_goes_before_the_jump_and_no_further(self, firewall: Firewall) -> None:
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours, chain.jump, chain.is_right) == (2, (), 2, False)
        await put_right(firewall, chain)
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours, chain.jump, chain.is_right) == (3, (2,), 3, True)
        await firewall.insert(chain)
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours, chain.jump, chain.is_right) == (4, (2, 3), 4, False)
        await put_right(firewall, chain)
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours, chain.jump) == (3, (2,), 3)

    async def test_only_our_rule_goes_and_then_nothing_is_told_without_the_jump(
        self, firewall: Firewall
    ) -> None:
        (chain,) = await firewall.chains()
        await firewall.insert(chain)
        for _ in range(3):
            await firewall.delete(chain)
        (chain,) = await firewall.chains()
        assert (chain.length, chain.ours, chain.jump) == (2, (), 2)
