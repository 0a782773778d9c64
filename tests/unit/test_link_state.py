"""link_state: when to ask a relay whether it lives, and when it is dead. No I/O, no clock."""

from __future__ import annotations

import pytest

from relayd.agent.link_state import (
    ECHO_BYTES,
    ECHO_MAGIC,
    LOOK_S,
    MISSED_WHILE_MOVING,
    Due,
    LinkState,
    Moved,
)
from relayd.backoff import Backoff
from relayd.keys import PublicKey
from relayd.wire.frames import DATA, HEADER, HEADER_BYTES, KEEPALIVE_FRAME, KEYED_BYTES
from relayd.wire.identity_frames import PING

KEY = PublicKey(bytes(range(32)))
NONCE = b"\x01\x02\x03\x04"
QUIET = Moved()
"""A connection on which nothing but the questions moves; those are too few to count here."""


def link(
    nonce: bytes = NONCE, *, keepalive_s: float = 1000.0, probe_s: float = 8.0, pings: bool = False
) -> LinkState:
    state = LinkState(KEY, nonce, 100.0, keepalive_s=keepalive_s, probe_s=probe_s)
    state.ask(100.0, pings=pings)
    return state


def echo_in(due: Due) -> bytes:
    """The payload of the one echo that is due; fails when there is none."""
    (frame,) = [frame for frame in due.frames if frame != KEEPALIVE_FRAME]
    length, kind = HEADER.unpack_from(frame)
    assert (length + 4, kind) == (len(frame), DATA)
    assert frame[5:KEYED_BYTES] == KEY.raw
    return frame[KEYED_BYTES:]


def token_in(due: Due) -> bytes:
    """The token of the one Ping that is due."""
    (frame,) = due.frames
    assert HEADER.unpack_from(frame)[1] == PING
    return frame[HEADER_BYTES:]


def next_due(state: LinkState, moved: Moved = QUIET) -> tuple[float, Due]:
    """The next moment at which there is something to do, on a connection that moved this much by then."""
    while True:
        now = state.next_at
        due = state.due(now, moved)
        if due != Due():
            return now, due


def test_first_echo_is_due_at_once_and_measures_the_round_trip() -> None:
    state = link()
    assert state.last_sign_at is None
    payload = echo_in(state.due(100.0, QUIET))
    assert state.echoed(payload, 100.125)
    assert state.alive
    assert state.round_trip_s == pytest.approx(0.125)
    assert next_due(state)[0] == 108.0


def test_nothing_is_asked_before_it_is_told_how() -> None:
    state = LinkState(KEY, NONCE, 100.0, keepalive_s=25.0, probe_s=8.0)
    assert state.due(124.9, QUIET) == Due()
    assert state.next_at == 125.0
    state.ask(124.9, pings=True)
    assert token_in(state.due(124.9, QUIET))


def test_echoes_keep_their_interval_while_they_are_answered() -> None:
    state = link()
    sent_at = []
    for _ in range(5):
        now, due = next_due(state)
        sent_at.append(now)
        assert state.echoed(echo_in(due), now + 0.5)
        assert state.due(now + 1.0, QUIET) == Due()
    assert sent_at == [100.0, 108.0, 116.0, 124.0, 132.0]


@pytest.mark.parametrize("pings", [False, True])
def test_silent_relay_is_dead_after_two_questions_within_twelve_seconds(pings: bool) -> None:
    """G8, idle: it falls silent right after its last answer."""
    state = link(pings=pings)
    due = state.due(100.0, QUIET)
    if pings:
        assert state.ponged(token_in(due), 100.0)
    else:
        assert state.echoed(echo_in(due), 100.0)
    times = []
    while not due.dead:
        now, due = next_due(state)
        times.append(now)
    assert times == [108.0, 110.0, 112.0]
    assert due.dead == f"2 {'pings' if pings else 'echoes'} unanswered"


@pytest.mark.parametrize("fell_silent_after_s", [0.0, 0.1, LOOK_S - 0.1, LOOK_S, 4.0, 7.9])
def test_busy_relay_that_falls_silent_is_dead_within_ten_seconds(fell_silent_after_s: float) -> None:
    """G8, busy: we send all the time, and from some moment on nothing comes back."""
    state = link()
    assert state.echoed(echo_in(state.due(100.0, Moved(10, 0))), 100.0)
    silent_at = 100.0 + fell_silent_after_s
    while True:
        now = state.next_at
        moved = Moved(sent=int(now * 1000), received=int(min(now, silent_at) * 1000))
        if state.due(now, moved).dead:
            break
    assert now - silent_at <= 7.0


