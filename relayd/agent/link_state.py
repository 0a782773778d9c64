"""Whether the relay at the other end of a connection lives: when to ask it, and when to give it up.

Pure: values and `now` in, values out. `relay_session` says which question the relay understands,
`relay_connection` counts the bytes, `relay_link` owns the clock.

    Ping -> Pong                     a relay that completed part 2 of the protocol
    Data to our own key -> the same  any other: the only sign of life that it gives, which shows, too, that
                                     it has us registered

    sent -> back within PATIENCE_OF_INTERVAL * probe_s       wait for the next interval
         -> not back: one more at once -> not back either    dead

Idle, a relay that fell silent is found within probe_s * (1 + 2 * PATIENCE_OF_INTERVAL): 12 s of 8. Busy, it
is asked as soon as nothing has come from it for LOOK_S while bytes were sent to it, and found within 7 s.

On a link that carries more than it can, questions wait in line with everything else, in our outbox or in the
relay's: while bytes keep moving (in, or out of a full outbox, which takes a relay that acknowledges them),
the connection is given MISSED_WHILE_MOVING of them, a minute's worth. To end it for being busy would help
nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd.keys import PublicKey
from relayd.wire.frames import KEEPALIVE_FRAME, encode_data
from relayd.wire.identity_frames import encode_ping

ECHO_MAGIC = b"RLYecho\x01"
"""Begins the payload of an echo. WireGuard's messages begin with 1 to 4 and three zero bytes, sealed
messages with other bytes after `RLY`: neither can be taken for an echo."""

NONCE_BYTES = 4
SEQUENCE_BYTES = 4
ECHO_BYTES = len(ECHO_MAGIC) + NONCE_BYTES + SEQUENCE_BYTES

PROBE_S = 8.0
"""Between two questions on an idle connection. With the patience below that makes 12 s, where 15 are
promised."""

PATIENCE_OF_INTERVAL = 0.25
"""How long an answer may take, as a part of the interval between two questions: 2 s of 8."""

LOOK_S = 1.5
"""Between two looks at whether what is sent gets anything back."""

MISSED_WHILE_SILENT = 2
MISSED_WHILE_MOVING = 30


@dataclass(frozen=True, slots=True)
class Moved:
    """What a connection has carried so far, in bytes."""

    sent: int = 0
    received: int = 0
    drained: int = 0
    """What the full socket took after a wait: a relay that acknowledges takes it."""


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done now."""

    frames: tuple[bytes, ...] = ()
    """To send, in this order."""

    dead: str = ""
    """Why the connection is to be given up; empty: it isn't."""


