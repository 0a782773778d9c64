"""Which way each peer's packets leave the kernel: straight to the peer, or through the relay's proxy.

`plan` decides, pure; `Reconciler` reads, applies and logs. A peer whose agent talks with ours has a verdict
(`paths.selector`), and that is the decision. For all others, who may be plain WireGuard, it is made here,
from what the interface says. Per peer:

    no endpoint                               relay    "no endpoint"
    one of ours, in marks.PROXY_NETWORK       relay    nothing is written, unless it isn't the right one
    direct, session fresh                     direct   left alone
    direct, session stale, nothing sent       direct   "idle": see below
    direct, stale, being tried                direct   "trying", for TRY_S since data came from there
    ... and no handshake in that time         relay    "no handshake for 180 s", or "never answered"
    ... while the relay itself is away        direct   "relay away": TRY_S begins when it is back
    relay, stale, being tried for RELAY_TRY_S,
        a direct endpoint was given up        direct   "relay didn't answer either": it gets TRY_S again

Why idle isn't dead: WireGuard is silent by design, and a session that nobody used for three minutes is
stale on a perfect path. Moved to the relay, such a pair would stay there: the kernel holds one endpoint
per peer, and the old one would be forgotten on both sides. So an endpoint is given up when it was tried
and didn't answer: what the kernel sends (its own initiations too, every 5 s while it has something to
say) moves `tx_bytes`, and from then on it has TRY_S. A peer with persistent keepalive always tries. Cost:
the first packet after a long silence towards an endpoint that died meanwhile is delayed by TRY_S plus one
retry of the kernel's. The same rule gives the endpoint of a configuration file, never used before, its
chance.

Why the way back: nobody tells whether a peer is connected to the relay at all. One that runs plain
WireGuard and was rebooting when its endpoint was given up would never be found again. So while neither
way answers, the peer's packets go the one way and the other by turns, which grow longer on the relay.

Back to direct the kernel goes by itself: it roams to where a peer's authenticated packets come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address

from relayd import marks
from relayd.endpoints import Endpoint
from relayd.kernel.device import Interface, Peer
from relayd.keys import PublicKey
from relayd.paths.patience import USUAL, Patience
from relayd.paths.verdict import Verdict

HANDSHAKES = frozenset((0, 148, 92, 148 + 92))
"""Bytes that a peer without a session sends between two looks, which are a second apart: nothing, an
initiation (it makes one in 5 s), a response, both (WireGuard paper, 5.4)."""

TRY_S = USUAL.try_s
"""See there; a mesh may have another."""

RELAY_TRY_S = 15.0
"""Likewise through the relay, with one more for a peer whose own agent is just coming back. Doubled with
each turn, up to RELAY_TRY_CAP_S: a peer that is switched off isn't worth a line in the log every minute."""

RELAY_TRY_CAP_S = 300.0


class Path(Enum):
    """The way that a peer's packets leave."""

    DIRECT = "direct"
    RELAY = "relay"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPath:
    """One peer, as seen and decided at one moment; the next plan starts from it."""

    peer: Peer
    path: Path
    reason: str
    set_endpoint: Endpoint | None = None
    """What the kernel is to be told; None: nothing."""

    handshake_at: float | None = None
    """Time of the last handshake on the caller's own clock, which no clock set back or forth can move."""

    tried_since: float | None = None
    """Since when packets leave for this endpoint without a session; None: none do."""

    given_up: Endpoint | None = None
    """The direct endpoint that the relay took the place of."""

    turns: int = 0
    """How often the relay was given up in turn, since there was a session."""

    def endpoint(self) -> Endpoint | None:
        """What the kernel holds once the plan is carried out."""
        return self.set_endpoint or self.peer.endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a plan takes into account besides the interface itself."""

    loopbacks: Mapping[PublicKey, IPv4Address]
    """Each peer's address on the proxy."""

    proxy_port: int
    relay_connected: bool
    direct: Mapping[PublicKey, Endpoint | None] = field(default_factory=dict)
    """Direct endpoints known from elsewhere: the configuration, or a life before this one."""

    patience: Patience
    verdicts: Mapping[PublicKey, Verdict] = field(default_factory=dict)
    """What was found out together with the peers' own agents."""

    now: float
    """Monotonic seconds."""

    wall_now: float
    """Seconds of the Unix epoch: the clock of the kernel's handshakes."""


def plan(
    interface: Interface, before: Mapping[PublicKey, PeerPath], around: Surroundings
) -> dict[PublicKey, PeerPath]:
    """Every peer's path from now on. `before` is the last plan, empty at the start."""
    return {
        key: _decide(peer, before.get(key), around)
        if (verdict := around.verdicts.get(key)) is None
        else _follow(peer, verdict, before.get(key), around)
        for key, peer in interface.peers.items()
    }


