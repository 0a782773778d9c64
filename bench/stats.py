"""Percentiles, medians and spreads. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from bench.model import Latency, Measurement

CURVE_PERCENTS = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.99, 100.0)

MOST_DISTURBANCE = 0.05
"""A run in which other processes had more than this share of a core is not to be believed."""


def disturbance(run: Measurement) -> float:
    """Share of the time for which others had the relay's core or the load's, whichever was worse."""
    kept = run.foreign_share if run.foreign_share is not None else run.waited_share
    return max(kept or 0.0, run.generator.waited_share if run.generator else 0.0)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `percent` of all are not above.

    `ordered` is sorted ascending. Raises ValueError when it is empty or `percent` is outside 0 to 100.
    """
    if not ordered:
        raise ValueError("no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is not a percentage")
    # The rounding takes back what 99.9 / 100 lacks in binary, which would push a rank over the edge.
    return ordered[max(ceil(round(percent * len(ordered) / 100, 9)) - 1, 0)]


def latency_of(nanoseconds: Sequence[int]) -> Latency | None:
    """The percentiles, in microseconds; None when nothing was measured."""
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)

    def at(percent: float) -> float:
        return round(percentile(ordered, percent) / 1000, 1)

    return Latency(
        count=len(ordered),
        p50=at(50),
        p99=at(99),
        p999=at(99.9),
        max=at(100),
        curve=[(percent, at(percent)) for percent in CURVE_PERCENTS],
    )


def median(values: Sequence[float]) -> float:
    """The middle value (mean of the two in the middle). Raises ValueError when there is none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def spread(values: Sequence[float]) -> float:
    """Largest minus smallest, as a share of the median; 0 for one value or a median of 0."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0
