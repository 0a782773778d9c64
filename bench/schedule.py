"""When each write of an open-loop load is due. Pure.

Writes are spread evenly in time, and go round the pairs in a fixed shuffled order. So the time at
which a frame was due follows from its pair and its sequence number alone: latency is counted from there,
not from when the load got round to sending it, and a load that is late doesn't hide that the relay was
(coordinated omission).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Schedule:
    """`rate` frames per second in writes of `burst`, dealt to the pairs in `order`, over and over.

    `order` holds pair numbers; one that occurs m times gets m writes a round.
    """

    rate: float
    burst: int
    order: tuple[int, ...]

    @property
    def interval_ns(self) -> float:
        """Between two writes."""
        return 1e9 * self.burst / self.rate

    def writes_in(self, seconds: float) -> int:
        """How many writes are due in so long."""
        return int(seconds * self.rate / self.burst)

    def positions(self, pair: int) -> tuple[int, ...]:
        """Where in a round the pair has its turns."""
        return tuple(place for place, who in enumerate(self.order) if who == pair)

    def write_of(self, positions: Sequence[int], sequence: int) -> int:
        """Which write, counted over all pairs, carries frame `sequence` of the pair with those positions."""
        turn, place = divmod(sequence // self.burst, len(positions))
        return turn * len(self.order) + positions[place]


def even_order(pairs: int, seed: int = 1) -> tuple[int, ...]:
    """Every pair once, shuffled: neighbours in time are not neighbours in the relay's tables."""
    order = list(range(pairs))
    Random(seed).shuffle(order)
    return tuple(order)


def weighted_order(pairs: int, extra: int, weight: float, seed: int = 1) -> tuple[int, ...]:
    """Every pair once, and the pair numbered `extra` spread evenly among them, `weight` times a round."""
    order: list[int] = []
    owed = 0.0
    for pair in even_order(pairs, seed):
        order.append(pair)
        owed += weight / pairs
        while owed >= 1.0 - 1e-9:
            order.append(extra)
            owed -= 1.0
    return tuple(order)
