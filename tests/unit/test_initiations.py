"""Handshake initiations that are kept until they are answered."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from relayd.agent.initiations import AGAIN_S, INITIATION_BYTES, REKEY_TIMEOUT_S, Initiations
from relayd.keys import PublicKey
from relayd.wire.frames import encode_data
from tests.helpers.proxy_rig import KEYS, rig


def initiation(key: PublicKey, number: int = 0) -> memoryview:
    return memoryview(encode_data(key, _payload(number)))


def _payload(number: int) -> bytes:
    return b"\x01\0\0\0" + bytes([number]) * (INITIATION_BYTES - 4)


class Kept:
    """Initiations, and what they send."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.peers = {key: SimpleNamespace(rx_frames=7) for key in KEYS}
        self.initiations = Initiations(self._send)

    def _send(self, runs: Sequence[memoryview], total: int) -> None:
        assert sum(map(len, runs)) == total
        self.sent += map(bytes, runs)

    def note(self, key: PublicKey, now: float, number: int = 0) -> None:
        self.initiations.note(key.raw, initiation(key, number), self.peers[key], now)

    def again(self, key: PublicKey, now: float) -> None:
        self.initiations.again(key.raw, now)


def test_a_peer_that_appears_gets_the_initiation_that_it_missed() -> None:
    kept = Kept()
    kept.note(KEYS[0], 100.0)
    kept.again(KEYS[1], 101.0)
    assert kept.sent == []
    kept.again(KEYS[0], 101.0)
    assert kept.sent == [bytes(initiation(KEYS[0]))]
    assert kept.initiations.sent_again == 1


def test_the_newest_is_the_one_that_counts() -> None:
    kept = Kept()
    kept.note(KEYS[0], 100.0, number=1)
    kept.note(KEYS[0], 104.0, number=2)
    kept.again(KEYS[0], 106.0)
    assert kept.sent == [bytes(initiation(KEYS[0], 2))]


def test_what_was_answered_is_not_sent_again() -> None:
    kept = Kept()
    kept.note(KEYS[0], 100.0)
    kept.peers[KEYS[0]].rx_frames += 1
    kept.again(KEYS[0], 100.1)
    kept.initiations.all_again(100.2)
    assert kept.sent == []


def test_what_wireguard_has_given_up_is_not_sent_again() -> None:
    kept = Kept()
    kept.note(KEYS[0], 100.0)
    kept.again(KEYS[0], 100.0 + REKEY_TIMEOUT_S)
    assert kept.sent == []


def test_words_that_come_in_bunches_send_it_once() -> None:
    kept = Kept()
    kept.note(KEYS[0], 100.0)
    for now in (100.01, 100.02, 100.01 + AGAIN_S):
        kept.again(KEYS[0], now)
    assert len(kept.sent) == 2


def test_a_relay_that_is_back_gets_those_of_all_peers_that_are_not_too_old() -> None:
    kept = Kept()
    for number, key in enumerate(KEYS[:3]):
        kept.note(key, 100.0 + number)
    kept.initiations.all_again(100.5 + REKEY_TIMEOUT_S)
    assert kept.sent == [bytes(initiation(key)) for key in KEYS[1:3]]


def test_only_initiations_are_kept() -> None:
    kept = Kept()
    frame = memoryview(encode_data(KEYS[0], b"\x04" + bytes(INITIATION_BYTES - 1)))
    kept.initiations.note(KEYS[0].raw, frame, kept.peers[KEYS[0]], 100.0)
    kept.initiations.all_again(100.1)
    assert kept.sent == []


def test_the_proxy_keeps_the_initiations_of_its_peers_however_many_come() -> None:
    """Even where nothing else is sent, so that the slots would be fitted to their length."""
    with rig() as bench:
        for number in range(600):
            bench.say(number % 3, _payload(number % 251))
            if number % 60 == 59:
                bench.pump(number + 1)
        bench.pump(600)
        bench.sent.clear()
        for key in KEYS[:3]:
            bench.proxy.initiations.again(key.raw, bench.watcher.now + 1)
        assert bench.frames() == [(KEYS[n % 3].raw, _payload(n % 251)) for n in (597, 598, 599)]


def test_the_proxy_takes_a_frame_from_the_peer_for_the_answer() -> None:
    with rig() as bench:
        bench.say(0, _payload(1))
        bench.pump(1)
        bench.sent.clear()
        bench.deliver((KEYS[0], b"\x02" * 92))
        bench.proxy.initiations.again(KEYS[0].raw, bench.watcher.now)
        assert bench.frames() == []
