"""One peer's machine, message by message: what is answered, what counts, and what WireGuard is told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from relayd.endpoints import Endpoint
from relayd.paths.acquaintance import Local
from relayd.paths.announcement import Send
from relayd.paths.candidates import make, to_wire
from relayd.paths.counters import Counters, KernelView
from relayd.paths.pathfinder import Pathfinder
from relayd.wire.sealed_messages import CallMeMaybe, Candidates, PathChanged, Ping, Pong, PortPrediction
from tests.helpers.identities import ALICE, BOB, drawn
from tests.helpers.path_network import Network
from tests.helpers.sealing import Draws

HERE, THERE = (Endpoint(ip_address(a), 51820) for a in ("192.0.2.1", "192.0.2.2"))
THEIRS = drawn("their session", 8)
T = 1000.0


def view(endpoint: Endpoint | None = None, *, rx: int = 0, tx: int = 0, relayed: int = 0) -> KernelView:
    return KernelView(endpoint=endpoint, session=True, rx_bytes=rx, tx_bytes=tx, relayed_bytes=relayed)


class Peer:
    """A pathfinder that is acquainted, and the peer's side of the conversation by hand."""

    def __init__(self, *, acquainted: bool = True, seen: KernelView | None = None) -> None:
        self.local = Local(candidates=(make("host", HERE),))
        self.finder = Pathfinder(
            ALICE.public(), BOB.public(), session=drawn("ours", 8), local=self.local, draw=Draws("f"), now=T
        )
        self.now = T
        self._generation = 0
        self.finder.saw(seen or view(), T)
        self.finder.relay_is(True, T)
        self.said: list[Send] = self.finder.act(T)
        if acquainted:
            self.tell()
            self.pong_relay()

    def stamp(self, *, yours: bytes | None = None) -> dict[str, object]:
        self._generation += 1
        named = self.finder.agent.session.own if yours is None else yours
        return {"generation": self._generation, "session": THEIRS, "yours": named}

    def hear(self, message: object, source: Endpoint | None = None) -> list[Send]:
        self.now += 0.01
        answers = self.finder.heard(message, source, self.now)  # type: ignore[arg-type]
        self.said += self.finder.act(self.now)
        return answers

    def tell(self, *remotes: Endpoint, kind: type[Candidates] = Candidates) -> None:
        told = to_wire([make("host", one) for one in remotes])
        self.hear(kind(**self.stamp(), candidates=told, features=("shares-port",)))  # type: ignore[arg-type]

    def pong_relay(self) -> None:
        """Answer what was asked through the relay."""
        for send in list(self.said):
            if isinstance(send.message, Ping) and send.to is None:
                self.hear(Pong(send.message.txid, Endpoint(ip_address("0.0.0.0"), 0)))

    def answer(self, until: float) -> None:
        """Answer every direct Ping that comes until then."""
        while self.now < until:
            said, self.said = self.said, []
            for send in said:
                if isinstance(send.message, Ping) and send.to is not None:
                    self.hear(Pong(send.message.txid, HERE, send.message.body_bytes), send.to)
            self.now += 0.01
            self.said += self.finder.act(self.now)


def test_a_ping_is_answered_the_way_it_came_and_a_recorded_one_is_not() -> None:
    peer = Peer()
    ping = Ping(drawn("txid", 12), 500)
    assert peer.hear(ping, THERE) == [Send(Pong(ping.txid, THERE, 500), THERE)]
    assert peer.hear(ping, THERE) == []
    (relayed,) = peer.hear(Ping(drawn("another", 12)))
    assert relayed.to is None
    assert peer.finder.replayed == 1


def test_a_word_that_may_be_recorded_moves_nobody_and_is_answered_with_ours() -> None:
    peer = Peer()
    hint = PathChanged(**peer.stamp(yours=b""), path="direct", mine=str(THERE))  # type: ignore[arg-type]
    assert peer.finder._words.peers is None
    peer.hear(hint)
    assert peer.finder._words.peers is None
    assert THERE not in peer.finder.checklist.pairs


