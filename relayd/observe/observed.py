"""A relay or an agent, as it is looked at from outside: HTTP, and the control socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol


class Observed(Protocol):
    """What both roles tell of themselves."""

    def summary(self) -> Mapping[str, object]:
        """All of its status but the peers. Quick."""

    def peers(self, limit: int | None = None) -> Iterator[Mapping[str, object]]:
        """Its peers one by one; with `limit` so many of them, the busiest first."""
