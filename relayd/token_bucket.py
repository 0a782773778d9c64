"""A rate that may be exceeded for a moment: so many a second in the long run, so many at once."""

from __future__ import annotations

from math import inf


class TokenBucket:
    """Full at first. It may be overdrawn, and is empty until that is made good.

    Pure: the caller has the clock (monotonic seconds); one that goes back gives nothing.
    """

    __slots__ = ("_at", "_burst", "_level", "_rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, now: float = -inf) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._level, self._at = burst, now

    def level(self, now: float) -> float:
        """What may be taken; below 0: overdrawn."""
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate_per_s)
            self._at = now
        return self._level

    def spent(self, now: float) -> float:
        """What is missing from a full one."""
        return self._burst - self.level(now)

    def take(self, amount: float, now: float) -> float:
        """Take `amount` whatever there is. -> seconds until it is good for more"""
        left = self.level(now) - amount
        self._level = left
        return max(0.0, -left / self._rate_per_s)

    def try_take(self, amount: float, now: float) -> bool:
        """Take `amount` if there is so much."""
        if self.level(now) < amount:
            return False
        self._level -= amount
        return True
