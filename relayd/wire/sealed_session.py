"""Which of a peer's sealed maps count, and how much: what was recorded and is sent again must change nothing.

A peer's life begins with a new `session`. A map is

    FRESH   it names our session: the peer made it in answer to this life of ours, and none newer is known
    HINT    it doesn't (yet): the peer has heard nothing of this life. Its addresses may be tried, no more
    OLD     a generation that isn't newer than the last one about the same thing (a path, addresses), or a
            session that another one has followed

What names our session can't stem from before it, and of what came since then the generations and the retired
sessions are known: so nothing recorded is FRESH. A HINT, replayed, costs us some Pings.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from relayd.wire.sealed_messages import SESSION_BYTES, Candidates, PathChanged, PortPrediction, Stamped

MAX_RETIRED = 64
"""Sessions of a peer's former lives. One that starts more often while we live is known by its last."""


class Freshness(Enum):
    """How much a map counts."""

    FRESH = "fresh"
    HINT = "hint"
    OLD = "old"


class SealedSession:
    """One peer's and our own sessions and generations."""

    def __init__(self, own: bytes) -> None:
        """`own`: SESSION_BYTES at random, the same for all peers while this process lives."""
        if len(own) != SESSION_BYTES:
            raise ValueError(f"a session has {SESSION_BYTES} bytes, not {len(own)}")
        self.own = own
        self.yours = b""
        """What our maps name as the peer's session: the last one heard, whether it counts or not."""
        self._theirs = b""
        """The one whose maps count; empty: none yet."""
        self._sent = 0
        self._heard: dict[str, int] = {}
        """The last generation by subject: what goes directly overtakes what goes through the relay."""
        self._retired: deque[bytes] = deque(maxlen=MAX_RETIRED)

    def next_generation(self) -> int:
        """For the next map to this peer."""
        self._sent += 1
        return self._sent

    def judge(self, message: Stamped) -> Freshness:
        """How much `message` counts; it is remembered as heard."""
        if message.session in self._retired:
            return Freshness.OLD
        self.yours = message.session
        names_us = message.yours == self.own
        if message.session != self._theirs:
            if not names_us:  # a new life that hasn't heard of ours, or an old one: nobody can tell
                return Freshness.HINT
            if self._theirs:
                self._retired.append(self._theirs)
            self._theirs = message.session
            self._heard.clear()
        subject = _subject(message)
        if message.generation <= self._heard.get(subject, 0):
            return Freshness.OLD
        self._heard[subject] = message.generation
        return Freshness.FRESH if names_us else Freshness.HINT


def _subject(message: Stamped) -> str:
    """What a later message of the same subject takes the place of."""
    if isinstance(message, Candidates):
        return "candidates"
    if isinstance(message, PathChanged):
        return "path"
    return "prediction" if isinstance(message, PortPrediction) else "search"