class LinkState:
    """A connection from its Register on. Times are seconds of one clock that nobody sets (monotonic)."""

    def __init__(
        self, key: PublicKey, nonce: bytes, now: float, *, keepalive_s: float, probe_s: float
    ) -> None:
        """Nothing is asked before `ask`. `nonce` (NONCE_BYTES) differs for each connection: a relay delivers
        what an earlier connection of ours sent to itself to the one that took its place, and that says
        nothing about this one.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        self._key, self._nonce = key, nonce
        self._keepalive_s, self._probe_s = keepalive_s, probe_s
        self._registered_at = now
        self._keepalive_at = now + keepalive_s
        self._asking = self._pings = False
        self._probe_at = self._look_at = now
        self._answer_by: float | None = None
        self._sequence = 0
        self._sent: dict[int, float] = {}
        self._missed = self._missed_in_silence = 0
        self._asked = self._seen = Moved()
        self.last_sign_at: float | None = None
        """When the last answer came; None: none did yet."""
        self.round_trip_s: float | None = None
        """Of the last answer."""

    @property
    def alive(self) -> bool:
        """Whether any answer came: the relay reads, and has us registered."""
        return self.last_sign_at is not None

    @property
    def next_at(self) -> float:
        """When `due` has something to say again, at the latest."""
        if not self._asking:
            return self._keepalive_at
        probe_at = self._probe_at if self._answer_by is None else self._answer_by
        return min(self._keepalive_at, probe_at, self._look_at)

    def ask(self, now: float, *, pings: bool, keepalive_s: float | None = None) -> None:
        """Ask from now on, with Ping or by Data to our own key. `keepalive_s`: what the relay wishes.

        What was asked the other way before counts no more.
        """
        self._asking, self._pings = True, pings
        if keepalive_s is not None:
            self._keepalive_s = keepalive_s
            self._keepalive_at = min(self._keepalive_at, now + keepalive_s)
        self._sent.clear()
        self._answer_by = None
        self._missed = self._missed_in_silence = 0
        self._probe_at, self._look_at = now, now + LOOK_S

    def change(self, now: float, *, keepalive_s: float, probe_s: float) -> None:
        """Be this patient from now on; a question that waits for its answer keeps its own time."""
        self._keepalive_s, self._probe_s = keepalive_s, probe_s
        self._keepalive_at = min(self._keepalive_at, now + keepalive_s)
        self._probe_at = min(self._probe_at, now + probe_s)

    def due(self, now: float, moved: Moved) -> Due:
        """What to do at `now`."""
        frames: list[bytes] = []
        if self._asking:
            if self._answer_by is not None and now >= self._answer_by:
                self._missed += 1
                is_silent = (moved.received, moved.drained) == (self._asked.received, self._asked.drained)
                self._missed_in_silence = self._missed_in_silence + 1 if is_silent else 0
                if self._missed_in_silence >= MISSED_WHILE_SILENT or self._missed >= MISSED_WHILE_MOVING:
                    what = "pings" if self._pings else "echoes"
                    return Due(dead=f"{self._missed} {what} unanswered")
                frames.append(self._question(now, moved))
            elif self._answer_by is None and (now >= self._probe_at or self._nothing_came_back(now, moved)):
                frames.append(self._question(now, moved))
            if now >= self._look_at:
                self._seen, self._look_at = moved, now + LOOK_S
        if now >= self._keepalive_at:
            self._keepalive_at = now + self._keepalive_s
            frames.append(KEEPALIVE_FRAME)
        return Due(tuple(frames))

    def echoed(self, payload: bytes, now: float) -> bool:
        """Whether a payload that came back from our own key is an echo of this connection's."""
        if self._pings or len(payload) != ECHO_BYTES or not payload.startswith(ECHO_MAGIC):
            return False
        return self._answered(payload[len(ECHO_MAGIC) :], now)

    def ponged(self, token: bytes, now: float) -> bool:
        """Whether the token of a Pong is that of a Ping of this connection's."""
        return self._pings and self._answered(token, now)

    def useful_for_s(self) -> float:
        """From Register to the last sign of life, in seconds; 0 without one. What came after was no use."""
        return 0.0 if self.last_sign_at is None else self.last_sign_at - self._registered_at

    def _nothing_came_back(self, now: float, moved: Moved) -> bool:
        seen = self._seen
        return now >= self._look_at and moved.sent > seen.sent and moved.received == seen.received

    def _answered(self, token: bytes, now: float) -> bool:
        if not token.startswith(self._nonce):
            return False
        sequence = int.from_bytes(token[NONCE_BYTES:], "big")
        sent_at = self._sent.get(sequence)
        if sent_at is None:
            return False
        self._sent = {later: at for later, at in self._sent.items() if later > sequence}
        self._answer_by = None
        self._missed = self._missed_in_silence = 0
        self._probe_at = sent_at + self._probe_s
        self.round_trip_s = now - sent_at
        self.last_sign_at = now
        return True

    def _question(self, now: float, moved: Moved) -> bytes:
        self._asked = moved
        self._sequence += 1
        self._sent[self._sequence] = now
        self._answer_by = now + self._probe_s * PATIENCE_OF_INTERVAL
        token = self._nonce + self._sequence.to_bytes(SEQUENCE_BYTES, "big")
        return encode_ping(token) if self._pings else encode_data(self._key, ECHO_MAGIC + token)
