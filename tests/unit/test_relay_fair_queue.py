"""Whose turn it is at something dear: a crowd from few places keeps nobody from another one waiting."""

from __future__ import annotations

from relayd.relay.fair_queue import FairQueue


def test_a_place_that_comes_anew_is_before_all_that_had_a_turn() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(200):
        queue.add(number, f"crowd {number % 20}")
    # At first all places are new, and have a turn each in the order in which they came.
    assert [queue.take() for _ in range(20)] == list(range(20))
    queue.add(1000, "somebody")
    assert queue.take() == 1000
    assert queue.take() == 20


def test_within_a_place_who_came_first_is_first_and_who_left_has_no_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in "abc":
        queue.add(name, "here")
    queue.discard("b", "here")
    queue.discard("b", "here")
    queue.discard("z", "nowhere")
    assert [queue.take(), queue.take()] == ["a", "c"]
    assert not queue


def test_what_is_remembered_of_places_is_bounded() -> None:
    queue: FairQueue[int] = FairQueue(remembered=2)
    for number in range(3):
        queue.add(number, str(number))
        queue.take()
    for number in range(3):
        queue.add(10 + number, str(number))
    # The first place has been forgotten, and counts as new.
    assert [queue.take() for _ in range(3)] == [10, 11, 12]
    assert len(queue._last_turn) == 2
