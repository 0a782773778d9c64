"""Two agents that get to know each other through the relay, and stay acquainted.

    nothing heard            Candidates, after 1, 2, 4 ... 120 s
    a word without our session in it (a HINT)     Candidates in return, with the peer's session in it
    a word with it           it counts: its features say what the peer can do
    a Ping through the relay, answered            the peer talks

What is to be said is returned; through the relay, all of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from math import inf

from relayd.paths.candidates import Candidate, is_usable, to_wire
from relayd.paths.checklist import ANSWER_S
from relayd.paths.nat_class import Prediction
from relayd.wire.sealed_messages import (
    TXID_BYTES,
    Candidates,
    Message,
    Ping,
    Pong,
    PortPrediction,
)
from relayd.wire.sealed_session import SealedSession

SHARES_PORT = "shares-port"
"""The feature of an agent that sends and hears Pings on WireGuard's own port."""

BIRTHDAY = "birthday"
"""The feature of an agent that looks for a peer's ports: it is to, and its own NAT has one mapping."""

CALL_FIRST_S, CALL_CAP_S = 1.0, 120.0
"""Between two words to a peer whose agent doesn't answer; doubled each time."""

TELL_GAP_S = 1.0
"""Between two lists that answer a HINT: somebody may send us recorded ones all day."""

TALK_S = 10.0
MIN_ASKED = 3
"""An agent that left so many questions unanswered, over so long, doesn't talk (any more)."""

PING_RELAYED_S, PING_DIRECT_S = 30.0, 120.0
"""Between Pings through the relay, by which way the peer's packets go: for the round trip, and to see
whether the peer's agent is there."""

PING_DOUBT_S = 0.5
"""... when a direct path is in doubt: whether the relay would do better. Also the first wait for an
answer."""

