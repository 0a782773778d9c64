"""link_state: when to send what, and when a relay is dead. No I/O, no clock."""

from __future__ import annotations

import pytest

from relayd.agent.link_state import ECHO_BYTES, ECHO_MAGIC, MISSED_WHILE_MOVING, Due, LinkState
from relayd.backoff import Backoff
from relayd.keys import PublicKey
from relayd.wire.frames import DATA, HEADER, KEEPALIVE_FRAME, KEYED_BYTES

KEY = PublicKey(bytes(range(32)))
NONCE = b"\x01\x02\x03\x04"


def link(nonce: bytes = NONCE, *, keepalive_s: float = 25.0, echo_s: float = 10.0) -> LinkState:
    return LinkState(KEY, nonce, 100.0, keepalive_s=keepalive_s, echo_s=echo_s)


def echo_in(due: Due) -> bytes:
    """The payload of the one echo that is due; fails when there is none."""
    (frame,) = [frame for frame in due.frames if frame != KEEPALIVE_FRAME]
    length, kind = HEADER.unpack_from(frame)
    assert (length + 4, kind) == (len(frame), DATA)
    assert frame[5:KEYED_BYTES] == KEY.raw
    return frame[KEYED_BYTES:]


def test_first_echo_is_due_at_once_and_measures_the_round_trip() -> None:
    state = link()
    assert state.last_sign_at is None
    payload = echo_in(state.due(100.0, 0))
    assert state.echoed(payload, 100.125)
    assert state.alive
    assert state.round_trip_s == pytest.approx(0.125)
    assert state.next_at == 110.0


def test_echoes_keep_their_interval_while_they_are_answered() -> None:
    state = link(keepalive_s=1000.0)
    sent_at = []
    now = 100.0
    for _ in range(5):
        payload = echo_in(state.due(now, 0))
        sent_at.append(now)
        assert state.echoed(payload, now + 0.5)
        assert state.due(now + 1.0, 0) == Due()
        now = state.next_at
    assert sent_at == [100.0, 110.0, 120.0, 130.0, 140.0]


def test_silent_relay_is_dead_after_two_echoes_within_fifteen_seconds() -> None:
    state = link()
    assert state.echoed(echo_in(state.due(100.0, 0)), 100.0)
    echo_in(state.due(110.0, 50))
    assert state.next_at == 112.5
    assert state.due(112.4, 50) == Due()
    echo_in(state.due(112.5, 50))
    assert state.due(114.9, 50) == Due()
    assert state.due(115.0, 50).dead == "2 echoes unanswered"


def test_one_lost_echo_is_forgotten_when_the_next_comes_back() -> None:
    state = link()
    now = 100.0
    for _ in range(10):
        echo_in(state.due(now, 0))  # lost
        payload = echo_in(state.due(state.next_at, 0))
        assert state.echoed(payload, now + 3.0)
        now = state.next_at


def test_late_echo_counts_too() -> None:
    state = link()
    first = echo_in(state.due(100.0, 0))
    second = echo_in(state.due(102.5, 0))
    assert state.echoed(first, 103.0)
    assert state.round_trip_s == pytest.approx(3.0)
    assert state.due(110.0, 0).frames
    assert state.echoed(second, 110.1)


def test_lost_echoes_do_not_kill_a_link_that_moves_bytes_but_not_for_ever() -> None:
    state = link(keepalive_s=1000.0)
    moved = 0
    state.due(100.0, moved)
    for missed in range(1, MISSED_WHILE_MOVING):
        moved += 1000
        assert state.due(state.next_at, moved).dead == "", missed
    moved += 1000
    assert state.due(state.next_at, moved).dead == f"{MISSED_WHILE_MOVING} echoes unanswered"


def test_silence_after_traffic_still_needs_two_echoes() -> None:
    state = link(keepalive_s=1000.0)
    state.due(100.0, 0)
    assert not state.due(102.5, 1000).dead
    assert not state.due(105.0, 1000).dead
    assert state.due(107.5, 1000).dead


def test_keepalive_is_sent_every_interval_whatever_the_echoes_do() -> None:
    state = link(keepalive_s=25.0, echo_s=1000.0)
    assert state.echoed(echo_in(state.due(100.0, 0)), 100.0)
    assert state.next_at == 125.0
    assert state.due(124.9, 0) == Due()
    assert state.due(125.0, 0) == Due((KEEPALIVE_FRAME,))
    assert state.next_at == 150.0


def test_echo_of_an_earlier_connection_says_nothing_about_this_one() -> None:
    before = echo_in(link(b"\xff" * 4).due(100.0, 0))
    state = link()
    state.due(100.0, 0)
    assert not state.echoed(before, 100.1)
    assert not state.alive


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        ECHO_MAGIC,
        ECHO_MAGIC + NONCE,
        ECHO_MAGIC + NONCE + b"\x00\x00\x00\x02",
        b"\x01\x00\x00\x00" + b"a" * 144,
    ],
)
def test_what_was_never_sent_is_no_echo(payload: bytes) -> None:
    state = link()
    state.due(100.0, 0)
    assert not state.echoed(payload, 100.1)


def test_an_echo_counts_once() -> None:
    state = link()
    payload = echo_in(state.due(100.0, 0))
    assert state.echoed(payload, 100.1)
    assert not state.echoed(payload, 100.2)


def test_an_echo_looks_like_no_wireguard_message() -> None:
    payload = echo_in(link().due(100.0, 0))
    assert len(payload) == ECHO_BYTES
    assert payload[0] not in (1, 2, 3, 4)


def test_useful_life_ends_with_the_last_sign_of_life() -> None:
    state = link()
    assert state.useful_for_s() == 0.0
    assert state.echoed(echo_in(state.due(100.0, 0)), 100.5)
    assert state.useful_for_s() == pytest.approx(0.5)
    assert state.echoed(echo_in(state.due(110.0, 0)), 110.5)
    state.due(120.0, 0)
    state.due(122.5, 0)
    assert state.due(125.0, 0).dead
    assert state.useful_for_s() == pytest.approx(10.5)


def test_a_nonce_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        link(b"short")


def test_connections_that_die_young_do_not_reset_the_backoff() -> None:
    backoff = Backoff(lambda low, high: high)
    assert [backoff.failed(29.9) for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.failed(30.0) == 1.0
