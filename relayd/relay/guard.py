"""Who is let in now, and how each newcomer is greeted.

a source of admission (files, a cluster) -> Guard.replace -> the next proofs, and those who have to go
a connection -> Greeter.handshake -> Challenge, Proof, Welcome
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.relay.admission import Gate
from relayd.wire.boxes import NONCE_BYTES
from relayd.wire.identity_frames import SESSION_BYTES, Welcome
from relayd.wire.relay_handshake import RelayHandshake, RelayIdentity

INSTANCE_BYTES = 16
"""Random name of one process: two never share it."""


class Guard:
    """The gate in force. Whoever knows who is to be let in replaces it, whole, whenever that changes."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._only: frozenset[PublicKey] | None = None
        self.on_change: list[Callable[[], None]] = []
        """Called after each change: whoever holds connections looks which have to go."""

    def replace(self, gate: Gate) -> None:
        """`gate` decides from now on."""
        self.gate = gate if self._only is None else replace(gate, allowed=self._only)
        for tell in self.on_change:
            tell()

    def restrict(self, keys: frozenset[PublicKey]) -> None:
        """Only these, whatever list of keys the gate has, now and later."""
        self._only = keys
        self.replace(self.gate)

    def admit(self, key: PublicKey, token: bytes) -> str:
        """As Gate.admit, with the gate in force."""
        return self.gate.admit(key, token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeter:
    """What a relay says to a newcomer, the same to all but for what is random."""

    identity: RelayIdentity
    guard: Guard
    proof_required: bool
    """False: a bare Register is enough for a key that nobody has proved."""
    timeout_s: float
    """From accept to Proof."""
    keepalive_s: float
    stun: tuple[int, ...] = ()
    instance: bytes = field(default_factory=lambda: secrets.token_bytes(INSTANCE_BYTES))

    def still_admits(self, key: PublicKey, *, proved: bool) -> str:
        """Why who has got in, or has waited for its key, isn't let in any more. Empty: it is."""
        if not self.guard.gate.still_admits(key):
            return f"key {key.short()} is not on this relay's list any more"
        if self.proof_required and not proved:
            return "this relay wants a proof of identity by now"
        return ""

    def handshake(self, endpoint: Endpoint, now: float) -> RelayHandshake:
        """For a connection that came from `endpoint`."""
        return RelayHandshake(
            self.identity,
            admit=self.guard.admit,
            welcome=Welcome(
                relay=self.instance,
                observed=str(endpoint),
                keepalive_s=self.keepalive_s,
                stun=self.stun,
                features=("health", "drain", "peer-gone"),
            ),
            session=secrets.token_bytes(SESSION_BYTES),
            nonce=secrets.token_bytes(NONCE_BYTES),
            now=now,
            proof_required=self.proof_required,
            timeout_s=self.timeout_s,
        )
