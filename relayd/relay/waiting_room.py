"""Connections that aren't admitted yet: how many there may be, and which goes when there is one too many.

Pure. The oldest goes, not the newcomer: a flood of connections that say nothing pushes out its own, while an
agent needs two round trips and is gone from here before its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Generic, TypeVar

HOST_PREFIX_V6 = 64
"""Whoever has one IPv6 address has the 2^64 of its network (RFC 4291, section 2.5.1)."""

T = TypeVar("T")


def place_of(address: IPv4Address | IPv6Address) -> str:
    """What counts as one address where connections are counted: an IPv4 address, or an IPv6 network of 64
    bits."""
    if address.version == 4:
        return str(address)
    return str(ip_network((address, HOST_PREFIX_V6), strict=False))


class WaitingRoom(Generic[T]):
    """Who waits, oldest first, in all and from each place."""

    def __init__(self, *, seats: int, seats_per_place: int) -> None:
        self._seats, self._seats_per_place = seats, seats_per_place
        self._all: dict[T, str] = {}
        self._of_place: dict[str, dict[T, None]] = {}

    def resize(self, *, seats: int, seats_per_place: int) -> None:
        """So many, from the next newcomer on."""
        self._seats, self._seats_per_place = seats, seats_per_place

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[T]:
        return iter(self._all)

    def enter(self, newcomer: T, place: str) -> T | None:
        """`newcomer` waits from now on. -> the one that goes for it, and waits no more; None: nobody."""
        self._all[newcomer] = place
        here = self._of_place.setdefault(place, {})
        here[newcomer] = None
        if len(here) > self._seats_per_place:
            victim = next(iter(here))
        elif len(self._all) > self._seats:
            victim = next(iter(self._all))
        else:
            return None
        self.leave(victim)
        return victim

    def oldest(self) -> T | None:
        """Who waits longest; None: nobody waits."""
        return next(iter(self._all), None)

    def leave(self, one: T) -> None:
        """`one` waits no more. Once is enough."""
        place = self._all.pop(one, None)
        if place is None:
            return
        here = self._of_place[place]
        del here[one]
        if not here:
            del self._of_place[place]
