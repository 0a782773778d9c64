"""The proxy between WireGuard and the relay link, over real loopback sockets."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from itertools import accumulate, repeat
from os import dup

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.agent.wg_proxy import FULL_DATAGRAM, PAUSE_S
from relayd.netio.receive_slots import MAX_DATAGRAM, REFIT_AFTER, SLOTS
from relayd.netio.send_batch import VECTORS
from tests.helpers.proxy_rig import ADDRESSES, KEYS, STRANGER, Rig, rig, wireguard_socket

FULL = FULL_DATAGRAM
LENGTHS = st.sampled_from([1, 32, 148, 512, FULL - 1, FULL, FULL + 1, 9000, MAX_DATAGRAM])
IN_A_ROW = st.sampled_from([1, 1, 2, 5, 30])
FLOWS = st.lists(st.tuples(st.integers(0, 2), LENGTHS, IN_A_ROW), min_size=1, max_size=20)
"""(number of the peer, length, datagrams in a row)"""


@pytest.fixture
def bench() -> Iterator[Rig]:
    with rig() as made:
        yield made


def payload(number: int, length: int) -> bytes:
    """Content that tells datagrams apart, at both ends."""
    return number.to_bytes(4, "big").ljust(length, bytes([number % 251]))[:length]


def flood(rig: Rig, datagrams: list[tuple[int, int]], already: int = 0) -> list[tuple[bytes, bytes]]:
    """WireGuard sends (peer, length) in bursts that fit any buffer; what the relay should get for it."""
    expected = []
    burst_bytes = 0
    for number, (peer, length) in enumerate(datagrams):
        rig.say(peer, payload(number, length))
        expected.append((KEYS[peer].raw, payload(number, length)))
        burst_bytes += length + 1000
        if burst_bytes > 150_000:
            rig.pump(already + len(expected))
            burst_bytes = 0
    rig.pump(already + len(expected))
    return expected


# From WireGuard to the relay.


@settings(max_examples=100, deadline=None)
@given(flows=FLOWS)
def test_any_mix_of_datagrams_becomes_the_same_frames_in_order(flows: list[tuple[int, int, int]]) -> None:
    datagrams = [(peer, length) for peer, length, count in flows for _ in range(count)]
    with rig() as bench:
        assert flood(bench, datagrams) == bench.frames()
        assert bench.proxy.drops() == {}


def test_a_batch_of_full_datagrams_of_all_peers_is_one_buffer(bench: Rig) -> None:
    for number in range(SLOTS):
        bench.say(number % 3, payload(number, FULL_DATAGRAM))
    bench.pump(SLOTS)
    assert [len(call) for call in bench.sent] == [1] * len(bench.sent)
    assert bench.frames() == [(KEYS[n % 3].raw, payload(n, FULL_DATAGRAM)) for n in range(SLOTS)]


def test_a_bulk_that_resumes_after_other_traffic_has_its_own_headers(bench: Rig) -> None:
    """A batch that looks like one seen earlier must not go out with the headers of those in between."""
    bulk = [(0, FULL_DATAGRAM)] * (2 * SLOTS)
    other_peer = [(1, FULL_DATAGRAM)] * SLOTS
    other_length = [(0, 100)] * SLOTS
    everything = bulk + other_peer + bulk + other_length + bulk
    assert flood(bench, everything) == bench.frames()


def test_slots_are_fitted_to_the_length_that_stays(bench: Rig) -> None:
    before = flood(bench, [(0, 300)] * (REFIT_AFTER + SLOTS))
    bench.sent.clear()
    assert flood(bench, [(0, 300)] * SLOTS) == bench.frames()
    assert all(len(call) == 1 for call in bench.sent)
    assert len(before) == REFIT_AFTER + SLOTS


def test_frames_and_bytes_are_counted_for_each_peer(bench: Rig) -> None:
    flood(bench, [(0, FULL_DATAGRAM)] * 200 + [(1, 40), (1, 50)])
    bench.deliver((KEYS[0], b"x" * 10), (KEYS[0], b"x" * 10), (KEYS[2], b"y" * 7))
    counted = {
        key: (peer.tx_frames, peer.tx_bytes, peer.rx_frames, peer.rx_bytes)
        for key, peer in bench.proxy.peers.items()
    }
    assert counted == {
        KEYS[0]: (200, 200 * FULL_DATAGRAM, 2, 20),
        KEYS[1]: (2, 90, 0, 0),
        KEYS[2]: (0, 0, 1, 7),
    }


def test_datagrams_of_other_local_processes_are_dropped_and_those_around_them_are_not(bench: Rig) -> None:
    with wireguard_socket() as stranger:
        bench.say(0, payload(1, FULL_DATAGRAM))
        stranger.sendto(payload(2, FULL_DATAGRAM), (str(ADDRESSES[0]), bench.proxy.port))
        bench.say(0, payload(3, FULL_DATAGRAM))
        bench.pump(2)
    assert bench.frames() == [(KEYS[0].raw, payload(n, FULL_DATAGRAM)) for n in (1, 3)]
    assert bench.proxy.drops() == {"stranger": 1}


def test_a_stranger_that_looks_like_the_bulk_in_all_but_its_port_is_dropped(bench: Rig) -> None:
    flood(bench, [(0, FULL_DATAGRAM)] * (4 * SLOTS))
    with wireguard_socket() as stranger:
        stranger.sendto(payload(2, FULL_DATAGRAM), (str(ADDRESSES[0]), bench.proxy.port))
        bench.pump_until(lambda: bench.proxy.drops() == {"stranger": 1})
    assert len(bench.frames()) == 4 * SLOTS


def test_wireguard_may_send_from_any_address_of_this_host(bench: Rig) -> None:
    port = bench.wireguard.getsockname()[1]
    with wireguard_socket("127.9.9.9", port) as same_port:
        same_port.sendto(b"hello", (str(ADDRESSES[1]), bench.proxy.port))
        bench.pump(1)
    assert bench.frames() == [(KEYS[1].raw, b"hello")]


def test_datagrams_to_an_address_of_no_peer_are_dropped(bench: Rig) -> None:
    bench.wireguard.sendto(b"nobody", ("127.64.200.200", bench.proxy.port))
    bench.say(2, b"somebody")
    bench.pump(1)
    assert bench.frames() == [(KEYS[2].raw, b"somebody")]
    assert bench.proxy.drops() == {"unknown_address": 1}


def test_a_datagram_longer_than_a_frame_can_be_is_dropped(bench: Rig) -> None:
    bench.say(0, bytes(MAX_DATAGRAM + 1))
    bench.say(0, payload(7, MAX_DATAGRAM))
    bench.pump(1)
    assert bench.frames() == [(KEYS[0].raw, payload(7, MAX_DATAGRAM))]
    assert bench.proxy.drops() == {"too_long": 1}


def test_what_the_kernel_drops_for_lack_of_room_is_counted(bench: Rig) -> None:
    with socket.socket(fileno=dup(bench.proxy.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    for number in range(500):
        bench.say(0, payload(number, FULL_DATAGRAM))
    bench.pump(1)
    while bench.watcher.turn(wait_s=0):
        pass
    bench.say(0, b"one more, to tell of it")
    bench.pump_until(lambda: bench.frames()[-1][1] == b"one more, to tell of it")
    lost = bench.proxy.drops()["receive_buffer_full"]
    assert lost > 0
    assert len(bench.frames()) == 501 - lost


def test_wireguards_port_can_change(bench: Rig) -> None:
    flood(bench, [(0, FULL_DATAGRAM)] * SLOTS)
    with wireguard_socket() as moved:
        bench.proxy.set_wireguard_port(moved.getsockname()[1])
        bench.say(0, payload(1, FULL_DATAGRAM))  # from where it was
        bench.pump_until(lambda: bench.proxy.drops() == {"stranger": 1})
        moved.sendto(b"from here now", (str(ADDRESSES[0]), bench.proxy.port))
        bench.pump(SLOTS + 1)
        bench.deliver((KEYS[0], b"to here now"))
        assert moved.recv(100) == b"to here now"
    assert bench.hears_nothing()


def test_an_address_that_goes_to_another_key_takes_no_old_headers_along(bench: Rig) -> None:
    flood(bench, [(0, FULL_DATAGRAM)] * (3 * SLOTS))
    bench.sent.clear()
    bench.proxy.set_peers({STRANGER: ADDRESSES[0]})
    bench.say(0, payload(1, FULL_DATAGRAM))
    bench.pump(1)
    assert bench.frames() == [(STRANGER.raw, payload(1, FULL_DATAGRAM))]


def test_a_peer_that_goes_is_not_served_any_more_and_one_that_stays_keeps_its_counters(bench: Rig) -> None:
    flood(bench, [(0, 100), (1, 100)])
    bench.proxy.set_peers({KEYS[1]: ADDRESSES[1]})
    bench.say(0, b"gone")
    bench.say(1, b"there")
    bench.pump(3)
    bench.deliver((KEYS[0], b"gone"), (KEYS[1], b"there"))
    assert bench.heard(1) == [(ADDRESSES[1], b"there")]
    assert bench.proxy.drops() == {"unknown_address": 1, "unknown_key": 1}
    assert [(peer.key, peer.tx_frames) for peer in bench.proxy.peers.values()] == [(KEYS[1], 2)]


# From the relay to WireGuard.


@pytest.mark.parametrize("segmenting", [True, False])
@settings(max_examples=100, deadline=None)
@given(flows=FLOWS)
def test_any_mix_of_frames_reaches_wireguard_in_order_from_its_peers_addresses(
    segmenting: bool, flows: list[tuple[int, int, int]]
) -> None:
    with rig(segmenting=segmenting) as bench:
        numbers = accumulate(repeat(1))
        datagrams = [
            (peer, payload(next(numbers), length)) for peer, length, count in flows for _ in range(count)
        ]
        while datagrams:
            now, datagrams = datagrams[:100], datagrams[100:]
            bench.deliver(*((KEYS[peer], content) for peer, content in now))
            assert bench.heard(len(now)) == [(ADDRESSES[peer], content) for peer, content in now]
        assert bench.hears_nothing()
        assert bench.proxy.drops() == {}


@pytest.mark.parametrize("segmenting", [True, False])
def test_a_run_longer_than_one_call_takes_arrives_whole(segmenting: bool) -> None:
    with rig(segmenting=segmenting) as bench:
        contents = [payload(number, 20) for number in range(3 * VECTORS + 5)]
        bench.deliver(*((KEYS[1], content) for content in contents))
        assert bench.heard(len(contents)) == [(ADDRESSES[1], content) for content in contents]


def test_short_datagrams_among_long_ones_arrive_in_order(bench: Rig) -> None:
    """The last of a burst is shorter as a rule, and rides along; what follows it must not."""
    chance = random.Random(4)
    contents = [payload(number, chance.choice([1, 99, 100, 101, 1452])) for number in range(2000)]
    for at in range(0, len(contents), 150):
        some = contents[at : at + 150]
        bench.deliver(*((KEYS[0], content) for content in some))
        assert bench.heard(len(some)) == [(ADDRESSES[0], content) for content in some]


def test_frames_of_unknown_keys_and_empty_ones_are_dropped_and_counted(bench: Rig) -> None:
    bench.deliver((STRANGER, b"x"), (STRANGER, b"x"), (KEYS[0], b""), (KEYS[0], b"known"))
    assert bench.heard(1) == [(ADDRESSES[0], b"known")]
    assert bench.hears_nothing()
    assert bench.proxy.drops() == {"unknown_key": 2, "empty": 1}


def test_a_wireguard_that_is_down_harms_nothing(bench: Rig) -> None:
    port = bench.wireguard.getsockname()[1]
    bench.wireguard.close()
    for _ in range(3):
        bench.deliver((KEYS[0], b"lost"), (KEYS[0], b"lost"))
        bench.watcher.turn(wait_s=0)
    bench.wireguard = wireguard_socket(port=port)
    bench.deliver((KEYS[0], b"back"))
    assert bench.heard(1) == [(ADDRESSES[0], b"back")]


def test_without_a_port_of_wireguards_everything_is_dropped_and_segmenting_stays(bench: Rig) -> None:
    port = bench.wireguard.getsockname()[1]
    bench.proxy.set_wireguard_port(0)
    bench.deliver(*[(KEYS[0], b"x" * 100)] * 5)
    assert sum(bench.proxy.drops().values()) == 5
    bench.proxy.set_wireguard_port(port)
    bench.deliver(*[(KEYS[0], b"x" * 100)] * 5)
    assert len(bench.heard(5)) == 5
    assert bench.proxy.segmenting


def test_congested_link_leaves_the_datagrams_in_the_socket_for_a_moment() -> None:
    with rig() as bench:
        bench.congested = True
        for _ in range(3 * SLOTS):
            bench.say(0, b"x" * 100)
        assert bench.watcher.turn()
        assert len(bench.frames()) == SLOTS
        assert not bench.watcher.turn(0.0)  # paused: what waits isn't even looked at
        bench.watcher.now += PAUSE_S
        assert not bench.watcher.turn(0.0)  # the pause ends here
        assert bench.watcher.turn()
        assert len(bench.frames()) == 2 * SLOTS
        assert bench.proxy.pauses == 2
        assert bench.proxy.drops() == {}


def test_pause_ends_with_the_congestion() -> None:
    with rig() as bench:
        bench.congested = True
        for _ in range(2 * SLOTS):
            bench.say(0, b"x" * 100)
        assert bench.watcher.turn()
        bench.congested = False
        assert not bench.watcher.turn(0.0)
        bench.pump(2 * SLOTS)


def test_pause_does_not_outlive_the_socket() -> None:
    with rig() as bench:
        bench.congested = True
        for _ in range(SLOTS):
            bench.say(0, b"x" * 100)
        assert bench.watcher.turn()
    assert bench.watcher.after_batch == []