def _follow(peer: Peer, verdict: Verdict, before: PeerPath | None, around: Surroundings) -> PeerPath:
    """The peer's path as its verdict has it."""
    proxy = Endpoint(around.loopbacks[peer.key], around.proxy_port)
    kept = not verdict.direct and _same(verdict.endpoint, peer.endpoint)
    wanted = verdict.endpoint if verdict.direct and verdict.endpoint is not None else proxy
    given_up = None
    if not verdict.direct:
        was_direct = peer.endpoint is not None and peer.endpoint.address not in marks.PROXY_NETWORK
        given_up = peer.endpoint if was_direct else before.given_up if before is not None else None
    return PeerPath(
        peer=peer,
        path=Path.DIRECT if verdict.direct else Path.RELAY,
        reason=verdict.reason,
        set_endpoint=None if kept or (_same(peer.endpoint, wanted) and not verdict.renew) else wanted,
        handshake_at=_handshake_at(peer, before, around),
        given_up=given_up,
    )


def _same(one: Endpoint | None, other: Endpoint | None) -> bool:
    """Whether they are one endpoint. A userspace WireGuard tells no zone of a link-local address."""
    return one is not None and other is not None and one.without_scope() == other.without_scope()


def _decide(peer: Peer, before: PeerPath | None, around: Surroundings) -> PeerPath:
    handshake_at = _handshake_at(peer, before, around)
    age_s = None if handshake_at is None else around.now - handshake_at
    proxy = Endpoint(around.loopbacks[peer.key], around.proxy_port)
    endpoint = peer.endpoint
    fresh = age_s is not None and age_s < around.patience.fresh_handshake_s
    turns = 0 if before is None or fresh else before.turns

    def relay(
        reason: str, tried_since: float | None = None, given_up: Endpoint | None = None, turns: int = 0
    ) -> PeerPath:
        return PeerPath(
            peer=peer,
            path=Path.RELAY,
            reason=reason,
            set_endpoint=None if endpoint == proxy else proxy,
            handshake_at=handshake_at,
            tried_since=tried_since,
            given_up=given_up,
            turns=turns,
        )

    def direct(reason: str, tried_since: float | None = None) -> PeerPath:
        return PeerPath(
            peer=peer,
            path=Path.DIRECT,
            reason=reason,
            handshake_at=handshake_at,
            tried_since=tried_since,
            turns=turns,
        )

    if endpoint is None:
        return relay("no endpoint")
    if endpoint.address in marks.PROXY_NETWORK:
        if before is None:
            return relay("relayed before", given_up=around.direct.get(peer.key))
        if before.path is Path.DIRECT:  # a packet through the relay did it; or a carrier's port has gone
            was = before.endpoint()
            ours = was is not None and was.address in marks.PROXY_NETWORK
            return relay("roamed", given_up=None if ours else was)
        if fresh:
            return relay(before.reason, given_up=before.given_up)
        tried_since = _tried_since(peer, before, around.now)
        patience_s = min(RELAY_TRY_CAP_S, RELAY_TRY_S * 2.0 ** min(turns, 10))
        if before.given_up is None or tried_since is None or around.now - tried_since < patience_s:
            return relay(before.reason, tried_since, before.given_up, turns)
        return PeerPath(
            peer=peer,
            path=Path.DIRECT,
            reason="relay didn't answer either",
            set_endpoint=before.given_up,
            handshake_at=handshake_at,
            tried_since=around.now,
            turns=turns + 1,
        )
    if fresh:
        return direct("session")
    tried_since = _tried_since(peer, before, around.now)
    if tried_since is None:
        return direct("idle" if age_s is not None else "untried")
    if not around.relay_connected:
        return direct("relay away", around.now)  # its time begins when there is something better
    if around.now - tried_since < around.patience.try_s:
        return direct("trying", tried_since)
    if age_s is None:
        return relay("direct endpoint never answered", given_up=endpoint, turns=turns)
    return relay(f"no handshake for {around.patience.fresh_handshake_s:g} s", given_up=endpoint, turns=turns)


def _handshake_at(peer: Peer, before: PeerPath | None, around: Surroundings) -> float | None:
    """The last handshake on the monotonic clock. One known keeps its time: the wall clock may jump."""
    if peer.handshake_at is None:
        return None
    if before is not None and before.peer.handshake_at == peer.handshake_at:
        return before.handshake_at
    return around.now - max(0.0, around.wall_now - peer.handshake_at)


def _tried_since(peer: Peer, before: PeerPath | None, now: float) -> float | None:
    """Since when this endpoint is being sent to without a session. None: not that we have seen.

    Data from there is an answer: then there is a session, which only looks old by a wall clock that was set
    since (a machine without a clock of its own, whose agent starts as NTP has found the time). A handshake's
    messages alone are none: a peer that we can't reach sends them again and again, if it can reach us.
    """
    if before is None or before.endpoint() != peer.endpoint:
        return None
    if peer.rx_bytes - before.peer.rx_bytes not in HANDSHAKES:
        return None
    if before.tried_since is not None:
        return before.tried_since
    return now if peer.tx_bytes > before.peer.tx_bytes else None