@pytest.mark.parametrize("address", ["127.0.0.1", "127.64.0.9", "10.0.0.7", "224.0.0.1", "0.0.0.0", "::1"])
def test_a_peers_word_sends_no_ping_to_this_host_or_to_a_group(address: str) -> None:
    peer = Peer()
    peer.finder.localize(replace(peer.finder._local, own=frozenset({ip_address("10.0.0.7")})), peer.now)
    place = Endpoint(ip_address(address), 4500)
    peer.tell(THERE)
    peer.hear(PathChanged(**peer.stamp(), path="direct", mine=str(place)))  # type: ignore[arg-type]
    peer.hear(PortPrediction(**peer.stamp(), address=address, base=4500, step=1, count=9))  # type: ignore[arg-type]
    peer.tell(THERE, place)
    peer.answer(peer.now + 8.0)
    assert {str(pair.address) for pair in peer.finder.checklist.pairs} == {str(THERE.address)}


def test_a_call_starts_the_checks_at_once() -> None:
    peer = Peer()
    peer.now += 2.0
    peer.said.clear()
    peer.tell(THERE, kind=CallMeMaybe)
    assert [send.to for send in peer.said if isinstance(send.message, Ping) and send.to] == [THERE]
    assert not any(isinstance(send.message, CallMeMaybe) for send in peer.said)  # no answer to a call


def follow(peer: Peer) -> None:
    """The peer leads: it says that it went to THERE."""
    peer.tell(THERE)
    peer.answer(peer.now + 1.0)
    peer.finder.leads = False
    peer.hear(PathChanged(**peer.stamp(), path="direct", mine=str(THERE)))  # type: ignore[arg-type]
    peer.answer(peer.now + 0.5)


def test_what_wireguard_had_before_it_was_told_is_not_taken_for_roaming() -> None:
    peer = Peer()
    follow(peer)
    assert peer.finder.direct
    old = Endpoint(ip_address("192.0.2.9"), 51820)
    peer.finder.saw(view(old), peer.now)  # read before the new endpoint was set
    peer.finder.act(peer.now)
    assert peer.finder.selector.endpoint == THERE
    peer.finder.was_set(THERE)
    peer.finder.saw(view(old), peer.now + 1)  # and this is
    peer.finder.act(peer.now + 1)
    assert peer.finder.selector.endpoint == old


def test_after_a_move_the_endpoint_is_set_again_once() -> None:
    peer = Peer()
    follow(peer)
    peer.finder.was_set(THERE)
    peer.finder.localize(Local(candidates=(make("host", THERE),)), peer.now, moved=True)
    verdict = peer.finder.verdict(peer.now)
    assert verdict is not None
    assert (verdict.endpoint, verdict.renew) == (THERE, True)
    peer.finder.was_set(THERE)
    again = peer.finder.verdict(peer.now)
    assert again is not None
    assert not again.renew
    words = [send for send in peer.finder.act(peer.now) if isinstance(send.message, PathChanged)]
    assert {send.to for send in words} == {None, THERE}  # "my packets come from here now"


def test_a_link_local_endpoint_is_known_with_and_without_its_zone() -> None:
    peer = Peer()
    scoped, plain = Endpoint.parse("[fe80::2%eth0]:51820"), Endpoint.parse("[fe80::2]:51820")
    peer.hear(Ping(drawn("ll", 12)), scoped)
    peer.hear(PathChanged(**peer.stamp(), path="direct", mine=str(plain)))  # type: ignore[arg-type]
    peer.finder.saw(view(plain), peer.now)
    assert set(peer.finder.checklist.pairs) == {scoped}
    assert peer.finder._view is not None
    assert peer.finder._view.endpoint == scoped


