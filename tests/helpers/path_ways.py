"""What goes from node to node in the simulated network, and what a way does to it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Way:
    """One direction of the direct path, and what it does to packets."""

    loss: float = 0.0
    delay_s: float = 0.02
    jitter_s: float = 0.0
    duplicate: float = 0.0
    cut: bool = False
    max_bytes: int = 1500
    """Longer datagrams vanish."""


@dataclass(slots=True)
class Packet:
    """WireGuard's own datagram."""

    number: int
    size: int = 148


@dataclass
class Traffic:
    """What the tunnel carried in one direction."""

    sent: dict[int, float] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)
