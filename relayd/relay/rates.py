"""What each key, or each address, may do in the long run: a token bucket for each. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from relayd.token_bucket import TokenBucket

K = TypeVar("K", bound=Hashable)

MAX_KEYS = 65_536
"""Buckets that are remembered: some 15 MB. The one that was used least recently goes first."""


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
