"""A peer that went direct: its late relayed packets are handed over as from there, or held back for a
moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relayd.agent.wg_proxy import HOLD_BACK_S
from relayd.endpoints import Endpoint
from tests.helpers.proxy_rig import ADDRESSES, KEYS, Rig

DIRECT = Endpoint.parse("203.0.113.9:51820")


class HandOver:
    """Takes note, and refuses when told to."""

    def __init__(self) -> None:
        self.port = 0
        self.able = True
        self.takes = True
        self.got: list[tuple[bytes, Endpoint]] = []

    def can(self, source: Endpoint, /) -> bool:
        return self.able

    def hand_over(self, payload: memoryview, source: Endpoint, /) -> bool:
        if self.takes:
            self.got.append((bytes(payload), source))
        return self.takes


@pytest.fixture
def hand_over() -> HandOver:
    return HandOver()


@pytest.fixture
def bench(hand_over: HandOver) -> Iterator[Rig]:
    made = Rig()
    made.proxy._hand_over = hand_over
    yield made
    made.close()


def test_a_direct_peers_relayed_packets_come_as_from_its_direct_endpoint(
    bench: Rig, hand_over: HandOver
) -> None:
    bench.proxy.set_direct(KEYS[0], DIRECT)
    bench.deliver((KEYS[0], b"one"), (KEYS[1], b"other"), (KEYS[0], b"two"), (KEYS[0], b"six"))
    assert hand_over.got == [(b"one", DIRECT), (b"two", DIRECT), (b"six", DIRECT)]
    assert bench.heard(1) == [(ADDRESSES[1], b"other")]
    assert bench.proxy.peers[KEYS[0]].rx_frames == 3
    assert bench.proxy.drops() == {}


def test_back_on_the_relay_they_come_from_the_loopback_address_again(bench: Rig, hand_over: HandOver) -> None:
    bench.proxy.set_direct(KEYS[0], DIRECT)
    bench.proxy.set_direct(KEYS[0], None)
    bench.deliver((KEYS[0], b"one"))
    assert bench.heard(1) == [(ADDRESSES[0], b"one")]
    assert hand_over.got == []


def test_where_they_cannot_be_handed_over_late_ones_are_held_back_and_counted(
    bench: Rig, hand_over: HandOver
) -> None:
    hand_over.able = False
    bench.proxy.set_direct(KEYS[0], DIRECT)
    bench.deliver((KEYS[0], b"late"))
    assert bench.proxy.drops() == {"late": 1}
    bench.watcher.now += HOLD_BACK_S  # who still comes by the relay isn't late, but relayed
    bench.deliver((KEYS[0], b"relayed"))
    assert bench.heard(1) == [(ADDRESSES[0], b"relayed")]


def test_what_the_kernel_does_not_take_is_counted(bench: Rig, hand_over: HandOver) -> None:
    hand_over.takes = False
    bench.proxy.set_direct(KEYS[0], DIRECT)
    bench.deliver((KEYS[0], b"one"), (KEYS[0], b"two"))
    assert bench.proxy.drops() == {"late": 2}
    assert bench.hears_nothing()


def test_peers_that_are_told_again_stay_direct(bench: Rig, hand_over: HandOver) -> None:
    bench.proxy.set_direct(KEYS[0], DIRECT)
    bench.proxy.set_peers(dict(zip(KEYS[:2], ADDRESSES, strict=False)))
    bench.deliver((KEYS[0], b"one"))
    assert hand_over.got == [(b"one", DIRECT)]


def test_wireguards_port_is_followed(bench: Rig, hand_over: HandOver) -> None:
    bench.proxy.set_wireguard_port(40_001)
    assert hand_over.port == 40_001
