"""When a direct path gets its next Ping: often while it is in use, at once when it is in doubt, seldom when
idle, and never where nothing has to be held open."""

from __future__ import annotations

from math import inf

ACTIVE_S = 1.0
"""While the kernel sends or receives: of the 3 s that a dead path may go unnoticed, the Pings in doubt need
two."""

FAST_S = 0.1
"""In doubt: twenty Pings in 2 s. A path that loses 30 % each way leaves all of them unanswered once in a
million times; at one a second it would be each fourth time."""

FAST_FOR_S = 4.0
"""So long; who is still silent then is asked at the usual tempo."""

DOUBT_S = 0.3
"""Without an answer, or twice the round trip."""

DOUBT_FOR_S = 10.0
"""What isn't decided after so long in doubt waits for the next read of the kernel: an agent that is gone for
good must not keep us busy."""

FIREWALL_HOLD_S = 25.0
"""Between two datagrams on an idle path with no NAT in front of us, for the firewall that may be there: as
WireGuard's own persistent keepalive is set by custom. Conntrack forgets after 30 s at the earliest."""

MIN_HOLD_S = 2.0
"""Behind a NAT that forgets sooner than twice that, a path can't be held."""


def hold_s(*, behind_nat: bool, filtered: bool, wanted_s: float, alive_s: float | None) -> float:
    """Seconds between two datagrams on an idle direct path; inf: nothing has to be held.

    `filtered`: whether strangers may be kept out; `wanted_s`: by the configuration, behind a NAT; `alive_s`:
    for so long an idle mapping was seen to live. Half of it has room for one that is lost.
    """
    if not behind_nat:
        return FIREWALL_HOLD_S if filtered else inf
    if alive_s is None:
        return wanted_s
    return min(FIREWALL_HOLD_S, max(MIN_HOLD_S, alive_s / 2))


class Beat:
    """The Pings on the present direct pair. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.running = False
        self.answered_at = -inf
        self.unanswered = 0
        """Pings sent since the last answer, the one under way included."""
        self.unanswered_since = inf
        """When the first of them was sent."""
        self.sent_at = -inf

    def begin(self, answered_at: float) -> None:
        """Another pair is the present one; it last answered then."""
        self.running, self.answered_at, self.sent_at = True, answered_at, -inf
        self.unanswered, self.unanswered_since = 0, inf

    def end(self) -> None:
        """There is no direct path."""
        self.running = False
        self.unanswered, self.unanswered_since = 0, inf

    def hurry(self) -> None:
        """The next Ping is due now."""
        self.sent_at = -inf

    def sent(self, now: float) -> None:
        """A Ping was sent."""
        self.sent_at = now
        self.unanswered += 1
        self.unanswered_since = min(self.unanswered_since, now)

    def answered(self, now: float) -> None:
        """Any of them was answered."""
        self.answered_at = now
        self.unanswered, self.unanswered_since = 0, inf

    def doubtful_at(self, round_trip_s: float | None) -> float:
        """From when on the path is in doubt, if no answer comes; inf: nothing is asked."""
        return self.unanswered_since + max(DOUBT_S, 2 * (round_trip_s or 0.0))

    def next_at(self, now: float, *, active: bool, hold_s: float, round_trip_s: float | None) -> float:
        """When to send the next one. `hold_s`: what a NAT's mapping needs when the path is idle; inf:
        nothing."""
        if not self.running:
            return inf
        usual = self.sent_at + (ACTIVE_S if active else hold_s)
        if not self.unanswered or now - self.unanswered_since > FAST_FOR_S:
            return usual
        return min(usual, max(self.sent_at + FAST_S, self.doubtful_at(round_trip_s)))

    def doubtful(self, now: float, *, round_trip_s: float | None) -> bool:
        """Whether an answer is owed, and hasn't been for too long."""
        asked_s = now - self.unanswered_since
        return now >= self.doubtful_at(round_trip_s) and asked_s < DOUBT_FOR_S
