"""NATs that aren't there, for the simulated network: RFC 4787's kinds, and what theory has of their pairs."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from math import inf

from relayd.endpoints import Endpoint

NATS = ("none", "full_cone", "address_restricted", "port_restricted", "symmetric", "blocked")
SEQUENTIAL = "sequential"
"""A symmetric one that gives out its ports one after the other."""
FIRST_SEQUENTIAL = 30000


def can_punch(a: str, b: str) -> bool:
    """What theory allows (RFC 5128, section 3.3 and 3.4), without port prediction."""
    if "blocked" in (a, b):
        return False
    symmetric = ("symmetric", SEQUENTIAL)
    for one, other in ((a, b), (b, a)):
        if one in symmetric and other in (*symmetric, "port_restricted"):
            return False
    return True


def may_punch(a: str, b: str, *, birthday: bool) -> bool:
    """What it allows with some luck: ports that are predicted, or found by the birthday method."""
    pair = {a, b}
    if pair in ({SEQUENTIAL, "port_restricted"}, {SEQUENTIAL}):
        return True
    return can_punch(a, b) or (birthday and pair == {"symmetric", "port_restricted"})


class Nat:
    """A node's access to the network: what its packets look like outside, and which come in."""

    def __init__(
        self, kind: str, public: IPv4Address, rng: random.Random, *, lifetime_s: float = 30.0
    ) -> None:
        self.kind, self.public, self._rng, self.lifetime_s = kind, public, rng, lifetime_s
        self._next_port = FIRST_SEQUENTIAL
        self._ports: dict[tuple[int, Endpoint | None], int] = {}
        self._sent: dict[tuple[int, Endpoint], float] = {}

    def outside(self, port: int, to: Endpoint, now: float) -> Endpoint | None:
        """Where a packet from `port` to `to` comes from, seen from outside; None: it doesn't get out."""
        if self.kind == "blocked":
            return None
        if self.kind == "none":
            return Endpoint(self.public, port)
        symmetric = self.kind in ("symmetric", SEQUENTIAL)
        key = (port, to if symmetric else None)
        last = self._sent.get((port, to), -inf)
        if key not in self._ports or (symmetric and now - last > self.lifetime_s):
            self._ports[key] = self._draw_port()
        self._sent[port, to] = now
        return Endpoint(self.public, self._ports[key])

    def _draw_port(self) -> int:
        if self.kind == SEQUENTIAL:
            self._next_port += 1
            return self._next_port
        while (port := self._rng.randrange(20000, 60000)) in self._ports.values():
            pass  # drawn twice, a symmetric one would be none, once in 40,000 times
        return port

    def lets_in(self, source: Endpoint, to: Endpoint, now: float) -> int | None:
        """The inner port that a packet from outside gets to; None: it doesn't."""
        if self.kind == "blocked":
            return None
        if self.kind == "none":
            return to.port
        for (port, destination), outer in self._ports.items():
            if outer != to.port:
                continue
            if self.kind == "full_cone":
                return port
            for (sent_port, sent_to), at in self._sent.items():
                if sent_port != port or now - at > self.lifetime_s:
                    continue
                if self.kind == "address_restricted" and sent_to.address == source.address:
                    return port
                if sent_to == source and destination in (None, source):
                    return port
        return None

    def renumber(self, public: IPv4Address) -> None:
        """Another public address: every mapping is lost."""
        self.public = public
        self._ports.clear()
        self._sent.clear()
