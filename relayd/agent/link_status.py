"""A link to a relay, as `relayd status` says it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import trio

from relayd.agent.relay_leg import RelayLeg


class Phase(Enum):
    """What the link is doing."""

    DIALING = "dialing"
    REGISTERING = "registering"
    """TCP is up and Register sent; the relay is to prove who it is, and to let us in."""
    CONNECTED = "connected"
    WAITING = "waiting"


def status_of(
    address: str,
    phase: Phase,
    leg: RelayLeg | None,
    trying: RelayLeg | None,
    *,
    dials: int,
    reason: str,
    received: Mapping[str, int],
) -> dict[str, object]:
    """`leg` is the connection by which frames leave, `trying` one that isn't connected yet."""
    session = leg.session if leg is not None else None
    at_work = leg if leg is not None else trying
    proved = session.proved if session is not None else None
    round_trip_s = session.round_trip_s if session is not None else None
    now = trio.current_time()
    return {
        "address": address,
        "endpoint": str(at_work.endpoint) if at_work is not None and at_work.endpoint is not None else None,
        "state": phase.value,
        "key": str(proved.relay_key) if proved is not None else None,
        "trust": None if session is None else "unproved" if proved is None else proved.trust.value,
        "observed": proved.welcome.observed or None if proved is not None else None,
        "health": session.health if session is not None else "",
        "draining": leg is not None and leg.drain_s > 0,
        "round_trip_ms": round(round_trip_s * 1e3, 3) if round_trip_s is not None else None,
        "connected_s": round(now - leg.connected_at, 3) if leg is not None else None,
        "dials": dials,
        "reason": reason,
        "received": received,
    }
