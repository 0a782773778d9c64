"""A thousand agents lose their relay at one moment: how they come back (G12), under a clock of our own."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest

from relayd.agent.link_waits import first_wait_s
from relayd.backoff import Backoff

AGENTS = 1000


@pytest.mark.parametrize("away_s", [0.0, 1.0, 10.0, 25.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_thousand_agents_come_back_in_a_minute_and_never_a_hundred_in_a_second(
    seed: int, away_s: float
) -> None:
    draw = random.Random(seed)
    backoffs = [Backoff(draw.uniform) for _ in range(AGENTS)]
    waiting: list[tuple[float, int]] = []
    for number, backoff in enumerate(backoffs):
        backoff.first_s = first_wait_s(AGENTS)
        heapq.heappush(waiting, (backoff.failed(30.0), number))
    dials: Counter[int] = Counter()
    last = 0.0
    while waiting:
        last, number = heapq.heappop(waiting)
        dials[int(last)] += 1
        if last < away_s:
            heapq.heappush(waiting, (last + backoffs[number].failed(0.0), number))
    assert max(dials.values()) <= 100
    assert last - away_s <= 60.0


def test_two_agents_are_back_within_a_second() -> None:
    assert first_wait_s(2) == 1.0
