"""Selector and checklist in a simulated network, with seeds and a clock that jumps. `make paths` runs ten
thousand."""

from __future__ import annotations

from math import inf

import pytest

from relayd.paths.announcement import Send
from relayd.paths.keepalive import FIREWALL_HOLD_S
from relayd.wire.sealed_messages import MIN_BODY_BYTES, Message, PathChanged, Ping
from tests.helpers.path_nats import NATS, can_punch
from tests.helpers.path_network import WIREGUARD_PORT, Network, Node
from tests.helpers.path_scenarios import run

RUNS = 120
"""Some ten seconds of the unit tests' half minute; other seeds than these are for `make paths`."""

FIVE_MINUTES_S = 300.0


@pytest.mark.parametrize("part", range(10))
def test_whatever_happens_the_invariants_hold(part: int) -> None:
    seeds = range(part * RUNS // 10, (part + 1) * RUNS // 10)
    broken = [f"{scenario}: {scenario.broken}" for scenario in map(run, seeds) if scenario.broken]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("a", NATS)
@pytest.mark.parametrize("b", NATS)
def test_every_pairing_ends_as_theory_has_it_and_loses_nothing(a: str, b: str) -> None:
    network = Network(1, a, b)
    network.start()
    network.run(1.0)
    for node in network.nodes:
        network.send_traffic(node, 0.05)
    begun = network.now
    network.run(20.0)
    assert network.both_direct() is can_punch(a, b)
    assert network.both_relayed() is not can_punch(a, b)
    for node in network.nodes:
        assert network.lost(node, begun, network.now - 1) == 0
        assert all(found < begun + 4.0 for found, _ in node.changes)  # direct in under 5 s
        assert max(network.other(node).traffic.received.values()) == 1


def busy(network: Network, seconds: float = 20.0) -> None:
    """Started, direct, with traffic both ways."""
    network.start()
    for node in network.nodes:
        network.send_traffic(node, 0.01)
    network.run(seconds)


def test_a_cut_path_is_left_within_4_s_and_taken_again_when_it_is_back_without_a_loss() -> None:
    network = Network(7, "port_restricted", "full_cone")
    busy(network)
    assert network.both_direct()
    cut_at = network.now
    for way in network.ways.values():
        way.cut = True
    network.run(8.0)
    assert network.both_relayed()
    assert network.lost(network.a, cut_at + 4.0, network.now - 0.2) == 0
    assert network.lost(network.b, cut_at + 4.0, network.now - 0.2) == 0
    for way in network.ways.values():
        way.cut = False
    back_at = network.now
    network.run(60.0)
    assert network.both_direct()
    assert network.lost(network.a, back_at, network.now - 0.2) == 0
    assert network.lost(network.b, back_at, network.now - 0.2) == 0


def test_a_path_that_dies_one_way_is_left_by_both_ends() -> None:
    network = Network(8, "none", "port_restricted")
    busy(network)
    network.ways["a"].cut = True
    cut_at = network.now
    network.run(6.0)
    assert network.both_relayed()
    assert network.lost(network.a, cut_at + 4.0, network.now - 0.2) == 0


def test_a_new_address_is_direct_again_in_under_3_s() -> None:
    for nats in (("none", "none"), ("none", "port_restricted"), ("port_restricted", "port_restricted")):
        network = Network(9, *nats)
        busy(network)
        assert network.both_direct()
        network.move(network.a)
        network.run(3.0)
        assert network.both_direct(), nats
        assert all(
            node.endpoint is not None and node.endpoint.address == network.other(node).nat.public
            for node in network.nodes
        ), nats
        assert network.lost(network.b, network.now - 0.5, network.now - 0.1) == 0, nats


@pytest.mark.parametrize("trouble", ["one way", "30 % loss", "200 ms", "duplication", "all but one way"])
@pytest.mark.parametrize("seed", range(3))
def test_g19_at_most_2_changes_in_5_minutes_of_trouble(trouble: str, seed: int) -> None:
    network = Network(seed, "port_restricted", "full_cone")
    for name, way in network.ways.items():
        if trouble == "one way" and name == "a":
            way.loss = 1.0
        if trouble in ("30 % loss", "all but one way"):
            way.loss = 0.3
        if trouble in ("200 ms", "all but one way"):
            way.delay_s = 0.2
        if trouble in ("duplication", "all but one way"):
            way.duplicate = 0.5
    network.start()
    network.send_traffic(network.a, 0.05)
    if seed:
        network.send_traffic(network.b, 0.05)
    network.run(FIVE_MINUTES_S)
    for node in network.nodes:
        assert len(node.changes) <= 2, node.changes


def test_an_idle_tunnel_is_never_left_even_when_the_path_is_dead() -> None:
    network = Network(3, "port_restricted", "none")
    busy(network, 10.0)
    for node in network.nodes:
        network.send_traffic(node, inf)
    network.run(5.0)
    for way in network.ways.values():
        way.cut = True
    network.run(60.0)
    assert network.both_direct()
    network.send_traffic(network.a, 0.01)
    network.run(4.0)
    assert network.both_relayed()  # and is left when somebody wants to use it


@pytest.mark.parametrize(("hold_s", "held"), [(FIREWALL_HOLD_S, True), (inf, False)])
def test_an_idle_path_is_there_when_it_is_wanted_because_it_was_held(hold_s: float, held: bool) -> None:
    network = Network(3, "port_restricted", "port_restricted")  # as two firewalls, which forget after 30 s
    for node in network.nodes:
        node.hold_s = hold_s
    network.start()
    network.run(10.0)
    assert network.both_direct()
    network.run(FIVE_MINUTES_S)
    begun = network.now
    network.send_traffic(network.a, 0.1)
    network.run(10.0)
    assert (network.lost(network.a, begun, network.now - 0.2) == 0) is held


@pytest.mark.parametrize("agents", [(True, False), (False, True)])
def test_a_peer_without_relayd_keeps_its_endpoint(agents: tuple[bool, bool]) -> None:
    network = Network(4, "none", "none", agents=agents)
    ours = network.a if agents[0] else network.b
    for node in network.nodes:
        node.endpoint = network.other(node).nat.outside(WIREGUARD_PORT, network.stun, network.now)
    kept = ours.endpoint
    network.start()
    network.send_traffic(ours, 0.05)
    network.run(FIVE_MINUTES_S)
    assert ours.path is not None
    assert ours.path.verdict(network.now) is None
    assert ours.endpoint == kept


def test_a_restarted_agent_takes_the_direct_path_over_without_a_loss() -> None:
    network = Network(5, "port_restricted", "address_restricted")
    busy(network)
    assert network.both_direct()
    begun = network.now
    for node in network.nodes:
        node.begin(network.other(node))
        network.set_relay(node, up=True)
        network.run(3.0)
        assert node.path is not None
        assert node.path.direct
        assert node.path.selector.changes == 0
    network.run(20.0)
    assert network.both_direct()
    assert network.lost(network.a, begun, network.now - 0.2) == 0
    assert network.lost(network.b, begun, network.now - 0.2) == 0


def test_with_the_relay_gone_a_dead_direct_path_is_kept_and_nothing_flaps() -> None:
    network = Network(6, "none", "none")
    busy(network)
    network.cut_relay(up=False)
    for way in network.ways.values():
        way.cut = True
    network.run(60.0)
    assert network.both_direct()
    for way in network.ways.values():
        way.cut = False
    network.run(5.0)
    assert network.both_direct()
    assert all(len(node.changes) == 1 for node in network.nodes)


def test_a_word_that_was_lost_while_the_relay_was_away_is_said_again_when_the_peer_calls() -> None:
    network = Network(12, "none", "none")
    for way in network.ways.values():
        way.cut = True
    network.start()
    network.run(30.0)
    assert network.both_relayed()
    leader = max(network.nodes, key=lambda node: node.key.public().raw)
    assert leader.path is not None
    network.cut_relay(up=False)
    for way in network.ways.values():
        way.cut = False
    say = network._say

    def silenced(node: Node, send: Send) -> None:
        if not isinstance(send.message, PathChanged):
            say(node, send)

    network._say = silenced  # type: ignore[method-assign]
    network.run(120.0)
    assert leader.path.direct, "by Pings alone"
    assert not network.both_direct()
    network._say = say  # type: ignore[method-assign]
    network.cut_relay(up=True)
    network.run(15.0)
    assert network.both_direct()


def test_a_path_too_small_for_full_packets_is_not_taken() -> None:
    network = Network(2, "none", "none")
    for way in network.ways.values():
        way.max_bytes = 1400
    network.start()
    network.run(30.0)
    assert network.both_relayed()
    assert network.a.path is not None
    assert "MTU" in network.a.path.selector.reason


def test_two_ends_behind_one_nat_meet_on_the_lan() -> None:
    network = Network(2, "symmetric", "symmetric")
    network.same_lan = True
    network.start()
    network.run(5.0)
    assert network.both_direct()
    assert network.a.path is not None
    assert network.a.path.selector.endpoint == network.b.inner


def test_a_peers_agent_that_is_gone_for_good_is_asked_less_and_less() -> None:
    network = Network(11, "port_restricted", "full_cone")
    busy(network)
    network.b.path = None  # its WireGuard goes on, and hears and answers the tunnel's packets
    network.run(60.0)
    assert network.a.path is not None
    assert network.a.path.direct
    said: list[float] = []
    say = network._say

    def counted(node: Node, send: Send) -> None:
        said.append(network.now)
        say(node, send)

    network._say = counted  # type: ignore[method-assign]
    begun = network.now
    network.run(60.0)
    assert len(said) < 2.0 * (network.now - begun)  # a Ping a second while there is traffic, and little else


@pytest.mark.parametrize(
    "seed",
    [
        50256,  # one end took an idle path for direct that the other one had left
        51222,  # a word that crossed the other end's own was followed, in turns
        51573,
        105708,
        300194,  # one end pinged from a path that the other one had left, and was taken for there
        301454,
        203687,  # one end, which lost two rounds of Pings by chance, told the other one to leave
        713680,  # what one end said while the relay was away was lost, and it never said it again
        52682,  # WireGuard kept an endpoint that nobody told of any more, so nobody checked it
    ],
)
def test_runs_that_once_broke_an_invariant(seed: int) -> None:
    scenario = run(seed)
    assert not scenario.broken, f"{scenario}: {scenario.broken}"


def test_an_idle_path_is_held_with_a_ping_each_way_in_its_time_and_no_more() -> None:
    network = Network(11, "port_restricted", "full_cone")
    network.start()
    network.run(60.0)
    assert network.both_direct()
    said: list[Message] = []
    say = network._say

    def counted(node: Node, send: Send) -> None:
        if send.to is not None:
            said.append(send.message)
        say(node, send)

    network._say = counted  # type: ignore[method-assign]
    network.run(FIVE_MINUTES_S)
    pings = [one for one in said if isinstance(one, Ping)]
    assert len(pings) <= 2 * (FIVE_MINUTES_S / 10.0 + 1)  # a NAT's mapping is held each 10 s, from both ends
    assert max(one.body_bytes for one in pings) == MIN_BODY_BYTES
    assert len(said) == 2 * len(pings)
