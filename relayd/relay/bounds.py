"""How much of a relay one connection, or all of them together, may take up."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.relay.rates import KeyRates


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one connection may take up."""

    round_bytes: int
    """Most that is read from one connection before the others have their turn."""
    queue_bytes: int
    queue_age_s: float
    memory_bytes: int
    """Most that all outboxes together hold."""
    rates: KeyRates
    """What one key may send."""
    stalled_s: float
    """A connection that takes no byte of what waits for it for so long is closed."""
