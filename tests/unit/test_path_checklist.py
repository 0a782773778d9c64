"""What is pinged when, and which answers count."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relayd.endpoints import Endpoint
from relayd.paths.candidates import make
from relayd.paths.checklist import (
    ANSWER_S,
    MAX_MET,
    MAX_OUTSTANDING,
    MAX_PAIRS,
    PACE_S,
    RETRIES_S,
    Checklist,
    PairState,
    Probe,
)
from relayd.wire.sealed_messages import Ping, Pong
from tests.helpers.sealing import Draws

FULL = 1371
LAN, PUBLIC, THIRD = (Endpoint(ip_address(a), 51820) for a in ("192.168.1.2", "203.0.113.9", "203.0.113.10"))
SEEN = Endpoint(ip_address("198.51.100.1"), 4000)


def checklist(*remotes: Endpoint) -> Checklist:
    made = Checklist(full_body_bytes=FULL, draw=Draws("checklist"))
    made.set_remote([make("host" if one == LAN else "srflx", one) for one in remotes], 0.0)
    return made


def pings(made: Checklist, until: float, start: float = 0.0) -> list[tuple[float, Probe]]:
    """All that is sent, each at the time when it is due."""
    found, now = [], start
    while (now := max(now, made.next_at)) < until:
        found += [(round(now, 6), probe) for probe in made.due(now)]
    return found


def answer(made: Checklist, probe: Probe, now: float, *, source: Endpoint | None = None) -> PairState | None:
    pair = made.answered(Pong(probe.ping.txid, SEEN, probe.ping.body_bytes), source or probe.to, now)
    return None if pair is None else pair.state


def test_a_pair_is_pinged_at_once_and_after_each_retry_then_fails() -> None:
    made = checklist(PUBLIC)
    made.start_round(0.0)
    expected, at = [0.0], 0.0
    for wait in RETRIES_S:
        at += wait
        expected.append(round(at, 6))
    assert [when for when, _ in pings(made, 60.0)] == expected
    assert made.pairs[PUBLIC].state is PairState.FAILED
    assert not made.checking


def test_a_pair_is_unanswered_when_its_early_pings_are() -> None:
    made = checklist(PUBLIC)
    made.start_round(0.0)
    now, seen = 0.0, []
    for wait in (*RETRIES_S, 0.0):
        made.due(now)
        seen.append(made.pairs[PUBLIC].is_unanswered)
        now += wait
    assert seen == [False, False, False, True, True]
    made.start_round(now)
    assert not made.pairs[PUBLIC].is_unanswered


def test_pings_are_paced_and_the_better_pair_goes_first() -> None:
    made = checklist(PUBLIC, LAN, THIRD)
    made.start_round(0.0)
    sent = pings(made, 60.0)
    assert all(b - a >= PACE_S - 1e-9 for (a, _), (b, _) in pairwise(sent))
    assert sent[0][1].to == LAN
    assert {probe.to for _, probe in sent[:3]} == {LAN, PUBLIC, THIRD}
    assert len(sent) == 3 * (1 + len(RETRIES_S))


def test_a_pair_is_valid_only_after_a_full_size_answer() -> None:
    made = checklist(PUBLIC)
    made.start_round(0.0)
    (small,) = made.due(0.0)
    assert small.ping.body_bytes < FULL
    assert answer(made, small, 0.02) is PairState.ANSWERED
    assert not made.valid(0.02)
    ((_, full),) = pings(made, 0.1, 0.02)
    assert full.ping.body_bytes == FULL
    assert answer(made, full, 0.12) is PairState.VALID
    assert [pair.remote for pair in made.valid(0.12)] == [PUBLIC]
    assert made.valid(0.12 + ANSWER_S + 1) == []


def test_a_short_answer_to_a_full_size_ping_does_not_make_it_valid() -> None:
    made = checklist(PUBLIC)
    made.start_round(0.0)
    answer(made, made.due(0.0)[0], 0.02)
    ((_, full),) = pings(made, 0.1, 0.02)
    made.answered(Pong(full.ping.txid, SEEN, 31), PUBLIC, 0.12)
    assert not made.valid(0.12)


def test_a_pair_whose_long_pings_are_lost_is_too_small() -> None:
    made = checklist(PUBLIC)
    made.start_round(0.0)
    answer(made, made.due(0.0)[0], 0.02)
    assert all(probe.ping.body_bytes == FULL for _, probe in pings(made, 60.0, 0.02))
    assert made.pairs[PUBLIC].state is PairState.TOO_SMALL


def test_answers_from_elsewhere_late_or_invented_count_nothing() -> None:
    made = checklist(PUBLIC, THIRD)
    made.start_round(0.0)
    (first,) = made.due(0.0)
    assert answer(made, first, 0.1, source=THIRD if first.to == PUBLIC else PUBLIC) is None
    (second,) = made.due(1.0)
    assert answer(made, second, 1.0 + ANSWER_S + 0.1) is None
    assert answer(made, Probe(PUBLIC, Ping(bytes(12))), 1.0) is None
    assert made.lost == 3


def test_pings_whose_answers_would_be_late_are_forgotten() -> None:
    """Else 256 are kept for each peer that never answers, 45 KiB."""
    made = checklist(LAN, PUBLIC)
    for begins in range(0, 1200, 120):
        made.start_round(float(begins))
        pings(made, begins + 100.0, start=float(begins))
    made.probe(PUBLIC, 1300.0)
    assert len(made._outstanding) == 1


def test_one_answer_counts_once() -> None:
    made = checklist(PUBLIC)
    made.start_round(0.0)
    (probe,) = made.due(0.0)
    assert answer(made, probe, 0.1) is PairState.ANSWERED
    assert answer(made, probe, 0.2) is None


def test_where_the_peers_ping_came_from_is_pinged_next() -> None:
    made = checklist(PUBLIC, LAN)
    made.start_round(0.0)
    made.due(0.0)
    made.trigger(made.meet(THIRD, 0.01, method="its Ping"), 0.01)
    assert made.due(PACE_S)[0].to == THIRD
    assert made.pairs[THIRD].type == "prflx"


def test_a_better_pair_under_way_is_worth_waiting_for() -> None:
    made = checklist(PUBLIC, LAN)
    made.start_round(0.0)
    lan, public = pings(made, 0.06)[:2]
    assert (lan[1].to, public[1].to) == (LAN, PUBLIC)
    assert made.may_get_better(made.pairs[PUBLIC])
    assert not made.may_get_better(made.pairs[LAN])


def test_a_new_list_replaces_the_old_one_but_keeps_what_answers() -> None:
    made = checklist(PUBLIC, LAN)
    made.start_round(0.0)
    lan = made.due(0.0)[0]
    answer(made, lan, 0.1)
    assert made.set_remote([make("srflx", THIRD)], 0.2)
    assert set(made.pairs) == {LAN, THIRD}
    assert not made.set_remote([make("srflx", THIRD)], 60.0)
    assert set(made.pairs) == {THIRD}


def test_predictions_replace_each_other_and_never_what_answered() -> None:
    made = checklist()
    made.predict([PUBLIC, THIRD], 0.0)
    made.start_round(0.0)
    first = made.due(0.0)[0]
    answer(made, first, 0.1)
    made.predict([LAN], 1.0)
    assert set(made.pairs) == {first.to, LAN}


def test_recorded_pings_from_everywhere_push_nothing_out_that_was_told() -> None:
    made = checklist(PUBLIC, LAN)
    for k in range(1000):
        made.meet(Endpoint(ip_address("198.51.100.7"), 1000 + k), float(k), method="its Ping")
    assert {PUBLIC, LAN} <= set(made.pairs)
    assert len(made.pairs) == 2 + MAX_MET


def test_an_address_change_makes_old_proof_worthless() -> None:
    made = checklist(PUBLIC)
    made.start_round(0.0)
    answer(made, made.due(0.0)[0], 0.02)
    answer(made, pings(made, 0.1, 0.02)[0][1], 0.12)
    made.invalidate()
    assert not made.valid(0.13)


remotes = st.integers(0, 200).map(lambda k: Endpoint(ip_address("198.51.100.7"), 1000 + k))
steps = st.lists(
    st.tuples(st.sampled_from(["set", "meet", "round", "due", "answer", "predict", "probe"]), remotes),
    max_size=60,
)


@given(steps)
def test_nothing_grows_without_bounds_and_nothing_is_valid_without_proof(
    what: list[tuple[str, Endpoint]],
) -> None:
    made, now, sent = checklist(), 0.0, []
    proved: set[Endpoint] = set()
    for kind, remote in what:
        now += 0.03
        if kind == "set":
            made.set_remote([make("srflx", remote)], now)
        elif kind == "meet":
            made.trigger(made.meet(remote, now, method="its Ping"), now)
        elif kind == "round":
            made.start_round(now)
        elif kind == "due":
            sent += made.due(now)
        elif kind == "probe" and remote in made.pairs:
            sent.append(made.probe(remote, now))
        elif kind == "predict":
            made.predict([remote], now)
        elif sent:
            probe = sent.pop()
            if answer(made, probe, now) is PairState.VALID:
                proved.add(probe.to)
        assert len(made.pairs) <= MAX_PAIRS
        assert len(made._outstanding) <= MAX_OUTSTANDING
        assert {pair.remote for pair in made.valid(now)} <= proved
