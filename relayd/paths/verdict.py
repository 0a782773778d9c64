"""What follows for WireGuard: where the packets of one peer are to go."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.endpoints import Endpoint


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where WireGuard is to send the peer's packets."""

    direct: bool
    endpoint: Endpoint | None
    """With `direct`. On the relay: a direct endpoint that WireGuard roamed to, and may keep for the
    moment."""
    reason: str
    renew: bool = False
    """Whether to set the endpoint though it is set: a userspace WireGuard goes on sending from the own
    address that it sent from last, if that is gone too, until it is told anew."""
