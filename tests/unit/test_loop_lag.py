"""loop_lag: the longest time that the loop was held, remembered for a while."""

from __future__ import annotations

from relayd.observe.loop_lag import WINDOW_S, LoopLag


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def work(lag: LoopLag, clock: Clock, seconds: float) -> None:
    lag.after_io_wait(0.0)
    clock.now += seconds
    lag.before_io_wait(0.0)


def test_longest_stretch_of_work_is_kept() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    for seconds in (0.125, 0.5, 0.25):
        work(lag, clock, seconds)
        clock.now += 1.0
    assert lag.max_s() == 0.5


def test_waiting_is_no_lag() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    for _ in range(5):
        work(lag, clock, 0.0)
        clock.now += 5.0
    assert lag.max_s() == 0.0


def test_lag_is_forgotten_after_two_windows_at_most_and_one_at_least() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    work(lag, clock, 0.5)
    clock.now += WINDOW_S
    assert lag.max_s() == 0.5
    clock.now += WINDOW_S
    assert lag.max_s() == 0.0


def test_nothing_lingers_from_before_a_long_silence() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    work(lag, clock, 0.5)
    clock.now += 10 * WINDOW_S
    assert lag.max_s() == 0.0
