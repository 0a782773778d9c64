"""Token buckets: how much in the long run, how much at once. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MAX_KEYS = 65_536
"""Buckets that are remembered: some 15 MB. The one that was used least recently goes first."""


class TokenBucket:
    """`rate` a second in the long run, and `burst` at once. It may be overdrawn, and is empty until that is
    made good."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, now

    def level(self, now: float) -> float:
        """What may be taken; below 0: overdrawn."""
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
        return self._level

    def spent(self, now: float) -> float:
        """What is missing from a full one."""
        return self._burst - self.level(now)

    def take(self, amount: float, now: float) -> float:
        """Take `amount` whatever there is. -> seconds until it is good for more"""
        left = self.level(now) - amount
        self._level = left
        return max(0.0, -left / self._rate)

    def try_take(self, amount: float, now: float) -> bool:
        """Take `amount` if there is so much."""
        if self.level(now) < amount:
            return False
        self._level -= amount
        return True


class BucketOf(Generic[K]):
    """A bucket for each key, of those that used theirs lately: who has been away for long finds it full."""

    def __init__(self, rate: float, burst: float, *, max_keys: int = MAX_KEYS) -> None:
        self._rate, self._burst, self._max_keys = rate, burst, max_keys
        self._buckets: OrderedDict[K, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: K, now: float) -> TokenBucket:
        """The bucket of `key`."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
            if len(self._buckets) > self._max_keys:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket


@dataclass(frozen=True, slots=True)
class KeyRates:
    """What one key may send. None: as much as it can."""

    bytes_s: float | None = None
    frames_s: float | None = None

    def __bool__(self) -> bool:
        return self.bytes_s is not None or self.frames_s is not None
