"""Who is turned away at the door: counted, told why by an Error frame, and noted in the log.

How many they are is for strangers to choose. So all are counted, and lines are written at a rate that fills
no disk.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from relayd.observe import log
from relayd.relay.arrival import Arrival
from relayd.relay.farewells import Farewells
from relayd.token_bucket import TokenBucket
from relayd.wire.identity import Refused

NEVER_REGISTERED: Final = "never registered"
NO_DESCRIPTORS: Final = "no descriptors"
KEY_IN_USE: Final = "key in use"
"""Reasons that are no outcome of a handshake; the last: its holder answers."""

LINES_S: Final = 5.0
"""Lines a second in the long run: 100 MB a day at the worst."""

LINES_AT_ONCE: Final = 1000.0
"""Lines that may come at once: all agents of a large mesh, whose token is the wrong one."""


class Refusals:
    """All refusals of one relay."""

    def __init__(self, farewells: Farewells, now: float) -> None:
        """`now`, here and below: monotonic seconds."""
        self._farewells = farewells
        self._lines = TokenBucket(LINES_S, LINES_AT_ONCE, now)
        self._untold = 0
        self.counts: Counter[str] = Counter()
        """Connections that never got in, by reason."""

    def refuse(self, arrival: Arrival, refused: Refused, now: float) -> None:
        """The handshake has ended so."""
        self.turn_away(arrival, refused.refusal.value, refused.reason, now)

    def turn_away(self, arrival: Arrival, counted_as: str, reason: str, now: float) -> None:
        """Tell it why, and close it. Its socket isn't the caller's any more."""
        self.counts[counted_as] += 1
        self._note(arrival, reason, now)
        arrival.ours = False
        self._farewells.see_off(arrival.sock, reason, arrival.bridge)

    def _note(self, arrival: Arrival, reason: str, now: float) -> None:
        if not self._lines.try_take(1.0, now):
            self._untold += 1
            return
        key = arrival.handshake.key
        log.get().info(
            "agent.refused",
            endpoint=str(arrival.endpoint),
            reason=reason,
            **({"key": key.short()} if key is not None else {}),
            **({"suppressed": self._untold} if self._untold else {}),
        )
        self._untold = 0
