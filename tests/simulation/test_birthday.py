"""The birthday method: who does what, its bounds, and that it finds a port in a simulated network."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from relayd.paths.announcement import Send
from relayd.paths.birthday import ATTEMPT_S, FIRST_PORT, PAUSE_S, PROBE_S, SOCKETS, Turn
from relayd.wire.sealed_messages import FindPort, Ping
from tests.helpers.path_nats import NATS, can_punch
from tests.helpers.path_network import CARRIED_AT, CARRIERS, Network, Node


def met(network: Network, seconds: float) -> float | None:
    """When both ends became direct, in seconds from now."""
    begun = network.now
    while network.now - begun < seconds:
        network.run(0.1)
        if network.both_direct():
            return network.now - begun
    return None


@pytest.mark.parametrize("hard", ["a", "b"])
def test_a_symmetric_nat_and_a_port_restricted_one_meet_within_one_attempt(hard: str) -> None:
    nats = ("symmetric", "port_restricted") if hard == "a" else ("port_restricted", "symmetric")
    for seed in range(10):
        network = Network(seed, *nats, birthday=True)
        network.start()
        for node in network.nodes:
            network.send_traffic(node, 0.05)
        begun = network.now
        at = met(network, 30.0)
        assert at is not None, seed
        network.run(30.0)
        assert network.both_direct()
        node = network.a if hard == "a" else network.b
        assert node.endpoint is not None
        assert node.endpoint.address == CARRIED_AT
        assert list(node.carriers) == [node.endpoint.port]  # the others are closed
        for one in network.nodes:
            assert network.lost(one, begun + 1.0, network.now - 0.2) == 0
            assert len(one.changes) == 1


def said(network: Network) -> list[tuple[float, Node, Send]]:
    """All that is said from now on."""
    heard: list[tuple[float, Node, Send]] = []
    say = network._say

    def noted(node: Node, send: Send) -> None:
        heard.append((network.now, node, send))
        say(node, send)

    network._say = noted  # type: ignore[method-assign]
    return heard


def test_an_attempt_that_meets_nobody_ends_in_time_and_the_next_one_waits() -> None:
    network = Network(1, "symmetric", "port_restricted", birthday=True)
    for way in network.ways.values():
        way.cut = True  # the relay works
    everything = said(network)
    network.start()
    network.run(12.0)
    assert len(network.a.carriers) == SOCKETS
    network.run(ATTEMPT_S)
    assert network.a.carriers == {}
    assert network.both_relayed()
    network.run(PAUSE_S * 2.5)
    calls = [at for at, _, send in everything if isinstance(send.message, FindPort)]
    assert len(calls) == 2
    assert calls[1] - calls[0] >= ATTEMPT_S + PAUSE_S
    assert network.b.path is not None
    told = network.b.path.checklist.pairs
    first = [
        (at, send.to.port)
        for at, node, send in everything
        if node is network.b and send.to is not None and calls[0] < at < calls[1]
        if isinstance(send.message, Ping) and send.to not in told
    ]
    ports = [port for _, port in first]
    assert 0.95 * ATTEMPT_S / PROBE_S < len(ports) <= ATTEMPT_S / PROBE_S + 1
    assert len(set(ports)) == len(ports)
    assert min(ports) >= FIRST_PORT
    assert max(at for at, _ in first) - calls[0] < ATTEMPT_S + 1.0


def test_an_easy_end_that_has_moved_is_tried_again_sooner() -> None:
    network = Network(1, "symmetric", "port_restricted", birthday=True)
    network.start()
    assert met(network, 30.0) is not None
    network.run(60.0)
    for node in network.nodes:
        network.send_traffic(node, 0.1)
    network.move(network.b)
    network.run(3.0)
    assert network.both_relayed()
    assert met(network, 60.0) is not None


def test_a_peer_that_calls_all_the_time_is_not_followed_all_the_time() -> None:
    network = Network(1, "symmetric", "port_restricted", birthday=True)
    for way in network.ways.values():
        way.cut = True
    everything = said(network)
    network.start()
    network.run(2.0)
    hard, easy = network.a, network.b
    assert hard.path is not None
    assert easy.path is not None
    session = hard.path.agent.session
    for _ in range(300):
        for address in (hard.nat.public, IPv4Address("198.51.100.66"), easy.nat.public):
            call = FindPort(
                generation=session.next_generation(),
                session=session.own,
                yours=session.yours,
                address=str(address),
            )
            network._hear(easy, call, None)
        network.run(1.0)
    pinged = {
        send.to
        for _, node, send in everything
        if node is easy and send.to is not None and isinstance(send.message, Ping)
    }
    assert {one.address for one in pinged} == {hard.nat.public, hard.inner.address}  # nobody else's
    assert easy.path.birthday.searches == 2  # in five minutes


@pytest.mark.parametrize("a", NATS)
@pytest.mark.parametrize("b", NATS)
def test_pairs_that_it_is_not_for_do_without(a: str, b: str) -> None:
    if {a, b} == {"symmetric", "port_restricted"}:
        return
    network = Network(2, a, b, birthday=True)
    everything = said(network)
    network.start()
    network.run(60.0)
    assert network.both_direct() is can_punch(a, b)
    hard = {a, b} == {"symmetric", "blocked"}  # which nobody can tell from one that is only restricted
    assert hard or not any(isinstance(send.message, FindPort) for _, _, send in everything)


def test_there_is_one_attempt_at_a_time_whatever_the_number_of_peers() -> None:
    turn, first, second = Turn(), object(), object()
    assert turn.take(first, 100.0)
    assert not turn.take(second, 100.0 + ATTEMPT_S - 0.1)
    assert turn.take(second, 100.0 + ATTEMPT_S)
    turn.give_back(first)  # late: it isn't its own any more
    assert not turn.take(first, 101.0 + ATTEMPT_S)
    turn.give_back(second)
    assert turn.take(first, 102.0 + ATTEMPT_S)


@pytest.mark.parametrize("configured", ["a", "b"])
def test_both_ends_have_to_be_configured(configured: str) -> None:
    network = Network(3, "symmetric", "port_restricted")
    for node in network.nodes:
        node.birthday = node.name == configured
    network.start()
    network.run(60.0)
    assert network.both_relayed()
    assert all(max(node.carriers, default=0) < CARRIERS for node in network.nodes)


def test_sequential_nats_meet_by_going_through_their_predictions_in_opposite_order() -> None:
    found = []
    for seed in range(20):
        network = Network(seed, "sequential", "sequential")
        network.start()
        found.append(met(network, 60.0))
    assert sum(at is not None for at in found) >= 18, found


def test_a_sequential_nat_is_met_by_its_prediction() -> None:
    for seed in range(5):
        network = Network(seed, "sequential", "port_restricted")
        network.start()
        assert met(network, 10.0) is not None, seed


@pytest.mark.parametrize("hard", ["a", "b"])
@pytest.mark.parametrize("away_s", [0.5, 5.0])
def test_a_restart_of_the_hard_ends_agent_costs_the_other_way_4_s(hard: str, away_s: float) -> None:
    """The sockets go with the process. Its own end is on the relay as soon as it is back; the other one goes
    on sending to where they were, as to any path that is cut, until the relay answers better."""
    nats = ("symmetric", "port_restricted") if hard == "a" else ("port_restricted", "symmetric")
    for seed in range(5):
        network = Network(seed, *nats, birthday=True)
        network.start()
        for node in network.nodes:
            network.send_traffic(node, 0.05)
        assert met(network, 30.0) is not None
        network.run(10.0)
        one, other = (network.a, network.b) if hard == "a" else (network.b, network.a)
        begun, one.path, one.carriers, one.attempt = network.now, None, {}, None
        network.run(away_s)
        one.endpoint = None  # what the agent makes of a loopback port that isn't its own any more
        one.begin(other)
        network.set_relay(one, up=True)
        network.run(10.0)
        back = begun + max(4.0, away_s + 1.0)
        assert network.lost(one, begun + away_s + 0.1, network.now - 0.2) == 0
        assert network.lost(other, back, network.now - 0.2) == 0
        assert met(network, 120.0) is not None, "they find each other again"