def test_new_candidates_of_ours_are_told_at_once_and_once() -> None:
    peer = Peer()
    peer.answer(peer.now + 2.0)
    peer.said.clear()
    peer.finder.localize(Local(candidates=(make("host", HERE), make("srflx", THERE))), peer.now)
    peer.answer(peer.now + 2.0)
    lists = [send for send in peer.finder.act(peer.now) if isinstance(send.message, Candidates)]
    assert lists == []
    told = peer.finder.agent._told
    assert told is not None
    assert len(told.candidates) == 2


def test_packets_that_the_relay_brought_are_not_heard_directly() -> None:
    counters = Counters()
    counters.saw(view(), T)
    counters.saw(view(rx=100, relayed=150), T + 1)  # WireGuard counts a moment after the proxy
    counters.saw(view(rx=150, relayed=150), T + 2)
    assert counters.heard_at < T
    counters.saw(view(rx=250, relayed=150), T + 3)
    assert counters.heard_at == T + 3


def test_relayed_packets_that_wireguard_refused_do_not_deafen_for_ever() -> None:
    counters = Counters()
    for step, relayed in enumerate((0, 5000, 5000, 5000)):
        counters.saw(view(rx=0, relayed=relayed), T + step)
    counters.saw(view(rx=10, relayed=5000), T + 5)
    assert counters.heard_at == T + 5


def test_a_new_interface_starts_the_counters_anew() -> None:
    counters = Counters()
    counters.saw(view(rx=1000, tx=1000), T)
    counters.saw(view(rx=0, tx=0), T + 1)
    counters.saw(view(rx=10, tx=10), T + 2)
    assert (counters.sent_at, counters.heard_at) == (T + 2, T + 2)


def test_the_rate_of_the_inbox_is_enough_for_two_ends_in_doubt() -> None:
    """Both ping ten times a second, and answer: neither drops the other's messages."""
    from relayd.wire.sealed_inbox import MESSAGES_BURST, MESSAGES_PER_S

    network = Network(2, "none", "none")
    network.start()
    for node in network.nodes:
        network.send_traffic(node, 0.05)
    network.run(10.0)
    times: list[float] = []
    say = network._say

    def counted(node: object, send: Send) -> None:
        if node is network.a:
            times.append(network.now)
        say(node, send)  # type: ignore[arg-type]

    network._say = counted  # type: ignore[method-assign]
    for way in network.ways.values():
        way.loss = 0.9
    network.run(10.0)
    assert times
    assert len(times) < MESSAGES_BURST + 10 * MESSAGES_PER_S


def test_an_endpoint_that_never_answered_is_left_as_soon_as_that_is_known() -> None:
    """The relay's word is seconds old by then: it is asked again, not in half a minute."""
    peer = Peer(seen=KernelView(endpoint=THERE, session=False, rx_bytes=0, tx_bytes=0, relayed_bytes=0))
    began = peer.now
    while not peer.finder.selector.ours and peer.now < began + 60.0:
        said, peer.said = peer.said, []
        for send in said:
            if isinstance(send.message, Ping) and send.to is None:
                peer.hear(Pong(send.message.txid, Endpoint(ip_address("0.0.0.0"), 0)))
        peer.now += 0.05
        peer.said += peer.finder.act(peer.now)
    assert (peer.finder.selector.ours, peer.finder.direct) == (True, False)
    assert peer.now - began < 10.0, peer.finder.selector.reason


def test_a_relay_that_answers_no_more_either_is_not_asked_for_ever() -> None:
    peer = Peer(seen=KernelView(endpoint=THERE, session=False, rx_bytes=0, tx_bytes=0, relayed_bytes=0))
    peer.said.clear()
    until = peer.now + 600.0
    while peer.now < until:
        peer.now += 0.1
        peer.said += peer.finder.act(peer.now)
    asked = [send for send in peer.said if isinstance(send.message, Ping) and send.to is None]
    assert len(asked) < 60
