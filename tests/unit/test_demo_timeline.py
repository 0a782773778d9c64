"""What the timeline makes of probes, events and rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.demo.timeline import ANSWER_DEADLINE_S, STEADY, Gap, Timeline
from relayd.demo.traffic import Answer, Missing, Rate

START = 1_000_000.0
EVERY = 0.0625
"""Between probes: a power of two, so that sums are exact."""


def timeline_of(pattern: str, *, round_trip_s: float = 0.002) -> Timeline:
    """`#` an answered probe, `.` a lost one."""
    timeline = Timeline(START)
    for number, mark in enumerate(pattern):
        at = START + number * EVERY
        timeline.add(Answer(number + 1, at, round_trip_s) if mark == "#" else Missing(number + 1, at))
    return timeline


def test_seconds_hold_the_probes_that_were_sent_in_them() -> None:
    timeline = timeline_of("#" * 16 + "#" * 10 + "." * 6 + "#" * 3)
    first, second, third = timeline.seconds()
    assert (first.number, first.answered, first.lost) == (0, 16, 0)
    assert (second.number, second.answered, second.lost) == (1, 10, 6)
    assert second.round_trips_ms[:10] == (2.0,) * 10
    assert second.round_trips_ms[10:] == (None,) * 6
    assert (third.answered, third.lost) == (3, 0)
    assert first.mean_ms == pytest.approx(2.0)


def test_a_second_without_answers_has_no_round_trip() -> None:
    (only,) = timeline_of("....").seconds()
    assert only.mean_ms is None
    assert only.lost == 4


def test_a_second_without_probes_is_there_all_the_same() -> None:
    timeline = Timeline(START)
    timeline.event(START + 0.5, "started")
    timeline.add(Answer(1, START + 2.25, 0.001))
    assert [(row.number, len(row.round_trips_ms)) for row in timeline.seconds()] == [(0, 0), (1, 0), (2, 1)]


def test_nothing_heard_is_no_second() -> None:
    assert Timeline(START).seconds() == []


def test_an_answer_that_came_after_it_was_missed_counts_as_answered() -> None:
    timeline = Timeline(START)
    timeline.add(Missing(1, START))
    timeline.add(Answer(1, START, 0.4))
    assert timeline.second(0).lost == 0
    assert timeline.gaps() == []


def test_being_missed_after_it_was_answered_changes_nothing() -> None:
    timeline = Timeline(START)
    timeline.add(Answer(1, START, 0.01))
    timeline.add(Missing(1, START))
    assert timeline.second(0).lost == 0


def test_an_answer_past_the_deadline_is_none() -> None:
    timeline = Timeline(START)
    timeline.add(Missing(1, START))
    timeline.add(Answer(1, START, ANSWER_DEADLINE_S + 0.001))
    timeline.add(Answer(2, START + 0.1, ANSWER_DEADLINE_S))
    assert timeline.second(0).round_trips_ms == (None, ANSWER_DEADLINE_S * 1000)


def test_a_second_is_settled_when_its_last_probe_can_no_longer_be_answered() -> None:
    timeline = Timeline(START)
    assert not timeline.is_settled(3, START + 4 + ANSWER_DEADLINE_S - 0.01)
    assert timeline.is_settled(3, START + 4 + ANSWER_DEADLINE_S)


def test_a_gap_lasts_from_its_first_lost_probe_to_the_next_answered_one() -> None:
    assert timeline_of("####....##.###").gaps() == [
        Gap(4 * EVERY, 8 * EVERY, 4),
        Gap(10 * EVERY, 11 * EVERY, 1),
    ]


def test_a_gap_at_the_end_has_no_end() -> None:
    assert timeline_of("##..").gaps() == [Gap(2 * EVERY, None, 2)]


def test_probes_never_sent_are_no_gap() -> None:
    timeline = Timeline(START)
    timeline.add(Answer(1, START, 0.001))
    timeline.add(Answer(2, START + 7.0, 0.001))
    assert timeline.gaps() == []


@given(st.text(alphabet="#.", max_size=200))
def test_the_gaps_hold_every_lost_probe_once(pattern: str) -> None:
    timeline = timeline_of(pattern)
    assert sum(gap.lost for gap in timeline.gaps()) == pattern.count(".")
    assert sum(second.lost for second in timeline.seconds()) == pattern.count(".")
    assert len(timeline.gaps()) == len([run for run in pattern.split("#") if run])


@given(st.text(alphabet="#.", max_size=60), st.randoms(use_true_random=False))
def test_the_order_in_which_lines_arrive_does_not_matter(pattern: str, random: object) -> None:
    heard = [
        Answer(n, START + n * EVERY, 0.002) if mark == "#" else Missing(n, START + n * EVERY)
        for n, mark in enumerate(pattern)
    ]
    shuffled = list(heard)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' Random is not typed as one
    first, second = Timeline(START), Timeline(START)
    for timeline, lines in ((first, heard), (second, shuffled)):
        for line in lines:
            timeline.add(line)
    assert first.seconds() == second.seconds()
    assert first.gaps() == second.gaps()


def test_traffic_is_back_with_the_first_of_several_answers_in_a_row() -> None:
    straggler = timeline_of("...." + "#" + "..." + "#" * STEADY)
    assert straggler.back_after(START) == 8 * EVERY


def test_traffic_is_not_back_before_it_is_steady() -> None:
    assert timeline_of("...." + "#" * (STEADY - 1)).back_after(START) is None


def test_answers_before_the_restart_are_not_its_recovery() -> None:
    timeline = timeline_of("#" * 20)
    assert timeline.back_after(START + 10 * EVERY) == 10 * EVERY
    assert timeline.back_after(START + 18 * EVERY) is None


def test_a_fault_tells_how_long_it_was_silent_and_how_long_after_the_restart() -> None:
    # killed just before probe 16 was sent, started again before probe 32, answered again from probe 40 on
    timeline = timeline_of("#" * 16 + "." * 24 + "#" * 20)
    fault = timeline.fault("relay", START + 1.0 - 0.001, START + 2.0)
    assert fault.lost == 24
    assert fault.back_s == 2.5
    assert fault.silent_s == pytest.approx(1.5)
    assert fault.recovered_after_s == pytest.approx(0.5)


def test_a_probe_under_way_at_the_kill_is_lost_to_it() -> None:
    timeline = timeline_of("#" * 15 + "." * 24 + "#" * 20)
    assert timeline.fault("relay", START + 1.0 - 0.001, START + 2.0).lost == 24


def test_an_earlier_gap_is_not_blamed_on_a_fault() -> None:
    timeline = timeline_of("#" * 4 + "....." + "#" * 7 + "." * 4 + "#" * 20)
    assert timeline.fault("relay", START + 1.0, START + 1.2).lost == 4


def test_a_fault_that_nobody_noticed_lost_nothing() -> None:
    fault = timeline_of("#" * 60).fault("relay", START + 1.0, START + 2.0)
    assert (fault.lost, fault.silent_s, fault.recovered_after_s) == (0, 0.0, 0.0)


def test_a_fault_without_recovery_says_so_and_counts_on() -> None:
    fault = timeline_of("#" * 16 + "." * 33).fault("relay", START + 1.0, START + 2.0)
    assert fault.back_s is None
    assert fault.recovered_after_s is None
    assert fault.lost == 33
    assert fault.silent_s == pytest.approx(2.0)


def test_events_are_in_the_second_in_which_they_happened_in_order() -> None:
    timeline = timeline_of("#" * 40)
    timeline.event(START + 1.75, "later")
    timeline.event(START + 1.25, "sooner")
    assert [event.what for event in timeline.second(1).events] == ["sooner", "later"]
    assert timeline.second(0).events == timeline.second(2).events == ()


def test_rates_are_placed_by_the_start_of_their_interval() -> None:
    timeline = timeline_of("#" * 64)
    timeline.add_rate(Rate(0.0, 1.0, 500.0, 0, ""), START + 1.5)
    timeline.add_rate(Rate(1.0, 2.0, 600.0, 0, ""), START + 1.5)
    timeline.add_rate(Rate(2.0, 2.02, 7.0, 0, ""), START + 0.5)
    timeline.add_rate(Rate(0.0, 2.0, 550.0, 0, "sender"), START + 1.5)
    assert [row.megabits_per_s for row in timeline.seconds()] == [None, 500.0, 600.0, None]
