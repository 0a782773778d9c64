"""When a peer's pairs are all checked again: at once after any sign of change, else ever more rarely."""

from __future__ import annotations

from math import inf

from relayd.paths.patience import USUAL
from relayd.paths.selector import SWITCH_AT_SILENCE_S

AGAIN_S = 6.0
"""Between two rounds of checks, for as long as the peer is relayed: doubled each time, and anew after any
sign of change. Longer than a round of Pings (`checklist.RETRIES_S`): each is known to have failed."""

ROUND_GAP_S = 1.0
"""Between two rounds at least, whatever happens."""


class Rounds:
    """One peer's rounds of checks. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.wanted = True
        """Whether something has changed since the last one."""
        self._again_s, self._cap_s = AGAIN_S, USUAL.recheck_cap_s

    def due_at(self, last: float, *, direct: bool, damped_until: float, unanswered_since: float) -> float:
        """When the next is due, after the one at `last`; inf: none is, as things are.

        `direct`: the peer is, and its first Ping without an answer went at `unanswered_since`. Until
        `damped_until` it isn't promoted.
        """
        at = last if self.wanted else inf
        if not direct:
            at = min(at, last + self._again_s)
            if damped_until > last:
                at = min(at, damped_until)
        elif unanswered_since > last:
            at = min(at, unanswered_since + SWITCH_AT_SILENCE_S)
        return max(at, last + ROUND_GAP_S)

    def cap(self, cap_s: float) -> None:
        """`Patience.recheck_cap_s` is this from now on."""
        self._cap_s, self._again_s = cap_s, min(cap_s, self._again_s)

    def begun(self) -> None:
        """One has begun, by our own decision."""
        self._again_s = min(self._cap_s, AGAIN_S if self.wanted else self._again_s * 2)
        self.wanted = False
