"""Which relay is whose: the order of the relays for a node, the agent's home among them, and the way to a
peer.

Pure: what links are like and `now` in, addresses out.

Every agent ranks the same relays for the same node alike (rendezvous hashing: the relay whose hash with the
node's key is highest comes first), so nothing has to be agreed on. A node's home is the first of its relays
that works for it; who has something for it goes there, and to the next one when the relay says that the node
is absent. One relay more or less moves the nodes of that relay alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from math import inf

from relayd.keys import PublicKey

GRACE_S = 2.5
"""How long a relay may take to let us in before the next one is asked too: a dial and two round trips across
the world, with a segment lost."""

GONE_S = 30.0
"""How long a relay that said that a peer is absent isn't asked again for it; doubled each time, up to
GONE_CAP_S: the frames until it says so again are lost."""

GONE_CAP_S = 300.0


class Condition(Enum):
    """What a link to a relay is like."""

    IDLE = "idle"
    """Nobody has asked for it yet, or nobody needed it any more."""

    CONNECTING = "connecting"
    UP = "up"
    DRAINING = "draining"
    """It is to be left: it goes soon, and carries what there is until then."""

    DOWN = "down"
    """Its last try came to nothing; it goes on trying."""


@dataclass(frozen=True, slots=True)
class LinkSeen:
    """A link at one moment."""

    condition: Condition
    since: float
    """When it came to be like that, monotonic seconds."""

    carries_until: float = -inf
    """Of one that drains: when those who were there can be reached at the next relay."""

    def may_work(self, now: float) -> bool:
        """Whether it works, or is worth waiting for."""
        match self.condition:
            case Condition.CONNECTING:
                return now - self.since < GRACE_S
            case Condition.DOWN | Condition.DRAINING:
                return False
        return True

    def carries(self, now: float) -> bool:
        """Whether frames may go there."""
        return self.may_work(now) or (self.condition is Condition.DRAINING and now < self.carries_until)


def order(node: PublicKey, relays: Sequence[str]) -> tuple[str, ...]:
    """The relays (HOST:PORT each) for `node`, its favourite first. The same for everybody who names them
    alike."""
    return tuple(sorted(relays, key=lambda relay: (_weight(node, relay), relay), reverse=True))


def _weight(node: PublicKey, relay: str) -> bytes:
    return blake2b(node.raw + relay.encode(), digest_size=16, person=b"relayd home v1").digest()


def homes(ranked: Sequence[str], links: Mapping[str, LinkSeen], now: float) -> tuple[str, ...]:
    """The relays to be connected to for our own sake: up to the first that works or is worth waiting for.
    Those before it are away, and are tried on, so that their nodes come home."""
    wanted: list[str] = []
    for relay in ranked:
        wanted.append(relay)
        if links[relay].may_work(now):
            break
    return tuple(wanted)


class PeerRoute:
    """The way to one peer."""

    def __init__(self, ranked: Sequence[str]) -> None:
        """`ranked` is the peer's order."""
        self.ranked = tuple(ranked)
        self._gone: dict[str, tuple[float, float]] = {}
        """Relays that said it is absent: until when that counts, and for how long it was to."""

    def gone(self, relay: str, now: float) -> None:
        """`relay` says that the peer isn't there."""
        until, held_s = self._gone.get(relay, (now, 0.0))
        if now < until:
            return  # frames that were under way
        held_s = min(GONE_CAP_S, held_s * 2 or GONE_S)
        self._gone[relay] = (now + held_s, held_s)

    def held(self, now: float) -> list[tuple[str, float, float]]:
        """What is held against relays: for how long still, and for how long it was to; for `hold`."""
        return [(relay, until - now, held_s) for relay, (until, held_s) in self._gone.items() if now < until]

    def hold(self, relay: str, until: float, held_s: float) -> None:
        """As an earlier process had it."""
        self._gone[relay] = (until, held_s)

    def heard(self, relay: str) -> None:
        """Nothing more is held against `relay`."""
        self._gone.pop(relay, None)

    def choose(self, links: Mapping[str, LinkSeen], now: float) -> str:
        """Where its frames go now. When nobody has it, in turn to whoever was asked longest ago."""
        best = self.ranked[0]
        best_until = float("inf")
        for relay in self.ranked:
            until = self._gone.get(relay, (0.0, 0.0))[0]
            if not links[relay].carries(now):
                continue
            if now >= until:
                return relay
            if until < best_until:
                best, best_until = relay, until
        return best
