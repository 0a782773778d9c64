"""One connection to a relay, decided: who the relay is, what may flow, whether it lives, and what it says.

    AgentHandshake   Register -> Challenge -> Proof -> Welcome          who it is, whether we are let in
    LinkState        Ping -> Pong, or Data to our own key               whether it lives
    the rest         Error, Health, Drain, PeerGone, Ping, RelayProbe   what it says

Pure: frames and `now` in, a `Step` out. Connected is a relay that has proved itself (Welcome), or, where
relays that prove nothing are allowed, one whose first echo has come back: no relay of part 1 acknowledges a
Register.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

from relayd.agent.link_settings import LinkSettings
from relayd.agent.link_state import LinkState, Moved
from relayd.errors import RemoteProtocolError
from relayd.wire.agent_handshake import AgentHandshake, State
from relayd.wire.frames import (
    BIMODAL_HINT,
    DATA,
    ERROR,
    KEEPALIVE,
    RELAY_PROBE,
    RELAY_PROBE_TOKEN_BYTES,
    decode_error_untrusted,
    encode_relay_probe,
)
from relayd.wire.identity import BEFORE_PROOF, HANDSHAKE, Refused, Unproved, Welcomed
from relayd.wire.identity_frames import (
    DRAIN,
    HEALTH,
    PEER_GONE,
    PING,
    PONG,
    PeerGone,
    decode_drain_untrusted,
    decode_health_untrusted,
    decode_peer_gone_untrusted,
    decode_ping_untrusted,
    encode_pong,
)

MAX_ANSWERS_S = 50
"""Pings and RelayProbes answered in a second. A relay has reason for one in several seconds; past this it
would have us fill our own queue."""


@dataclass(frozen=True, slots=True)
class Connected:
    """Frames may flow. `proved` None: the relay proves nothing, and that is allowed."""

    proved: Welcomed | None


@dataclass(frozen=True, slots=True)
class NotProved:
    """The time for proving is over, and the relay hasn't; that is allowed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Complaint:
    """The relay's Error."""

    text: str


@dataclass(frozen=True, slots=True)
class Health:
    """What the relay finds wrong between it and us, in its words; empty: healthy again."""

    text: str


@dataclass(frozen=True, slots=True)
class Draining:
    """The relay asks to be left within `seconds`, for which it goes on forwarding."""

    seconds: int


Event: TypeAlias = Connected | NotProved | Complaint | Health | Draining | PeerGone


@dataclass(frozen=True, slots=True)
class Step:
    """What comes of a frame, or of time alone: send `frames`, tell of `events`, then end if `end` says
    why."""

    frames: tuple[bytes, ...] = ()
    events: tuple[Event, ...] = ()
    end: str = ""


NOTHING = Step()


