"""The agent's side of the handshake: from its Register to the relay's Welcome.

state      frame                then
CHALLENGE  Challenge            its key is checked, Proof is sent; WELCOME
           Welcome              refused: before Challenge
WELCOME    Welcome, good        DONE, outcome Welcomed
           Welcome, not good    refused
           Challenge            refused: a second one
both       Error                refused, with its text (from a relay that need not prove itself: passed on)
           from agents only     refused: wrong direction
           0x33 to 0x37         refused: only after Part 2
           Part 1, unknown      dropped, unless relays that prove nothing are allowed
DONE       Challenge, Welcome   refused: a second one
           from agents only     refused: wrong direction
REFUSED    any                  the same refusal

No Challenge in time: refused when a key is pinned or relays must prove themselves; else outcome Unproved,
and a Challenge that comes later still is answered.
"""

from __future__ import annotations

import math
from enum import Enum

from relayd.errors import RemoteProtocolError
from relayd.keys import PrivateKey, PublicKey
from relayd.wire.boxes import shared_key_untrusted
from relayd.wire.frames import ERROR, decode_error_untrusted, encode_register
from relayd.wire.identity import (
    AFTERWARDS,
    BEFORE_PROOF,
    CHALLENGE_S,
    FROM_AGENT,
    WELCOME_S,
    AgentStep,
    Refusal,
    Refused,
    Trust,
    Unproved,
    Welcomed,
    frame_name,
)
from relayd.wire.identity_frames import (
    AGENT_NONCE_BYTES,
    CHALLENGE,
    WELCOME,
    Proof,
    decode_challenge_untrusted,
    decode_welcome_untrusted,
)


class State(Enum):
    """What is awaited, or what came of it."""

    CHALLENGE = "Challenge"
    WELCOME = "Welcome"
    DONE = "done"
    REFUSED = "refused"


