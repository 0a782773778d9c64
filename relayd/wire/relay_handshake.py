"""The relay's side of the handshake: a connection's bytes, from the first to the Welcome.

state       frame              then
REGISTER    Register           Challenge is sent; PROOF  (policy `optional`: outcome Registered)
            any other          refused
PROOF, BARE Proof, good        Welcome is sent; ADMITTED, outcome Admitted
            Proof, not good    refused
            Register           refused: a second one
            from relays only   refused: wrong direction
            Ping, Pong         refused: only after Part 2
PROOF       Part 1, unknown    dropped and counted: nothing is routed before its Proof
BARE        Part 1, unknown    not the handshake's business (let_in: PROOF -> BARE)
ADMITTED    Register, Proof    refused: a second one
            from relays only   refused: wrong direction
REFUSED     any                the same refusal
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Self

from relayd.errors import RemoteProtocolError
from relayd.keys import PrivateKey, PublicKey
from relayd.wire.boxes import shared_key_untrusted
from relayd.wire.frames import HEADER, HEADER_BYTES, KEYED_BYTES, LENGTH_BYTES, MAX_LENGTH, REGISTER
from relayd.wire.frames import decode_register_untrusted as decode_register
from relayd.wire.identity import (
    ADMISSION_S,
    AFTERWARDS,
    BEFORE_PROOF,
    FROM_RELAY,
    MAX_INPUT_BYTES,
    Admitted,
    Refusal,
    Refused,
    Registered,
    RelayStep,
    frame_name,
)
from relayd.wire.identity_frames import PROOF, SESSION_BYTES, Challenge, Welcome, decode_proof_untrusted


class NotAdmittedError(Exception):
    """A proved key is not let in. The text is told to its agent."""


Admit = Callable[[PublicKey, bytes], str]
"""`admit(key, token)` says what lets a proved key in, for the log, or raises NotAdmittedError. Pure."""


@dataclass(frozen=True, slots=True)
class RelayIdentity:
    """The relay's own key, both halves: a handshake has no time to derive the public one."""

    private: PrivateKey
    public: PublicKey

    @classmethod
    def of(cls, private: PrivateKey) -> Self:
        """The identity with this private key."""
        return cls(private, private.public())


class State(Enum):
    """What is awaited, or what came of it."""

    REGISTER = "Register"
    PROOF = "Proof"
    BARE = "Proof or nothing"
    ADMITTED = "admitted"
    REFUSED = "refused"