class RelaySession:
    """The decisions of one connection. Times are seconds of one clock that nobody sets."""

    def __init__(self, handshake: AgentHandshake, state: LinkState, now: float) -> None:
        """`handshake` and `state` are new, of this connection alone."""
        self._handshake, self._state = handshake, state
        self._decided = False
        """Whether the handshake has its outcome, and wants none but its own frames any more."""
        self._second, self._answers = int(now), 0
        self.connected = False
        self.proved: Welcomed | None = None
        self.health = ""
        self.received: Counter[str] = Counter()
        """Frames that are neither Data of others nor wrong, by what they are."""
        self.dropped: Counter[str] = Counter()
        """Frames that are of no use, by why."""
        if handshake.may_carry:
            state.ask(now, pings=False)

    def resume(self, proved: Welcomed | None, now: float) -> None:
        """Go on with a connection that an earlier process has brought so far: connected."""
        self._handshake.resume(proved.relay_key if proved is not None else None)
        self._decided = self.connected = True
        self.proved = proved
        keepalive_s = proved.welcome.keepalive_s if proved is not None else None
        self._state.ask(now, pings=proved is not None, keepalive_s=keepalive_s)
        self._state.last_sign_at = now

    def use(self, settings: LinkSettings, now: float) -> None:
        """Be as patient from now on as `settings` say; what the relay wishes counts for more."""
        wished_s = self.proved.welcome.keepalive_s if self.proved is not None else None
        keepalive_s = wished_s if wished_s is not None else settings.keepalive_s
        self._state.change(now, keepalive_s=keepalive_s, probe_s=settings.probe_s)

    def hello(self) -> bytes:
        """The first frame of the connection: Register."""
        return self._handshake.hello()

    @property
    def may_carry(self) -> bool:
        """Whether Data of others is believed now."""
        return self._handshake.may_carry

    @property
    def next_at(self) -> float:
        """When `due` has something to say again, at the latest."""
        return min(self._handshake.next_at, self._state.next_at)

    def due(self, now: float, moved: Moved) -> Step:
        """What time alone decides."""
        handshake = self._handshake.due(now)
        match handshake.outcome:
            case Refused(reason=reason):
                return Step(end=reason)
            case Unproved(reason=reason):
                self._decided = True
                return Step(events=(NotProved(reason),))
        due = self._state.due(now, moved)
        return Step(frames=due.frames, end=due.dead)

    def useful_for_s(self) -> float:
        """Seconds from Register to the last sign of life; 0: there was none."""
        return self._state.useful_for_s() if self.connected else 0.0

    @property
    def round_trip_s(self) -> float | None:
        """Of the last answer; None: there was none yet."""
        return self._state.round_trip_s

    def on_frame(self, kind: int, body: bytes, now: float) -> Step:
        """The next frame, other than Data of others."""
        if not self._decided or kind in HANDSHAKE:
            step = self._shake_hands(kind, body, now)
            if step is not None:
                return step
        match kind:
            case _ if kind == ERROR:
                self.received["error"] += 1
                return Step(events=(Complaint(decode_error_untrusted(body)),))
            case _ if kind == RELAY_PROBE:
                return self._answer_probe(body, now)
            case _ if kind in (PING, PONG, PEER_GONE, DRAIN, HEALTH):
                if self.proved is None:  # only for those who completed part 2: anybody could say it else
                    self.received["unknown"] += 1
                    return NOTHING
                try:
                    return self._after_proof(kind, body, now)
                except RemoteProtocolError:
                    self.dropped["malformed"] += 1
            case _ if kind == DATA:
                self.dropped["short_data"] += 1
            case _ if kind == KEEPALIVE:
                self.received["keepalive"] += 1
            case _ if kind == BIMODAL_HINT:
                self.received["bimodal_hint"] += 1
            case _:
                self.received["unknown"] += 1
        return NOTHING

    def on_own_data(self, payload: bytes, now: float) -> Step:
        """Data from our own key: an echo, or somebody's idea of one. It never reaches WireGuard."""
        if not self._state.echoed(payload, now):
            self.dropped["own_key"] += 1
            return NOTHING
        self.received["echo"] += 1
        # With a Challenge answered, it is the Welcome that counts.
        if self.connected or self._handshake.state is not State.CHALLENGE:
            return NOTHING
        self.connected = True
        return Step(events=(Connected(None),))

    def _shake_hands(self, kind: int, body: bytes, now: float) -> Step | None:
        """What the handshake makes of a frame; None: nothing, it is for others to take."""
        taken = self._handshake.on_frame(kind, body, now)
        frames = (taken.send,) if taken.send else ()
        match taken.outcome:
            case Refused(reason=reason):
                return Step(frames=frames, end=reason)
            case Unproved(reason=reason):
                self._decided = True
                return Step(frames=frames, events=(NotProved(reason),))
            case Welcomed() as welcomed:
                self._decided = self.connected = True
                self.proved = welcomed
                self._state.ask(now, pings=True, keepalive_s=welcomed.welcome.keepalive_s)
                self._state.last_sign_at = now
                return Step(frames=frames, events=(Connected(welcomed),))
        if taken.dropped:
            self.dropped[BEFORE_PROOF] += 1
            return NOTHING
        return Step(frames=frames) if kind in HANDSHAKE else None

    def _after_proof(self, kind: int, body: bytes, now: float) -> Step:
        """Raises RemoteProtocolError for a frame of the wrong size."""
        match kind:
            case _ if kind == PING:
                token = decode_ping_untrusted(body)
                return self._answer(encode_pong(token), "ping", now)
            case _ if kind == PONG:
                if not self._state.ponged(decode_ping_untrusted(body), now):
                    self.dropped["stray_pong"] += 1
                    return NOTHING
                self.received["pong"] += 1
                return NOTHING
            case _ if kind == PEER_GONE:
                self.received["peer_gone"] += 1
                return Step(events=(decode_peer_gone_untrusted(body),))
            case _ if kind == DRAIN:
                self.received["drain"] += 1
                return Step(events=(Draining(decode_drain_untrusted(body)),))
        self.received["health"] += 1
        text = decode_health_untrusted(body)
        if text == self.health:
            return NOTHING
        self.health = text
        return Step(events=(Health(text),))

    def _answer_probe(self, body: bytes, now: float) -> Step:
        """The relay asks whether we live (it has a second Register for our key): give its token back."""
        if len(body) != RELAY_PROBE_TOKEN_BYTES:
            self.dropped["malformed"] += 1
            return NOTHING
        return self._answer(encode_relay_probe(body), "relay_probe", now)

    def _answer(self, frame: bytes, what: str, now: float) -> Step:
        if int(now) != self._second:
            self._second, self._answers = int(now), 0
        self._answers += 1
        if self._answers > MAX_ANSWERS_S:
            self.dropped[f"{what}_flood"] += 1
            return NOTHING
        self.received[what] += 1
        return Step(frames=(frame,))
