"""Backoff: how far it grows, that the jitter is full, and what resets it."""

from __future__ import annotations

from random import Random

import pytest

from relayd.backoff import CAP_S, USEFUL_S, Backoff


def longest(low: float, high: float) -> float:
    assert low == 0.0
    return high


def test_waits_double_up_to_the_cap_and_never_end() -> None:
    backoff = Backoff(longest)
    waits = [backoff.failed(0.0) for _ in range(2000)]
    assert waits[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(waits[5:]) == {CAP_S}


def test_early_tries_are_all_drawn_from_the_first_interval() -> None:
    backoff = Backoff(longest, early_tries=3)
    assert [backoff.failed(0.0) for _ in range(9)] == [1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [backoff.failed(seconds) for seconds in (USEFUL_S, 0.0, 0.0, 0.0)] == [1.0, 1.0, 1.0, 2.0]


def test_short_life_does_not_reset() -> None:
    backoff = Backoff(longest)
    assert [backoff.failed(USEFUL_S - 0.001) for _ in range(3)] == [1.0, 2.0, 4.0]


def test_useful_life_resets() -> None:
    backoff = Backoff(longest)
    for _ in range(4):
        backoff.failed(0.0)
    assert backoff.failed(USEFUL_S) == 1.0


def test_thousand_agents_spread_over_the_whole_wait() -> None:
    random = Random(1)
    backoffs = [Backoff(random.uniform) for _ in range(1000)]
    for backoff in backoffs:
        for _ in range(5):
            backoff.failed(0.0)
    waits = [backoff.failed(0.0) for backoff in backoffs]
    busiest = max(sum(second <= wait < second + 1 for wait in waits) for second in range(30))
    assert busiest <= 60
    assert max(waits) == pytest.approx(CAP_S, abs=1)
    assert min(waits) == pytest.approx(0, abs=1)


def test_the_least_wait_begins_with_the_second_and_is_never_more_than_half_the_longest() -> None:
    drawn: list[tuple[float, float]] = []

    def note(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    backoff = Backoff(note, first_s=4.0)
    backoff.least_s = 6.0
    for _ in range(4):
        backoff.failed(0.0)
    assert drawn == [(0.0, 4.0), (4.0, 8.0), (6.0, 16.0), (6.0, 30.0)]
