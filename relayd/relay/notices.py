"""What a sender is told of destinations that don't get its frames, and how often. Pure."""

from __future__ import annotations

AGAIN_S = 1.0
"""Between two PeerGone about one destination (PROTOCOL.md, part 2)."""

DESTINATIONS = 64
"""So many destinations a sender is told of within AGAIN_S: who sends to random keys at line rate would get as
many bytes back."""


class GoneNotices:
    """When one sender was told of each destination last."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: dict[bytes, float] = {}
        """Oldest first."""

    def due(self, key: bytes, now: float) -> bool:
        """Whether to tell it of `key` now; then it counts as told."""
        told = self._told
        at = told.get(key)
        if at is not None and now - at < AGAIN_S:
            return False
        if at is None and len(told) >= DESTINATIONS:
            oldest = next(iter(told))
            if now - told[oldest] < AGAIN_S:
                return False
            del told[oldest]
        told.pop(key, None)
        told[key] = now
        return True
