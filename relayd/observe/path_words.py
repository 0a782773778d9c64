"""A peer's path as a person reads it, from the `paths` that an agent tells of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from relayd.observe.units import milliseconds, text


def since_s(paths: Mapping[str, Any]) -> float | None:
    """For how long the peer's packets have gone the way that they go now (seconds)."""
    found: float | None = paths.get("path_since_s", paths.get("since_s"))
    return found


def round_trips(paths: Mapping[str, Any]) -> str:
    """Both, as far as they are known: "direct 1.2 ms, relay 41 ms"."""
    trips = paths.get("round_trip_ms") or {}
    ways = [way for way in ("direct", "relay") if trips.get(way) is not None]
    return ", ".join(f"{way} {milliseconds(trips[way])}" for way in ways)


def tried(paths: Mapping[str, Any]) -> str:
    """How many candidates became what: "tried 5: 1 valid, 4 failed"."""
    found = Counter(text(one.get("state")) for one in paths.get("candidates") or ())
    if not found:
        return ""
    return f"tried {found.total()}: {', '.join(f'{some} {state}' for state, some in found.most_common())}"
