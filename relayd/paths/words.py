"""What the two ends say to each other of their paths (PathChanged), and what is to be said next."""

from __future__ import annotations

from math import inf

from relayd.endpoints import Endpoint
from relayd.paths.announcement import REPEATS, Announcement, Send
from relayd.paths.checklist import Checklist
from relayd.paths.evidence import PeerWord
from relayd.wire.sealed_session import SealedSession

MISLED_S = 10.0
"""A peer that said so long ago that it is direct, and of which nothing has come from there for so long,
doesn't know: two rounds of checks, so that losses alone don't make it so."""


class Words:
    """One peer's and ours. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.peers: PeerWord | None = None
        """Its last."""
        self._since = -inf
        """When it first said that."""
        self._ours: Announcement | None = None

    def heard(self, *, direct: bool, remote: Endpoint | None, now: float) -> None:
        """The peer went direct, to us at `remote` as we see it, or to the relay."""
        if self.peers is None or (self.peers.direct, self.peers.remote) != (direct, remote):
            self._since = now
        self.peers = PeerWord(direct, remote, now)
        if self._ours is not None and (self._ours.direct is direct or self._ours.sent):
            self._ours = None  # it knows; or it knew, and went on to something else

    def went_direct(self, now: float) -> None:
        """We did, or our packets come from elsewhere now."""
        self._ours = Announcement(direct=True, next_at=now)

    def went_to_relay(self, now: float) -> None:
        """We did; it is said once to a peer that went there first."""
        told = self.peers is not None and not self.peers.direct
        self._ours = Announcement(direct=False, next_at=now, sent=REPEATS if told else 0)

    def called(self, now: float) -> None:
        """We are direct, and the peer calls for checks. If it isn't by its own last word, it may not have
        heard ours: what was said while the relay was away went directly alone, and may be lost."""
        pending = self._ours is not None and self._ours.next_at < inf
        if not pending and (self.peers is None or not self.peers.direct):
            self._ours = Announcement(direct=True, next_at=now, sent=REPEATS)

    def left_alone(self) -> None:
        """The path isn't ours to say anything of."""
        self._ours = None

    def stays_on_relay(self, met_at: float, now: float) -> None:
        """Checks have come to their end, and we stay there: a peer that takes us for direct is told, as it
        may be idle, and find out nothing. `met_at`: when a word of its last came from where it said that it
        is; its Pings go everywhere. WireGuard's silence says nothing: the tunnel may be idle."""
        if self.peers is None or not self.peers.direct:
            return
        if now - max(self._since, met_at) > MISLED_S:
            self._ours = Announcement(direct=False, next_at=now, sent=REPEATS)

    @property
    def next_at(self) -> float:
        """When there is something to say; inf: there isn't."""
        return self._ours.next_at if self._ours is not None else inf

    def say(
        self,
        session: SealedSession,
        checklist: Checklist,
        *,
        endpoint: Endpoint | None,
        by_relay: bool,
        now: float,
    ) -> list[Send]:
        """What is due now. `endpoint`: the peer's, if we are direct; `by_relay`: whether that is there."""
        if self._ours is None or now < self._ours.next_at:
            return []
        pair = checklist.pairs.get(endpoint) if endpoint is not None else None
        seen_as = pair.seen_as if pair is not None else None
        return self._ours.say(session, endpoint=endpoint, seen_as=seen_as, by_relay=by_relay, now=now)