def test_one_way_traffic_is_asked_more_often_and_is_not_dead() -> None:
    """Nothing but answers comes back from a relay that carries a stream of UDP one way."""
    state = link(pings=True)
    received = asked = 0
    while (now := state.next_at) < 200.0:
        due = state.due(now, Moved(sent=int(now * 1e6), received=received))
        assert not due.dead
        for _ in due.frames:
            asked += 1
            received += 13
            assert state.ponged(token_in(due), now + 0.05)
    assert 100 / 8 < asked < 100 / LOOK_S


def test_one_lost_echo_is_forgotten_when_the_next_comes_back() -> None:
    state = link()
    for _ in range(10):
        echo_in(next_due(state)[1])  # lost
        now, due = next_due(state)
        assert state.echoed(echo_in(due), now + 1.5)


def test_late_echo_counts_too() -> None:
    state = link()
    first = echo_in(state.due(100.0, QUIET))
    second = echo_in(state.due(102.0, QUIET))
    assert state.echoed(first, 103.0)
    assert state.round_trip_s == pytest.approx(3.0)
    assert state.due(108.0, QUIET).frames
    assert state.echoed(second, 108.1)


def test_lost_questions_do_not_kill_a_link_that_moves_bytes_but_not_for_ever() -> None:
    state = link()
    moved = Moved()
    asked = 0
    while not (due := state.due(state.next_at, moved)).dead:
        asked += len(due.frames)
        moved = Moved(moved.sent + 2000, moved.received + 1000, 0)
    assert asked == MISSED_WHILE_MOVING
    assert due.dead == f"{MISSED_WHILE_MOVING} echoes unanswered"


def test_a_full_socket_that_takes_bytes_is_no_silence() -> None:
    state = link()
    state.due(100.0, Moved())
    assert not state.due(102.0, Moved(1000, 0, 1000)).dead
    assert not state.due(104.0, Moved(2000, 0, 2000)).dead
    assert not state.due(106.0, Moved(2000, 0, 2000)).dead
    assert state.due(108.0, Moved(2000, 0, 2000)).dead


def test_keepalive_is_sent_every_interval_whatever_the_echoes_do() -> None:
    state = link(keepalive_s=25.0, probe_s=1000.0)
    assert state.echoed(echo_in(state.due(100.0, QUIET)), 100.0)
    assert next_due(state) == (125.0, Due((KEEPALIVE_FRAME,)))
    assert next_due(state) == (150.0, Due((KEEPALIVE_FRAME,)))


def test_a_relay_says_how_often_it_wants_to_be_kept_alive() -> None:
    state = LinkState(KEY, NONCE, 100.0, keepalive_s=25.0, probe_s=1000.0)
    state.ask(101.0, pings=True, keepalive_s=5.0)
    assert state.ponged(token_in(state.due(101.0, QUIET)), 101.0)
    assert next_due(state) == (106.0, Due((KEEPALIVE_FRAME,)))
    assert next_due(state) == (111.0, Due((KEEPALIVE_FRAME,)))


def test_echo_of_an_earlier_connection_says_nothing_about_this_one() -> None:
    before = echo_in(link(b"\xff" * 4).due(100.0, QUIET))
    state = link()
    state.due(100.0, QUIET)
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
    state.due(100.0, QUIET)
    assert not state.echoed(payload, 100.1)


def test_an_answer_counts_once() -> None:
    state = link()
    payload = echo_in(state.due(100.0, QUIET))
    assert state.echoed(payload, 100.1)
    assert not state.echoed(payload, 100.2)


def test_a_pong_for_an_echo_and_an_echo_for_a_ping_are_none() -> None:
    echoes, pings = link(), link(pings=True)
    payload, token = echo_in(echoes.due(100.0, QUIET)), token_in(pings.due(100.0, QUIET))
    assert not echoes.ponged(payload[len(ECHO_MAGIC) :], 100.1)
    assert not pings.echoed(ECHO_MAGIC + token, 100.1)
    assert echoes.echoed(payload, 100.1)
    assert pings.ponged(token, 100.1)


def test_an_echo_looks_like_no_wireguard_message() -> None:
    payload = echo_in(link().due(100.0, QUIET))
    assert len(payload) == ECHO_BYTES
    assert payload[0] not in (1, 2, 3, 4)


def test_useful_life_ends_with_the_last_sign_of_life() -> None:
    state = link()
    assert state.useful_for_s() == 0.0
    assert state.echoed(echo_in(state.due(100.0, QUIET)), 100.5)
    assert state.useful_for_s() == pytest.approx(0.5)
    assert state.echoed(echo_in(state.due(110.0, QUIET)), 110.5)
    while not next_due(state)[1].dead:
        pass
    assert state.useful_for_s() == pytest.approx(10.5)


def test_a_nonce_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        link(b"short")


def test_connections_that_die_young_do_not_reset_the_backoff() -> None:
    backoff = Backoff(lambda low, high: high)
    assert [backoff.failed(29.9) for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.failed(30.0) == 1.0
