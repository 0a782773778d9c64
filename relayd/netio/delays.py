"""How long frames waited in outboxes, as a histogram. Pure.

Only frames that waited are in it: one that its socket takes at once costs nothing here, and waited 0. Nor
are those that were dropped: they are counted as drops. One histogram serves all outboxes of a process.
"""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds of the buckets, in seconds: below a millisecond nobody notices, and by default half a second
is the end of it."""


class Delays:
    """Frames by the time that they waited."""

    __slots__ = ("frames", "sum_s")

    def __init__(self) -> None:
        self.frames = [0] * (len(BOUNDS_S) + 1)
        """In each bucket, not cumulative; the last one has no upper bound."""
        self.sum_s = 0.0

    def add(self, waited_s: float, frames: int) -> None:
        """`frames` have waited `waited_s` seconds each, and are on their way."""
        self.frames[bisect_left(BOUNDS_S, waited_s)] += frames
        self.sum_s += waited_s * frames

    def status(self) -> dict[str, object]:
        """For `relayd status --json`, in milliseconds."""
        return {
            "bounds_ms": [bound * 1e3 for bound in BOUNDS_S],
            "frames": list(self.frames),
            "sum_ms": round(self.sum_s * 1e3, 3),
        }
