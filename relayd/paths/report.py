"""What can be told of a peer's path: for status, metrics and the cluster; and its history, for people.
Pure."""

from __future__ import annotations

from math import inf

from relayd.paths.checklist import Pair, PairState
from relayd.paths.pathfinder import Pathfinder
from relayd.paths.selector import State

LEFT_ALONE = "left alone"
"""The state of a peer that isn't ours to decide about."""


def summary(finder: Pathfinder, now: float) -> dict[str, object]:
    """One peer's path at `now` (monotonic seconds): JSON values, durations in seconds, round trips in ms."""
    selector = finder.selector
    return {
        "state": selector.state.value if selector.ours else LEFT_ALONE,
        "ice_state": ice_state(finder),
        "since_s": round(now - selector.since, 3),
        "path_since_s": round(now - selector.path_since, 3),
        "why": selector.reason,
        "changes": selector.changes,
        "waits_s": round(selector.damping.until - now, 3) if selector.damping.until > now else None,
        "leads": finder.leads,
        "talks": finder.agent.talks(now),
        "round_trip_ms": {"direct": _ms(finder.round_trip_s), "relay": _ms(finder.agent.round_trip_s)},
        "candidates": [_pair(pair, now) for pair in _in_order(finder)],
    }


def history(finder: Pathfinder, now: float) -> list[dict[str, object]]:
    """Every change of state that is remembered, the latest last."""
    return [
        {
            "ago_s": round(now - change.at, 3),
            "state": change.state.value,
            "endpoint": None if change.endpoint is None else str(change.endpoint),
            "why": change.reason,
        }
        for change in finder.selector.history
    ]


def ice_state(finder: Pathfinder) -> str:
    """In the words of a WireKubePeer's `iceState`: relay, gathering, checking, connected or failed."""
    selector = finder.selector
    if not selector.ours:
        return "relay" if selector.endpoint is None else "connected"
    if selector.state is State.DIRECT:
        return "connected"
    if selector.state is State.PROBING:
        return "checking"
    pairs = finder.checklist.pairs.values()
    if not pairs:
        return "gathering"
    return (
        "failed" if all(pair.state in (PairState.FAILED, PairState.TOO_SMALL) for pair in pairs) else "relay"
    )


def _in_order(finder: Pathfinder) -> list[Pair]:
    """The present pair first, then as they answered, then by priority."""
    present = finder.selector.endpoint
    return sorted(
        finder.checklist.pairs.values(),
        key=lambda pair: (pair.remote != present, -pair.answered_at, -pair.priority),
    )


def _pair(pair: Pair, now: float) -> dict[str, object]:
    return {
        "endpoint": str(pair.remote),
        "type": pair.type,
        "found": pair.method,
        "state": pair.state.value,
        "priority": pair.priority,
        "round_trip_ms": _ms(pair.round_trip_s),
        "answered_ago_s": None if pair.answered_at == -inf else round(now - pair.answered_at, 3),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
