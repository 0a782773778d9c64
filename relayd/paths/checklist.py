"""One peer's pairs: what is pinged when, and what came of it. (RFC 8445, sections 6.1.4 and 7, for one
component.)

    waiting     not pinged in this round yet
    checking    pinged, no answer yet; again after RETRIES_S
    answered    a Ping was answered; one of full size is under way
    valid       a Ping as long as WireGuard's longest datagram was answered with as many bytes: packets of
                that size pass both ways
    too_small   small ones are answered, long ones aren't
    failed      no answer to any Ping of this round

A pair is known by its remote endpoint (see `candidates`). An answer counts when it carries a txid of ours,
comes from the very endpoint that was pinged, and within ANSWER_S."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf

from relayd.endpoints import Endpoint
from relayd.paths.candidates import Candidate, make
from relayd.wire.sealed_messages import MAX_CANDIDATES, TXID_BYTES, CandidateType, Ping, Pong

PACE_S = 0.05
"""Between two Pings to one peer: RFC 8445's Ta (section 14.2)."""

EARLY_S = (0.1, 0.3, 1.0)
RETRIES_S = (*EARLY_S, 3.0)
"""After the first Ping of a round, each counted from the one before. Early ones for NATs that open when
both ends have sent, the later for losses and long ways."""

FULL_RETRIES_S = (0.3, 0.6, 1.2, 2.0)
"""Likewise for the full-size one: by then the round trip is known to be possible, and losses remain."""

LAST_WAIT_S = 1.0
"""After the last Ping of a round, for its answer."""

ANSWER_S = 5.0
"""An answer that takes longer says nothing of the path as it is now."""

MAX_OUTSTANDING = 256
"""Pings whose answers are waited for; the oldest is forgotten first."""

MAX_MET = 16
"""Places where a peer was met that nobody told of: a recorded Ping may come from any number of them."""

MAX_PAIRS = 2 * MAX_CANDIDATES + MAX_MET
"""A peer's candidates, ports predicted for it, and where it was met."""


KEEP_S = 120.0
"""A place where a peer was met, and doesn't answer any more, is pinged with the rounds of so long."""

PREDICTED = "predicted"
"""The method of a pair that a PortPrediction gave."""


class PairState(Enum):
    """Where a pair stands, in this round."""

    WAITING = "waiting"
    CHECKING = "checking"
    ANSWERED = "answered"
    VALID = "valid"
    TOO_SMALL = "too small"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Probe:
    """A Ping to be sent to `to`."""

    to: Endpoint
    ping: Ping


@dataclass(slots=True)
class Pair:
    """One remote endpoint, and what is known of it."""

    remote: Endpoint
    type: CandidateType
    priority: int
    method: str
    state: PairState = PairState.FAILED
    """Until the first round."""

    next_at: float = inf
    """When the next Ping of the round is due; inf: none is."""

    sent: int = 0
    """Pings of this round's present size."""

    round_trip_s: float | None = None
    answered_at: float = -inf
    """When an answer last came, to a Ping of any size."""

    failed_at: float = -inf
    """When a round of Pings to it ended without an answer; the next round may be under way."""

    valid_at: float = -inf
    """When one of full size was answered last."""

    triggered: bool = False
    """The peer's Ping came from there: it goes first (RFC 8445, section 7.3.1.4)."""

    seen_as: Endpoint | None = None
    """Where the peer sees us, on this pair."""

    @property
    def has_failed(self) -> bool:
        """Whether a whole round came to nothing, and no answer since."""
        return self.failed_at > self.answered_at

    @property
    def is_unanswered(self) -> bool:
        """Whether this round's first three Pings, the youngest of them a second old, weren't answered."""
        return self.state is PairState.CHECKING and self.sent > len(EARLY_S)