class AgentHandshake:
    """One connection to a relay that hasn't proved itself yet."""

    def __init__(
        self,
        private: PrivateKey,
        *,
        agent_nonce: bytes,
        nonce: bytes,
        now: float,
        home_key: PublicKey | None = None,
        token: bytes = b"",
        pin: PublicKey | None = None,
        remembered: PublicKey | None = None,
        insecure: bool = False,
    ) -> None:
        """`agent_nonce` (32 bytes) and `nonce` (24) are random and of this connection alone.

        `home_key` None: the connection is for our own sake. `pin` is the only key that the relay may have;
        `remembered` the one that it had last time, where nothing is pinned. `insecure` allows a relay that
        proves nothing; a pin overrides it.
        """
        if len(agent_nonce) != AGENT_NONCE_BYTES:
            raise ValueError(f"an agent's nonce has {AGENT_NONCE_BYTES} bytes, not {len(agent_nonce)}")
        self._private, self._public = private, private.public()
        self._home_key = home_key if home_key is not None else self._public
        self._agent_nonce, self._nonce, self._token = agent_nonce, nonce, token
        self._pin, self._remembered = pin, remembered
        self._insecure = insecure and pin is None
        self.state = State.CHALLENGE
        self.next_at = now + CHALLENGE_S
        """When `due` has something to say; infinity: never."""
        self._relay_key: PublicKey | None = None
        self._shared = b""
        self._refused: Refused | None = None

    def resume(self, relay_key: PublicKey | None) -> None:
        """An earlier process has had this handshake, on the same connection, and nothing of it is to come.

        `relay_key` is the key that the relay has proved; None: none, and that was allowed.
        """
        self.next_at = math.inf
        if relay_key is not None:
            self._relay_key = relay_key
            self.state = State.DONE

    def hello(self) -> bytes:
        """The first frame."""
        return encode_register(self._public)

    @property
    def may_carry(self) -> bool:
        """Whether Data may flow now: the relay has proved itself, or need not."""
        return self.state is State.DONE or (self._insecure and self.state is not State.REFUSED)

    def on_frame(self, kind: int, body: bytes | memoryview, now: float) -> AgentStep:
        """The next frame. A refusal is final: whatever follows it gets the same one."""
        late = self.due(now)
        if isinstance(late.outcome, Refused):
            return late
        step = self._take(kind, bytes(body), now)
        # Unproved, which is said once, and a frame after all: its own outcome counts for more.
        return step if step.outcome is not None else AgentStep(step.send, late.outcome, step.dropped)

    def due(self, now: float) -> AgentStep:
        """What time alone decides: that no Challenge or no Welcome came."""
        if self._refused is not None:
            return AgentStep(outcome=self._refused)
        if now < self.next_at:
            return AgentStep()
        if self.state is State.WELCOME:
            return self._refuse(Refusal.TIMEOUT, f"no Welcome within {WELCOME_S:g} s of our Proof")
        what = f"the relay sent no Challenge within {CHALLENGE_S:g} s: it doesn't prove who it is"
        if self._pin is not None:
            return self._refuse(Refusal.NO_CHALLENGE, f"{what}, and key {self._pin.short()} is pinned")
        if not self._insecure:
            return self._refuse(Refusal.NO_CHALLENGE, f"{what} (--insecure-relay allows that)")
        self.next_at = math.inf
        if self._remembered is not None:
            what = f"{what}, which it did before with key {self._remembered.short()}"
        return AgentStep(outcome=Unproved(what))

    def _take(self, kind: int, body: bytes, now: float) -> AgentStep:
        match self.state:
            case _ if kind in FROM_AGENT:
                return self._refuse(Refusal.PROTOCOL, f"{frame_name(kind)} is an agent's to send")
            case State.DONE:
                if kind in (CHALLENGE, WELCOME):
                    return self._refuse(Refusal.PROTOCOL, f"a second {frame_name(kind)}")
                return AgentStep()
            case State.CHALLENGE if kind == ERROR and self._insecure:
                return AgentStep()  # relays in the field have their own reasons, and close themselves
            case _ if kind == ERROR:
                return self._refuse(
                    Refusal.REFUSED_BY_RELAY, f"the relay says: {decode_error_untrusted(body)}"
                )
            case _ if kind in AFTERWARDS:
                return self._refuse(Refusal.PROTOCOL, f"{frame_name(kind)} before Welcome")
            case State.CHALLENGE if kind == CHALLENGE:
                return self._on_challenge(body, now)
            case State.CHALLENGE if kind == WELCOME:
                return self._refuse(Refusal.PROTOCOL, "Welcome before Challenge")
            case State.WELCOME if kind == CHALLENGE:
                return self._refuse(Refusal.PROTOCOL, "a second Challenge")
            case State.WELCOME if kind == WELCOME:
                return self._on_welcome(body)
        return AgentStep() if self.may_carry else AgentStep(dropped=BEFORE_PROOF)

    def _on_challenge(self, body: bytes, now: float) -> AgentStep:
        try:
            challenge = decode_challenge_untrusted(body)
        except RemoteProtocolError as error:
            return self._refuse(Refusal.PROTOCOL, str(error))
        key = challenge.relay_key
        if self._pin is not None and key != self._pin:
            return self._refuse(
                Refusal.RELAY_KEY, f"the relay's key is {key.short()}, and {self._pin.short()} is pinned"
            )
        if key == self._public:
            return self._refuse(Refusal.RELAY_KEY, "the relay shows our own key as its own")
        try:
            self._shared = shared_key_untrusted(self._private, key)
        except RemoteProtocolError as error:
            return self._refuse(Refusal.RELAY_KEY, f"the relay's {error}")
        self._relay_key = key
        self.state = State.WELCOME
        self.next_at = now + WELCOME_S
        proof = Proof(challenge.session, self._agent_nonce, self._home_key, self._token)
        return AgentStep(proof.encode(self._shared, self._nonce))

    def _on_welcome(self, body: bytes) -> AgentStep:
        assert self._relay_key is not None
        try:
            welcome = decode_welcome_untrusted(body, self._shared, self._agent_nonce)
        except RemoteProtocolError as error:
            return self._refuse(
                Refusal.BAD_WELCOME, f"no proof of the relay's key {self._relay_key.short()}: {error}"
            )
        self.state = State.DONE
        self.next_at = math.inf
        trust, previous = self._trust(self._relay_key)
        return AgentStep(outcome=Welcomed(self._relay_key, trust, welcome, previous))

    def _trust(self, key: PublicKey) -> tuple[Trust, PublicKey | None]:
        changed = self._remembered is not None and self._remembered != key
        previous = self._remembered if changed else None
        if self._pin is not None:
            return Trust.PINNED, previous
        if self._remembered is None:
            return Trust.FIRST, None
        return (Trust.CHANGED if changed else Trust.REMEMBERED), previous

    def _refuse(self, refusal: Refusal, reason: str) -> AgentStep:
        self.state = State.REFUSED
        self.next_at = math.inf
        self._refused = Refused(refusal, reason)
        return AgentStep(outcome=self._refused)
