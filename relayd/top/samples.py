"""What one process has said lately: its last two answers, a line of rates, since when it is silent. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relayd.observe.units import Status, rate

KEPT = 120
"""Rates: four minutes of one every other second."""


def paths_of(role: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where the status has the bytes that came in and went out."""
    if role == "relay":
        return ("bytes_in",), ("bytes_out",)
    return ("tunnel", "rx_bytes"), ("tunnel", "tx_bytes")


@dataclass(slots=True)
class Samples:
    """One process, by its control socket."""

    path: str
    before: Status = field(default_factory=dict)
    now: Status = field(default_factory=dict)
    received: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Bits a second."""
    sent: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    silent_since: float | None = None
    """On the caller's clock; None: it answers."""
    trouble: str = ""
    """Why it doesn't."""

    def heard(self, status: Status) -> None:
        """It has answered."""
        status = _with_tunnel(status)
        restarted = status.get("uptime_s", 0) < self.now.get("uptime_s", 0)
        self.before = {} if restarted else self.now
        self.now = status
        self.silent_since, self.trouble = None, ""
        received, sent = (rate(self.before, status, *path) for path in paths_of(status.get("role")))
        if received is not None and sent is not None:
            self.received.append(received * 8)
            self.sent.append(sent * 8)

    def missed(self, why: str, now: float) -> None:
        """It hasn't."""
        self.trouble = why
        if self.silent_since is None:
            self.silent_since = now

    def rate(self, *path: str) -> float | None:
        """What a counter gains a second."""
        return rate(self.before, self.now, *path)

    def peers(self) -> list[dict[str, Any]]:
        """The peers, each with `in_rate` and `out_rate`, bits a second (None: not known yet)."""
        known = {peer.get("key"): peer for peer in self.before.get("peers") or ()}
        seconds = self.now.get("uptime_s", 0) - self.before.get("uptime_s", 0) if self.before else 0
        received, sent = ("bytes_in", "bytes_out") if "bytes_in" in self.now else ("rx_bytes", "tx_bytes")
        return [
            {
                **peer,
                "in_rate": _gained(known.get(peer.get("key")), peer, received, seconds),
                "out_rate": _gained(known.get(peer.get("key")), peer, sent, seconds),
            }
            for peer in self.now.get("peers") or ()
        ]


def _gained(before: Status | None, now: Status, name: str, seconds: float) -> float | None:
    if before is None or seconds <= 0:
        return None
    gained: float = (now.get(name) or 0) - (before.get(name) or 0)
    return gained * 8 / seconds if gained >= 0 else None  # less than before: another connection


def _with_tunnel(status: Status) -> Status:
    """An agent's with what its tunnels carried, all together."""
    if status.get("role") == "relay":
        return status
    peers: list[Mapping[str, Any]] = list(status.get("peers") or ())
    tunnel = {name: sum(peer.get(name) or 0 for peer in peers) for name in ("rx_bytes", "tx_bytes")}
    return {**status, "tunnel": tunnel}