class RelayHandshake:
    """One connection that is not admitted yet.

    From a socket: read at most `wants` bytes, give them to `receive`, until there is an outcome; what
    came behind it in the same read is in `unread`. From a stream that is cut into frames already: `on_frame`.
    """

    def __init__(
        self,
        identity: RelayIdentity,
        *,
        admit: Admit,
        welcome: Welcome,
        session: bytes,
        nonce: bytes,
        now: float,
        proof_required: bool = True,
        timeout_s: float = ADMISSION_S,
    ) -> None:
        """`session` (32 bytes) and `nonce` (24) are random and of this connection alone; `welcome` is what
        the agent gets when it is admitted. `proof_required` False is the policy `optional`."""
        if len(session) != SESSION_BYTES:
            raise ValueError(f"a session has {SESSION_BYTES} bytes, not {len(session)}")
        self._identity, self._admit, self._welcome = identity, admit, welcome
        self._session, self._nonce = session, nonce
        self._proof_required = proof_required
        self._timeout_s = timeout_s
        self.state = State.REGISTER
        self.deadline: float | None = now + timeout_s
        """When `due` refuses the connection; None: it is in."""
        self.key: PublicKey | None = None
        """What Register named. Nothing is proved by it."""
        self.dropped: Counter[str] = Counter()
        """Frames that came before their time, by reason."""
        self._refused: Refused | None = None
        self._buffer = bytearray()
        self._received = 0

    @property
    def wants(self) -> int:
        """Bytes up to where this side has something to decide: reading no more leaves what follows the
        handshake in the socket. At least 1 until there is an outcome."""
        buffer = self._buffer
        if self.state is State.REGISTER:
            return max(1, KEYED_BYTES - len(buffer))
        if len(buffer) < HEADER_BYTES:
            return HEADER_BYTES - len(buffer)
        return int.from_bytes(buffer[:LENGTH_BYTES], "big") + LENGTH_BYTES - len(buffer)

    @property
    def unread(self) -> bytes:
        """What was received behind the last frame that `receive` has taken."""
        return bytes(self._buffer)

    def receive(self, data: bytes | memoryview, now: float) -> RelayStep:
        """The next bytes, cut anyhow. Frames behind an outcome stay in `unread`."""
        if (late := self.due(now)).outcome is not None:
            return late
        self._received += len(data)
        self._buffer += data
        send = b""
        while len(self._buffer) >= HEADER_BYTES:
            length, kind = HEADER.unpack_from(self._buffer)
            size = length + LENGTH_BYTES
            if problem := self._announcement_problem(length, kind):
                return self._refuse(Refusal.PROTOCOL, problem, send)
            if len(self._buffer) < size:
                break
            body = bytes(self._buffer[HEADER_BYTES:size])
            del self._buffer[:size]
            step = self.on_frame(kind, body, now)
            send += step.send
            if step.outcome is not None:
                return RelayStep(send, step.outcome)
        if self._received >= MAX_INPUT_BYTES:
            return self._refuse(Refusal.PROTOCOL, f"{self._received} bytes without a proof of identity", send)
        return RelayStep(send)

    def on_frame(self, kind: int, body: bytes | memoryview, now: float) -> RelayStep:
        """The next frame. A refusal is final: whatever follows it gets the same one."""
        if (late := self.due(now)).outcome is not None:
            return late
        match self.state:
            case State.REGISTER:
                if kind != REGISTER:
                    return self._refuse(
                        Refusal.PROTOCOL, f"the first frame must be Register, not {frame_name(kind)}"
                    )
                return self._on_register(bytes(body))
            case _ if kind in FROM_RELAY:
                return self._refuse(Refusal.PROTOCOL, f"{frame_name(kind)} is a relay's to send")
            case _ if kind == REGISTER:
                return self._refuse(Refusal.PROTOCOL, "a second Register")
            case State.ADMITTED:
                if kind == PROOF:
                    return self._refuse(Refusal.PROTOCOL, "a second Proof")
            case State.PROOF | State.BARE:
                if kind == PROOF:
                    return self._on_proof(bytes(body))
                if kind in AFTERWARDS:
                    return self._refuse(Refusal.PROTOCOL, f"{frame_name(kind)} before Proof")
                if self.state is State.PROOF:
                    self.dropped[BEFORE_PROOF] += 1
        return RelayStep()

    def due(self, now: float) -> RelayStep:
        """What time alone decides: at `deadline`, that it is over."""
        if self._refused is not None:
            return RelayStep(outcome=self._refused)
        if self.deadline is None or now < self.deadline:
            return RelayStep()
        if self.state is State.REGISTER:
            return self._refuse(Refusal.TIMEOUT, f"no Register within {self._timeout_s:g} s")
        return self._refuse(
            Refusal.TIMEOUT,
            f"no proof of identity within {self._timeout_s:g} s: this relay asks for one (0x30 Challenge)",
        )

    def let_in(self) -> None:
        """After Registered: its key is free, so it is served unproved from now on, and may prove it later.

        Raises ValueError at any other time.
        """
        if self.state is not State.PROOF or self._proof_required:
            raise ValueError(f"nothing to let in: {self.state.value}, proof required {self._proof_required}")
        self.state = State.BARE
        self.deadline = None

    def _announcement_problem(self, length: int, kind: int) -> str:
        """What is wrong with a frame's header, before any of its body is waited for."""
        if self.state is State.REGISTER and (kind != REGISTER or length != KEYED_BYTES - HEADER_BYTES + 1):
            return f"the first frame must be Register with a key, not type {kind:#x} of length {length}"
        if not 0 < length <= MAX_LENGTH:
            return f"a frame of length {length} (1 to {MAX_LENGTH} are allowed)"
        rest = length + LENGTH_BYTES - len(self._buffer)
        if self._received + rest > MAX_INPUT_BYTES:
            return f"a frame of {length} bytes; {MAX_INPUT_BYTES} bytes in all are allowed before admission"
        return ""

    def _on_register(self, body: bytes) -> RelayStep:
        try:
            self.key = decode_register(body)
        except RemoteProtocolError as error:
            return self._refuse(Refusal.PROTOCOL, str(error))
        self.state = State.PROOF
        challenge = Challenge(self._identity.public, self._session).encode()
        return RelayStep(challenge, None if self._proof_required else Registered(self.key))

    def _on_proof(self, body: bytes) -> RelayStep:
        assert self.key is not None
        try:
            shared = shared_key_untrusted(self._identity.private, self.key)
            proof = decode_proof_untrusted(body, shared)
        except RemoteProtocolError as error:
            return self._refuse(Refusal.BAD_PROOF, f"no proof of key {self.key.short()}: {error}")
        if not proof.is_for(self._session):
            return self._refuse(
                Refusal.BAD_PROOF, f"no proof of key {self.key.short()}: made for another connection"
            )
        try:
            admission = self._admit(self.key, proof.token)
        except NotAdmittedError as error:
            return self._refuse(Refusal.NOT_ADMITTED, str(error))
        self.state = State.ADMITTED
        self.deadline = None
        welcome = self._welcome.encode(shared, self._nonce, proof.agent_nonce)
        return RelayStep(welcome, Admitted(self.key, proof.home_key, admission))

    def _refuse(self, refusal: Refusal, reason: str, send: bytes = b"") -> RelayStep:
        self.state = State.REFUSED
        self.deadline = None
        self._buffer.clear()
        self._refused = Refused(refusal, reason)
        return RelayStep(send, self._refused)
