"""Who has the next turn, of those who wait for something dear: not whoever comes in the largest number. Pure.

The next is of the place that had its last turn longest ago, a new one before all others; of one place, who
came first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

REMEMBERED: Final = 4096
"""Places whose last turn is remembered. One that has been forgotten counts as new."""

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Who waits, by place (see `waiting_room.place_of`)."""

    def __init__(self, *, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._waiting: dict[str, dict[T, None]] = {}
        self._turns = 0
        self._last_turn: OrderedDict[str, int] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, one: T, place: str) -> None:
        """It waits from now on."""
        self._waiting.setdefault(place, {})[one] = None

    def discard(self, one: T, place: str) -> None:
        """It waits no more. Once is enough."""
        here = self._waiting.get(place)
        if here is not None and one in here:
            del here[one]
            if not here:
                del self._waiting[place]

    def take(self) -> T:
        """Whose turn it is, who waits no more then. To be called when there is somebody."""
        place = min(self._waiting, key=lambda place: self._last_turn.get(place, 0))
        one = next(iter(self._waiting[place]))
        self.discard(one, place)
        self._turns += 1
        self._last_turn[place] = self._turns
        self._last_turn.move_to_end(place)
        if len(self._last_turn) > self._remembered:
            self._last_turn.popitem(last=False)
        return one
