"""When a peer's pairs are checked again."""

from __future__ import annotations

from math import inf

import pytest

from relayd.paths.patience import USUAL
from relayd.paths.rounds import AGAIN_S, Rounds


def waits(rounds: Rounds, count: int) -> list[float]:
    """Seconds from each of so many rounds to the next, of a peer that stays relayed."""
    found, last = [], 0.0
    for _ in range(count):
        due = rounds.due_at(last, direct=False, damped_until=-inf, unanswered_since=inf)
        rounds.begun()
        found.append(due - last)
        last = due
    return found


@pytest.mark.parametrize("cap_s", [30.0, USUAL.recheck_cap_s, 600.0])
def test_the_waits_double_up_to_what_the_mesh_says(cap_s: float) -> None:
    rounds = Rounds()
    rounds.cap(cap_s)
    rounds.begun()  # the first, which something asked for
    found = waits(rounds, 12)
    assert found[:2] == [AGAIN_S, 2 * AGAIN_S]
    assert found[-1] == cap_s == max(found)


def test_a_cap_that_is_lowered_counts_for_the_wait_that_is_under_way() -> None:
    rounds = Rounds()
    rounds.begun()
    waits(rounds, 12)
    rounds.cap(30.0)
    assert waits(rounds, 1) == [30.0]
