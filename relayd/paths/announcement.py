"""Telling the peer of a change of our path, by all ways that there are, until it says a word of its own."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from relayd.endpoints import Endpoint
from relayd.wire.sealed_messages import Message, PathChanged
from relayd.wire.sealed_session import SealedSession

ANNOUNCE_S = (0.3, 1.0, 3.0)
"""Between repetitions of PathChanged, until the peer says a word of its own."""

REPEATS = len(ANNOUNCE_S)


@dataclass(frozen=True, slots=True)
class Send:
    """A message for the peer: to an endpoint of its own, or through the relay (None)."""

    message: Message
    to: Endpoint | None = None


@dataclass(slots=True)
class Announcement:
    """One change, until the peer has heard of it."""

    direct: bool
    next_at: float
    sent: int = 0
    """How often it was said. With REPEATS at first it is said once."""

    def say(
        self,
        session: SealedSession,
        *,
        endpoint: Endpoint | None,
        seen_as: Endpoint | None,
        by_relay: bool,
        now: float,
    ) -> list[Send]:
        """Say it now, through the relay and (with `direct`) on the direct pair: there the peer sees where it
        comes from. `endpoint`: the peer's; `seen_as`: ours, as the peer had it last."""
        wait_s = ANNOUNCE_S[self.sent] if self.sent < REPEATS else inf
        self.next_at, self.sent = now + wait_s, self.sent + 1
        to = endpoint if self.direct else None
        out = []
        for way in [None, to] if to is not None else [None]:
            if way is None and not by_relay:
                continue
            message = PathChanged(
                generation=session.next_generation(),
                session=session.own,
                yours=session.yours,
                path="direct" if self.direct else "relay",
                endpoint="" if to is None else str(to.without_scope()),
                mine="" if to is None or seen_as is None else str(seen_as.without_scope()),
            )
            out.append(Send(message, way))
        return out
