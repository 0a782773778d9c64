"""A thousand agents lose their relay at one moment: how they come back (G12), under a clock of our own."""

from __future__ import annotations

import heapq
import random
from collections import deque

import pytest

from relayd.agent.link_waits import EARLY_TRIES, first_wait_s, least_wait_s
from relayd.backoff import USEFUL_S, Backoff

AGENTS = 1000
DIALS_A_SECOND = 100
BACK_WITHIN_S = 60.0


def come_back(agents: int, *, away_s: float, seed: int) -> tuple[int, float]:
    """-> the most dials within any second, and how long after the relay's return the last agent dials"""
    draw = random.Random(seed)
    backoffs = [Backoff(draw.uniform, early_tries=EARLY_TRIES) for _ in range(agents)]
    waiting: list[tuple[float, int]] = []
    for number, backoff in enumerate(backoffs):
        backoff.first_s, backoff.least_s = first_wait_s(agents), least_wait_s(agents)
        waiting.append((backoff.failed(USEFUL_S), number))
    heapq.heapify(waiting)
    within_a_second: deque[float] = deque()
    peak, last = 0, 0.0
    while waiting:
        last, number = heapq.heappop(waiting)
        within_a_second.append(last)
        while within_a_second[0] <= last - 1:
            within_a_second.popleft()
        peak = max(peak, len(within_a_second))
        if last < away_s:
            heapq.heappush(waiting, (last + backoffs[number].failed(0.0), number))
    return peak, last - away_s


@pytest.mark.parametrize("away_s", [0, 1, 3, 10, 20, 25, 28, 30, 35, 40, 50, 60, 90, 120, 300, 600])
def test_g12_a_thousand_agents_come_back_in_a_minute_and_never_a_hundred_in_a_second(away_s: int) -> None:
    for seed in range(5):
        peak, last_s = come_back(AGENTS, away_s=away_s, seed=seed)
        assert peak <= DIALS_A_SECOND, seed
        assert last_s <= BACK_WITHIN_S, seed


@pytest.mark.parametrize("agents", [2, 10, 50, 100, 300, 500, 700])
def test_g12_fewer_agents_are_no_more_in_a_second(agents: int) -> None:
    for away_s in (0, 2, 10, 40, 300):
        peak, last_s = come_back(agents, away_s=away_s, seed=agents)
        assert peak <= DIALS_A_SECOND
        assert last_s <= BACK_WITHIN_S


def test_without_the_least_wait_a_thousand_would_be_more_than_a_hundred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(globals(), "least_wait_s", lambda _agents: 0.0)
    assert max(come_back(AGENTS, away_s=40, seed=seed)[0] for seed in range(5)) > DIALS_A_SECOND


def test_two_agents_are_back_soon_after_a_relay_that_was_restarted() -> None:
    """Away for 1.3 s, as in the demonstration: half of the time it takes both less than 0.7 s."""
    took = sorted(come_back(2, away_s=1.3, seed=seed)[1] for seed in range(501))
    assert took[250] < 0.7
    assert took[450] < 2.0


def test_two_agents_dial_within_a_second_and_wait_for_nothing_before_they_try_again() -> None:
    assert first_wait_s(2) == 1.0
    assert least_wait_s(2) == 0.0