class Checklist:
    """The pairs of one peer. Pure: `draw` gives random bytes, and the caller has the clock."""

    def __init__(self, *, full_body_bytes: int, draw: Callable[[int], bytes]) -> None:
        """`full_body_bytes`: of a Ping that makes the longest datagram (`sealed.full_size_body_bytes`)."""
        self.full_body_bytes = full_body_bytes
        self._draw = draw
        self.pairs: dict[Endpoint, Pair] = {}
        self._rounds = 0
        self.round_at = -inf
        """When the last round began."""
        self._paced_until = -inf
        self._outstanding: dict[bytes, tuple[Endpoint, float, bool]] = {}
        self.lost = 0
        """Answers that came too late, from elsewhere, or for nothing that was asked."""

    # What is checked ----------------------------------------------------------------------------------------

    def set_remote(self, candidates: Iterable[Candidate], now: float) -> bool:
        """The peer's candidates from now on. Whether there is one that wasn't known.

        Pairs that have an answer stay, whatever the list says.
        """
        told = {one.endpoint: one for one in candidates}
        new = False
        for endpoint, pair in list(self.pairs.items()):
            if endpoint not in told and pair.type != "prflx" and now - pair.answered_at > ANSWER_S:
                del self.pairs[endpoint]
        for endpoint, one in told.items():
            known = self.pairs.get(endpoint)
            if known is None:
                self._add(Pair(endpoint, one.type, one.priority, one.method))
                new = True
            else:
                known.type, known.priority, known.method = one.type, one.priority, one.method
        return new

    def meet(self, remote: Endpoint, now: float, *, method: str, kind: CandidateType = "prflx") -> Pair:
        """The pair with `remote`, where the peer was met, or will be; new, if nobody told of it."""
        pair = self.pairs.get(remote)
        if pair is None:
            one = make(kind, remote, found_at=now, method=method)
            pair = Pair(remote, kind, one.priority, method)
            self._add(pair)
        return pair

    def predict(self, remotes: Sequence[Endpoint], now: float, *, down: bool = False) -> None:
        """Where the peer's NAT will likely send it from next; earlier predictions are forgotten.

        `down`: from the last to the first. Of two NATs that count, each Ping to a port of the other's list
        takes one more port of one's own, so in step both would be late by the same for ever. With one end
        going up and the other one down, a Ping of each meets the other's mapping somewhere, if what the
        counters are ahead by adds up to an even number; with one port left out, an odd one.
        """
        for endpoint, pair in list(self.pairs.items()):
            if pair.method == PREDICTED and pair.answered_at == -inf:
                del self.pairs[endpoint]
        checking = self.checking
        if down:
            remotes = remotes[-1 - self._rounds % 2 :: -1]
        for remote in remotes:
            pair = self.meet(remote, now, method=PREDICTED)
            if checking:  # its part of the round; it is of no use to the next one
                self._begin(pair, now)

    def known(self, endpoint: Endpoint) -> Endpoint:
        """`endpoint` as the pairs have it: WireGuard and peers name a link-local address without its zone, or
        with a number for it."""
        if endpoint.address.is_link_local and endpoint not in self.pairs:
            plain = endpoint.without_scope()
            return next((one for one in self.pairs if one.without_scope() == plain), endpoint)
        return endpoint

    def start_round(self, now: float, *, kernel: Endpoint | None = None) -> None:
        """Ping every pair, those of the highest priority first. Where the peer was once met, and isn't any
        more, is forgotten, unless WireGuard still sends there (`kernel`)."""
        if kernel is not None:
            self.meet(kernel, now, method="WireGuard")  # the peer may have taken it off its list
        for endpoint, pair in list(self.pairs.items()):
            met = pair.type == "prflx" and pair.method != PREDICTED
            stale = pair.state is PairState.FAILED and pair.sent and now - pair.answered_at > KEEP_S
            if met and stale and endpoint != kernel:
                del self.pairs[endpoint]
        self.round_at = now
        self._rounds += 1
        for pair in self.pairs.values():
            self._begin(pair, now)

    def trigger(self, pair: Pair, now: float) -> None:
        """Ping this pair next, unless that is under way or was answered just now."""
        if pair.state in (PairState.CHECKING, PairState.ANSWERED) and pair.next_at < inf:
            pair.triggered = True
            return
        if pair.state is PairState.VALID and now - pair.valid_at < ANSWER_S / 2:
            return
        self._begin(pair, now)
        pair.triggered = True

    def _begin(self, pair: Pair, now: float) -> None:
        pair.state, pair.sent, pair.next_at, pair.triggered = PairState.WAITING, 0, now, False

    def _add(self, pair: Pair) -> None:
        """Of what was met, the one that answered least lately makes room, not what was told."""
        met = [one for one in self.pairs.values() if one.type == "prflx" and one.method != PREDICTED]
        if pair.type == "prflx" and pair.method != PREDICTED and len(met) >= MAX_MET:
            del self.pairs[min(met, key=lambda one: one.answered_at).remote]
        elif len(self.pairs) >= MAX_PAIRS:
            worst = min(self.pairs.values(), key=lambda one: (one.answered_at, one.priority))
            del self.pairs[worst.remote]
        self.pairs[pair.remote] = pair

    # Pings --------------------------------------------------------------------------------------------------

    @property
    def checking(self) -> bool:
        """Whether a round, or a check of one pair, is under way."""
        return any(pair.next_at < inf for pair in self.pairs.values())

    @property
    def next_at(self) -> float:
        """When `due` has something next; inf: never, as things are."""
        first = min((pair.next_at for pair in self.pairs.values()), default=inf)
        return max(first, self._paced_until)

    def due(self, now: float) -> list[Probe]:
        """The Pings of the round to be sent now: at most one, since they are paced."""
        if now < self._paced_until:
            return []
        ready = [pair for pair in self.pairs.values() if pair.next_at <= now]
        # What was predicted goes first: each Ping elsewhere has two counting NATs give out one more port.
        for pair in sorted(
            ready, key=lambda one: (not one.triggered, one.sent, one.method != PREDICTED, -one.priority)
        ):
            probe = self._next_probe(pair, now)
            if probe is not None:
                self._paced_until = now + PACE_S
                return [probe]
        return []

    def probe(self, remote: Endpoint, now: float) -> Probe:
        """A Ping out of turn, to see whether a path still carries; neither paced nor repeated."""
        return self._probe(remote, now, full=False)

    def _next_probe(self, pair: Pair, now: float) -> Probe | None:
        full = pair.state is PairState.ANSWERED
        retries = FULL_RETRIES_S if full else RETRIES_S
        if pair.sent > len(retries):
            pair.state = PairState.TOO_SMALL if full else PairState.FAILED
            pair.failed_at = pair.failed_at if full else now
            pair.next_at, pair.triggered = inf, False
            return None
        pair.next_at = now + (retries[pair.sent] if pair.sent < len(retries) else LAST_WAIT_S)
        pair.sent += 1
        pair.triggered = False
        if not full:
            pair.state = PairState.CHECKING
        return self._probe(pair.remote, now, full=full)

    def _probe(self, remote: Endpoint, now: float, *, full: bool) -> Probe:
        outstanding = self._outstanding
        while outstanding and (
            len(outstanding) >= MAX_OUTSTANDING
            or now - outstanding[oldest := next(iter(outstanding))][1] > ANSWER_S
        ):
            del outstanding[oldest]
        txid = self._draw(TXID_BYTES)
        self._outstanding[txid] = (remote, now, full)
        return Probe(remote, Ping(txid, self.full_body_bytes) if full else Ping(txid))

    # Answers ------------------------------------------------------------------------------------------------

    def answered(self, pong: Pong, source: Endpoint, now: float) -> Pair | None:
        """A Pong came from `source`. The pair of which it says something; None: it says nothing."""
        asked = self._outstanding.pop(pong.txid, None)
        if asked is None or asked[0] != source or now - asked[1] > ANSWER_S:
            self.lost += 1
            return None
        _, sent_at, full = asked
        pair = self.pairs.get(source)
        if pair is None:
            self.lost += 1
            return None
        pair.round_trip_s = now - sent_at
        pair.answered_at = now
        pair.seen_as = pong.seen
        if full and pong.body_bytes >= self.full_body_bytes:
            pair.valid_at = now
            pair.state, pair.next_at, pair.triggered = PairState.VALID, inf, False
        elif pair.state in (PairState.WAITING, PairState.CHECKING, PairState.FAILED):
            pair.state, pair.sent, pair.next_at = PairState.ANSWERED, 0, now
        return pair

    def valid(self, now: float, within_s: float = ANSWER_S) -> list[Pair]:
        """Pairs that carried full-size packets both ways within so long, the best first."""
        found = [pair for pair in self.pairs.values() if now - pair.valid_at <= within_s]
        return sorted(found, key=lambda one: -one.priority)

    def mapped_endpoint(self) -> Endpoint | None:
        """Where the peer's NAT has its one mapping, or without a NAT its own address; IPv4 alone."""
        told = [
            pair
            for pair in self.pairs.values()
            if pair.type in ("srflx", "host") and pair.remote.address.version == 4
        ]
        best = max(told, key=lambda one: (one.type == "srflx", one.priority), default=None)
        return best.remote if best is not None else None

    def may_get_better(self, than: Pair) -> bool:
        """Whether a pair of higher priority is still being checked."""
        return any(
            pair.next_at < inf and pair.priority > than.priority and pair is not than
            for pair in self.pairs.values()
        )

    def invalidate(self) -> None:
        """The own addresses changed: what was found out was found out from others."""
        for pair in self.pairs.values():
            pair.valid_at = -inf

    def why_not(self) -> str:
        """Why no pair is valid, in words."""
        pairs = self.pairs.values()
        if not pairs:
            return "the peer has told no address"
        if any(pair.state is PairState.TOO_SMALL for pair in pairs):
            return "small Pings were answered and full-size ones weren't: the path's MTU is too small"
        return f"none of the peer's {len(pairs)} addresses answered"
