"""What is known of a peer's paths when one is to be chosen: `pathfinder` gathers it, `selector` judges it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from relayd.endpoints import Endpoint


@dataclass(frozen=True, slots=True)
class ValidPair:
    """A pair that carried full-size packets both ways just now."""

    remote: Endpoint
    valid_at: float
    priority: int
    may_get_better: bool = False
    """Whether one of higher priority is still being checked."""


@dataclass(frozen=True, slots=True)
class PeerWord:
    """What the peer last said of its own path, not older than our own last change."""

    direct: bool
    remote: Endpoint | None
    """Where its packets come from, if direct."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a decision is made from, at `now`. Times are monotonic seconds, -inf: never."""

    now: float
    able: bool
    """Both ends can send and hear Pings on WireGuard's port."""
    talks: bool
    """The peer's agent answers, some way or other."""
    leads: bool
    """It is ours to promote."""
    relay_answered_at: float = -inf
    """When a Ping through the relay was answered last."""
    checking: bool = False
    valid: tuple[ValidPair, ...] = ()
    """The best first."""
    why_not: str = ""
    """Why no pair is valid, in words."""
    kernel: Endpoint | None = None
    """The direct endpoint that the kernel holds; None: the proxy's, or none."""
    kernel_answered: bool = False
    """A Ping to it was answered just now."""
    kernel_failed: bool = False
    """Pings to it weren't, in a whole round."""
    kernel_unanswered: bool = False
    """The first Pings to it weren't; a late answer may come yet."""
    session: bool = False
    """WireGuard has a session with the peer that is less than three minutes old."""
    answered_at: float = -inf
    """On the present direct pair."""
    unanswered: int = 0
    """Pings on it since the last answer."""
    unanswered_since: float = inf
    """When the first of them was sent."""
    sent_at: float = -inf
    """When the kernel was last seen to have sent something to the peer."""
    heard_at: float = -inf
    """When the kernel was last seen to have received something that the relay didn't bring."""
    hurried: bool = False
    """An address changed since the last answer."""
    word: PeerWord | None = None