MAX_ASKED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What is the same for all peers: this end."""

    candidates: tuple[Candidate, ...] = ()
    shares_port: bool = True
    hold_s: float = 10.0
    """Between two datagrams that keep a NAT's mapping alive, or a firewall open (`keepalive.hold_s`)."""

    own: frozenset[IPv4Address | IPv6Address] = frozenset()
    """All addresses of this host, those in the tunnel too: nobody may send our Pings there."""

    links: tuple[str, ...] = ()
    """Interfaces with a link-local address."""

    full_body_bytes: int = 1371
    """Of a Ping as long as WireGuard's longest datagram."""

    prediction: Prediction | None = None
    """Behind a symmetric NAT whose ports follow each other."""

    symmetric: bool = False
    """Whether the NAT maps each destination anew, over IPv4."""

    birthday: bool = False
    """Whether the birthday method is wanted (`birthday`)."""

    more_features: tuple[str, ...] = ()

    def may_ping(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether a peer's mere word may send our Pings there: not to this host, nor to a group."""
        return is_usable(address) and address not in self.own

    def is_like(self, other: Local) -> bool:
        """Whether all is the same: which candidate is the freshest is news to nobody."""
        mine, others = frozenset(self.candidates), frozenset(other.candidates)
        return mine == others and replace(self, candidates=()) == replace(other, candidates=())

    @property
    def features(self) -> tuple[str, ...]:
        """What the peer is told that we can do."""
        if not self.shares_port:
            return self.more_features
        more = (BIRTHDAY,) if self.birthday and not self.symmetric else ()
        return (*self.more_features, *more, SHARES_PORT)


class Acquaintance:
    """One peer's agent, as far as it is known."""

    def __init__(self, session: bytes, draw: Callable[[int], bytes]) -> None:
        """`session`: this process's. `draw` gives random bytes."""
        self.session = SealedSession(session)
        self.features: frozenset[str] | None = None
        """What the peer can do, by its own word; None: it hasn't said, or not to this life of ours."""
        self.connected = False
        """Whether the relay is there."""
        self.heard_at = -inf
        """When anything of the peer's was heard, by whichever way."""
        self.answered_at = -inf
        """When a Ping through the relay was answered last."""
        self.round_trip_s: float | None = None
        """Of that Ping."""
        self.asked = 0
        """Questions that the peer left unanswered since it last answered one, by whichever way they went."""
        self._asked_since = inf
        self._ever = False
        self._draw = draw
        self._pings: OrderedDict[bytes, float] = OrderedDict()
        self._pinged_at = -inf
        self._unanswered = 0
        """Pings through the relay since one was answered."""
        self._call_at, self._call_wait_s = -inf, CALL_FIRST_S
        self._told_at = -inf
        self._told: Local | None = None
        """What the peer was told last."""

    # Who is there -------------------------------------------------------------------------------------------

    def relay_is(self, connected: bool, now: float) -> None:
        """The link to the relay came or went."""
        if connected and not self.connected:
            self._call_at, self._call_wait_s = now, CALL_FIRST_S
        self.connected = connected

    def note_asked(self, now: float) -> None:
        """The peer was asked something, by whichever way."""
        self.asked += 1
        self._asked_since = min(self._asked_since, now)

    def note_answered(self) -> None:
        """It answered."""
        self.asked, self._asked_since, self._ever = 0, inf, True

    def talks(self, now: float) -> bool:
        """Whether the peer's agent is there."""
        return self._ever and not (self.asked >= MIN_ASKED and now - self._asked_since >= TALK_S)

    # What is told -------------------------------------------------------------------------------------------

    def introduce(self, local: Local, now: float) -> list[Message]:
        """What is due to an agent that hasn't answered yet, or that doesn't know what is true of us now."""
        if not self.connected:
            return []
        if self.talks(now) and self.features is not None:
            self._call_at, self._call_wait_s = inf, CALL_FIRST_S
            return self.tell(local, Candidates, now) if self._is_news(local) else []
        if self._call_at == inf:  # it talked, and doesn't any more
            self._call_at = now + self._call_wait_s
        if now < self._call_at:
            return []
        self._call_at = now + self._call_wait_s
        self._call_wait_s = min(CALL_CAP_S, self._call_wait_s * 2)
        # With nobody's session in it, it is a HINT, which is answered: that is what is wanted.
        return self.tell(local, Candidates, now, yours=b"")

    def _is_news(self, local: Local) -> bool:
        """Whether the peer was told something else."""
        told = self._told
        if told is None or told is local:  # as nearly always: this is asked at each act
            return False
        if told.features != local.features or set(to_wire(told.candidates)) != set(to_wire(local.candidates)):
            return True
        self._told = local
        return False

    def answer_hint(self, local: Local, now: float, *, new_life: bool) -> list[Message]:
        """The peer doesn't know our session: our list tells it."""
        if not self.connected or (now - self._told_at < TELL_GAP_S and not new_life):
            return []
        return self.tell(local, Candidates, now)

    def tell(
        self, local: Local, kind: type[Candidates], now: float, *, yours: bytes | None = None
    ) -> list[Message]:
        """Our candidates, and before them the prediction for a NAT that needs one. `yours`: the session of
        the peer's that they name, unless it is the one heard last."""
        yours = self.session.yours if yours is None else yours
        self._told_at, self._told = now, local
        out = self.tell_prediction(local, yours)
        list_ = kind(
            generation=self.session.next_generation(),
            session=self.session.own,
            yours=yours,
            candidates=to_wire(local.candidates),
            features=local.features,
        )
        return [*out, list_]

    def tell_prediction(self, local: Local, yours: bytes | None = None) -> list[Message]:
        """Where our NAT will likely send us from next, if that can be said. `yours`: as of `tell`."""
        prediction = local.prediction
        if prediction is None:
            return []
        return [
            PortPrediction(
                generation=self.session.next_generation(),
                session=self.session.own,
                yours=self.session.yours if yours is None else yours,
                address=str(prediction.first.address),
                base=prediction.first.port,
                step=prediction.step,
                count=prediction.count,
            )
        ]

    # Pings through the relay --------------------------------------------------------------------------------

    def ping_at(self, *, direct: bool, doubtful_at: float) -> float:
        """When the next one is due. `direct`: how the peer's packets go. `doubtful_at`: from when on that
        way is in doubt; inf: it isn't."""
        if not self.connected or self.heard_at == -inf:
            return inf
        wait_s = PING_DIRECT_S if direct else PING_RELAYED_S
        if (self.asked and not direct) or not self._ever:
            wait_s = min(wait_s, PING_DOUBT_S * 2.0 ** min(self.asked, 10))
        usual = self._pinged_at + wait_s
        # Often at first: it is what a dead path waits for. Then less and less: nobody may be there any more.
        doubt_s = PING_DOUBT_S * 2.0 ** max(0, min(self._unanswered - MAX_ASKED, 10))
        return min(usual, max(doubtful_at, self._pinged_at + doubt_s))

    def ping(self, now: float) -> Ping:
        """One through the relay."""
        txid = self._draw(TXID_BYTES)
        self._pings[txid] = self._pinged_at = now
        self._unanswered += 1
        if len(self._pings) > MAX_ASKED:
            self._pings.popitem(last=False)
        self.note_asked(now)
        return Ping(txid)

    def pong(self, pong: Pong, now: float) -> bool:
        """An answer came through the relay. Whether it was to one of ours, and in time."""
        asked_at = self._pings.pop(pong.txid, None)
        if asked_at is None or now - asked_at > ANSWER_S:
            return False
        self.answered_at, self.round_trip_s = now, now - asked_at
        self._unanswered = 0
        self.note_answered()
        return True

    @property
    def call_at(self) -> float:
        """When `introduce` has something next; inf: never, as things are."""
        return self._call_at if self.connected else inf
