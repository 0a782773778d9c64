"""The highest rate that gets through whole: steps up until one fails twice, then halving. Pure.

A step passes when nothing was lost, everything that was due was sent, and the last frame was there soon
after it was sent: a forwarder never loses, it falls behind. A step that fails is tried once more, and
several times more when other processes of the machine had the cores meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.model import Measurement, Step
from bench.stats import MOST_DISTURBANCE, disturbance

FACTOR = 1.35
"""From one step up to the next."""
HALVINGS = 4
"""1.35 ** (1 / 16): the result is exact to 2 %."""
MOST_STEPS = 40
TRIES = 2
TRIES_DISTURBED = 4
BEHIND_S = 0.03
"""How far it may be behind at the end of a step."""


def verdict(measurement: Measurement, rate: float, most_p99_us: float = 0.0) -> str:
    """Why a step at `rate` failed; empty when it passed. `most_p99_us` of 0 allows any latency."""
    if measurement.lost:
        return f"{measurement.lost} of {measurement.sent} frames lost"
    behind_s = measurement.unsent / rate
    if behind_s > BEHIND_S:
        who = "not read" if measurement.backpressure else "the load could not send more"
        return f"{behind_s * 1000:.0f} ms behind in sending: {who}"
    if measurement.drain_s + behind_s > BEHIND_S:
        return f"{(measurement.drain_s + behind_s) * 1000:.0f} ms behind at the end"
    if most_p99_us and measurement.latency and measurement.latency.p99 > most_p99_us:
        return f"p99 of latency {measurement.latency.p99:,.0f} us"
    return ""


def generator_failed(measurement: Measurement, rate: float) -> bool:
    """Whether a failed step says nothing about what was measured: the load itself fell behind."""
    return not measurement.lost and not measurement.backpressure and measurement.unsent / rate > BEHIND_S


def highest(
    start: float, try_rate: Callable[[float], Measurement], most_p99_us: float = 0.0
) -> tuple[Measurement | None, list[Step], bool]:
    """Search upwards from `start`; the best step that passed, all steps, whether the load set the limit.

    The first is None when even very low rates failed.
    """
    steps: list[Step] = []
    limited = False

    def passes(rate: float) -> Measurement | None:
        nonlocal limited
        for tries in range(TRIES_DISTURBED):
            measurement = try_rate(rate)
            reason = verdict(measurement, rate, most_p99_us)
            steps.append(
                Step(
                    rate=round(rate), passed=not reason, reason=reason, frames_per_s=measurement.frames_per_s
                )
            )
            if not reason:
                return measurement
            limited = generator_failed(measurement, rate)
            if tries + 1 >= TRIES and disturbance(measurement) <= MOST_DISTURBANCE:
                break
        return None

    rate = start
    best: Measurement | None = None
    while len(steps) < MOST_STEPS and (found := passes(rate)) is None and rate > start / 100:
        rate /= FACTOR * FACTOR
    if found is None:
        return None, steps, limited
    best, low = found, rate
    while len(steps) < MOST_STEPS and (found := passes(low * FACTOR)) is not None:
        best, low = found, low * FACTOR
    high = low * FACTOR
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        found = passes(middle)
        if found is None:
            high = middle
        else:
            best, low = found, middle
    return best, steps, limited
