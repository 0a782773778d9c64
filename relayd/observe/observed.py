"""A relay or an agent, as it is looked at from outside: HTTP, and the control socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

BUSIEST = 200
"""Peers in a short status: more than anybody reads on a terminal."""


class Observed(Protocol):
    """What both roles tell of themselves."""

    def summary(self) -> Mapping[str, object]:
        """All of its status but the peers. Quick."""

    def peers(self, limit: int | None = None) -> Iterator[Mapping[str, object]]:
        """Its peers one by one; with `limit` so many of them, the busiest first."""


def answers(observed: Observed) -> dict[str, Callable[[], dict[str, object]]]:
    """What the control socket answers: the whole status, and a short one for who asks again and again."""
    return {"status": partial(_status, observed, None), "busiest": partial(_status, observed, BUSIEST)}


def _status(observed: Observed, limit: int | None) -> dict[str, object]:
    return {**observed.summary(), "peers": list(observed.peers(limit))}
