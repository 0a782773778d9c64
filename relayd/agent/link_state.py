"""One connection to a relay, decided: when to send what, whether the relay lives, how long it was of use.

Pure: values and `now` in, values out. `relay_link` owns the socket and the clock.

The sign of life is a Data frame to our own key, which every relay sends back (PROTOCOL.md, part 1). It
also measures the round trip, and shows that the relay has us registered under our key:

    sent -> back within PATIENCE_OF_INTERVAL * echo_s        wait for the next interval
         -> not back: one more at once -> not back either    dead

So a silent relay is found out within echo_s * 1.5, and a single lost echo costs nothing. On a link that
carries more than it can, echoes are dropped as all frames are, in our outbox or in the relay's: while
bytes keep moving (in, or out of a full outbox, which takes a relay that acknowledges them), the connection
is given MISSED_WHILE_MOVING echoes, a minute's worth. To end it for being busy would help nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd.keys import PublicKey
from relayd.wire.frames import KEEPALIVE_FRAME, encode_data

ECHO_MAGIC = b"RLYecho\x01"
"""Begins the payload of an echo. WireGuard's messages begin with 1 to 4 and three zero bytes, sealed
messages with other bytes after `RLY`: neither can be taken for an echo."""

NONCE_BYTES = 4
SEQUENCE_BYTES = 4
ECHO_BYTES = len(ECHO_MAGIC) + NONCE_BYTES + SEQUENCE_BYTES

PATIENCE_OF_INTERVAL = 0.25
"""How long an echo may take, as a part of the interval between two: 2.5 s of 10."""

MISSED_WHILE_SILENT = 2
MISSED_WHILE_MOVING = 24


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done now."""

    frames: tuple[bytes, ...] = ()
    """To send, in this order."""

    dead: str = ""
    """Why the connection is to be given up; empty: it isn't."""


class LinkState:
    """A connection from its Register on. Times are seconds of one clock, whichever the caller uses."""

    def __init__(
        self, key: PublicKey, nonce: bytes, now: float, *, keepalive_s: float, echo_s: float
    ) -> None:
        """`nonce` (NONCE_BYTES) differs for each connection: a relay delivers what an earlier connection of
        ours sent to itself to the one that took its place, and that says nothing about this one.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        self._key, self._nonce = key, nonce
        self._keepalive_s, self._echo_s = keepalive_s, echo_s
        self._registered_at = now
        self._keepalive_at = now + keepalive_s
        self._echo_at = now
        self._answer_by: float | None = None
        self._sequence = 0
        self._sent: dict[int, float] = {}
        self._missed = self._missed_in_silence = 0
        self._moved = 0
        self.last_sign_at: float | None = None
        """When the last echo came back; None: none did yet."""
        self.round_trip_s: float | None = None
        """Of the last echo that came back."""

    @property
    def alive(self) -> bool:
        """Whether any echo came back: the relay reads, and has us registered."""
        return self.last_sign_at is not None

    @property
    def next_at(self) -> float:
        """When `due` has something to say again, at the latest."""
        echo_at = self._echo_at if self._answer_by is None else self._answer_by
        return min(self._keepalive_at, echo_at)

    def due(self, now: float, moved: int) -> Due:
        """What to do at `now`; `moved` counts what the relay has sent or visibly taken so far."""
        frames: list[bytes] = []
        if self._answer_by is not None and now >= self._answer_by:
            self._missed += 1
            self._missed_in_silence = self._missed_in_silence + 1 if moved == self._moved else 0
            if self._missed_in_silence >= MISSED_WHILE_SILENT or self._missed >= MISSED_WHILE_MOVING:
                return Due(dead=f"{self._missed} echoes unanswered")
            frames.append(self._echo(now, moved))
        elif self._answer_by is None and now >= self._echo_at:
            frames.append(self._echo(now, moved))
        if now >= self._keepalive_at:
            self._keepalive_at = now + self._keepalive_s
            frames.append(KEEPALIVE_FRAME)
        return Due(tuple(frames))

    def echoed(self, payload: bytes, now: float) -> bool:
        """Whether a payload that came back from our own key is an echo of this connection's."""
        prefix = ECHO_MAGIC + self._nonce
        if len(payload) != ECHO_BYTES or not payload.startswith(prefix):
            return False
        sequence = int.from_bytes(payload[len(prefix) :], "big")
        sent_at = self._sent.get(sequence)
        if sent_at is None:
            return False
        self._sent = {later: at for later, at in self._sent.items() if later > sequence}
        self._answer_by = None
        self._missed = self._missed_in_silence = 0
        self._echo_at = sent_at + self._echo_s
        self.round_trip_s = now - sent_at
        self.last_sign_at = now
        return True

    def useful_for_s(self) -> float:
        """From Register to the last sign of life, in seconds; 0 without one. What came after was no use."""
        return 0.0 if self.last_sign_at is None else self.last_sign_at - self._registered_at

    def _echo(self, now: float, moved: int) -> bytes:
        self._moved = moved
        self._sequence += 1
        self._sent[self._sequence] = now
        self._answer_by = now + self._echo_s * PATIENCE_OF_INTERVAL
        return encode_data(
            self._key, ECHO_MAGIC + self._nonce + self._sequence.to_bytes(SEQUENCE_BYTES, "big")
        )
