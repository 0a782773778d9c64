"""A rate that may be exceeded for a moment: so many a second in the long run, so many at once."""

from __future__ import annotations


class TokenBucket:
    """Full at first. Pure: the caller has the clock."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, *, rate_per_s: float, burst: float) -> None:
        self._rate, self._burst = rate_per_s, burst
        self._tokens, self._at = burst, float("-inf")

    def take(self, now: float, count: float = 1.0) -> bool:
        """Whether `count` may pass at `now` (monotonic seconds); if so they are taken."""
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True
