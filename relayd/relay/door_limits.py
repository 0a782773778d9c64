"""How many connections there may be, from where, and how fast they may come. Pure.

too fast from one address     closed unheard
too many from one address     closed unheard
too many in all               the oldest that isn't admitted goes for it, if there is one
too fast in all               left in the kernel's queue for a moment
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from relayd.config import RelayConfig
from relayd.relay.rates import BucketOf
from relayd.token_bucket import TokenBucket

BURST_S = 4.0
"""So many seconds' worth may come at once from an address: a site whose agents all come back."""

TOO_FAST = "too fast from one address"
TOO_MANY_HERE = "too many from one address"
FULL = "too many in all"


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What the configuration says."""

    max_unregistered: int
    max_unregistered_per_address: int
    max_connections: int
    max_connections_per_address: int
    accepts_s: float
    accepts_per_address_s: float

    @classmethod
    def of(cls, config: RelayConfig) -> DoorLimits:
        """Those of `config`."""
        return cls(
            config.max_unregistered,
            config.max_unregistered_per_address,
            config.max_connections,
            config.max_connections_per_address,
            config.accepts_s,
            config.accepts_per_address_s,
        )


class Counting:
    """The connections that there are, by where they come from, and how fast they come."""

    def __init__(self, limits: DoorLimits, now: float) -> None:
        self._here: Counter[str] = Counter()
        self.total = 0
        self.change(limits, now)

    def change(self, limits: DoorLimits, now: float) -> None:
        """So many, and so fast, from now on; those that are here stay."""
        self._limits = limits
        self._all_rate = TokenBucket(limits.accepts_s, max(1.0, limits.accepts_s), now)
        burst = max(1.0, limits.accepts_per_address_s * BURST_S)
        self._rate_of: BucketOf[str] = BucketOf(limits.accepts_per_address_s, burst)

    def refusal(self, place: str, now: float) -> str:
        """Why a newcomer from `place` isn't even listened to; "": it is. FULL: unless somebody goes for
        it."""
        if not self._rate_of.of(place, now).try_take(1.0, now):
            return TOO_FAST
        if self._here[place] >= self._limits.max_connections_per_address:
            return TOO_MANY_HERE
        return FULL if self.total >= self._limits.max_connections else ""

    def wait_s(self, now: float) -> float:
        """A connection was accepted: how long to leave the next one in the kernel."""
        return self._all_rate.take(1.0, now)

    def came(self, place: str) -> None:
        """One more is here."""
        self._here[place] += 1
        self.total += 1

    def went(self, place: str) -> None:
        """One that came has ended."""
        self.total -= 1
        self._here[place] -= 1
        if not self._here[place]:
            del self._here[place]
