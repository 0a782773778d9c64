"""The birthday method: a direct path between a NAT that draws its ports and one that lets in only who was
sent to, when both ends are configured for it. Pure.

    the hard end is behind a symmetric NAT with ports that nobody predicts; the easy end has one mapping

    hard   opens SOCKETS sockets, each of which sends to the easy end's one endpoint: as many mappings, at
           ports that it doesn't know itself
    hard   FindPort through the relay: "I have opened them; ping random ports of my address"
    easy   pings random ports, one each PROBE_S, from WireGuard's own port: its NAT opens to each of them
    hard   a Ping comes in at one of the sockets; from there it pings back, and the easy NAT lets that in

Of PORTS ports SOCKETS lead to the hard end, so n Pings all miss with (1 - SOCKETS/PORTS)**n: half of all
attempts have met after 175 of them, 99.9 % after 1,740, and ATTEMPT_S has time for 2,000.

It has to be many sockets. From WireGuard's own port the hard end gets one mapping for each destination, and
the easy end is one destination: 2,000 Pings would meet that one mapping in 3 of 100 attempts. So the hard
end's WireGuard sends through the socket that was met (`agent.carriers`). Two hard ends are out of reach:
neither knows where to send, and 256 sockets against 2,000 Pings meet once in some ten thousand attempts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from math import inf

from relayd.endpoints import Endpoint
from relayd.paths.acquaintance import BIRTHDAY, Acquaintance, Local
from relayd.paths.announcement import Send
from relayd.paths.checklist import Checklist
from relayd.wire.sealed_messages import TXID_BYTES, FindPort, Ping

SOCKETS = 256
ATTEMPT_S = 20.0
PROBE_S = 0.01
"""Between two of the easy end's Pings: 15 kB/s, and 2,000 entries in its NAT, of which home routers hold
4,096 at the least."""

MAX_LATE = 4
"""Pings at once, after a busy moment."""

PAUSE_S, PAUSE_CAP_S = 300.0, 3600.0
"""After an attempt, doubled with each that failed: it looks like a scan of ports, and to no purpose then."""

MOVED_PAUSE_S = 30.0
"""... and only so long when the easy end is at another endpoint now."""

SEARCH_PAUSE_S = 150.0
"""After a search that led nowhere, whatever the peer asks for: half of what it waits itself."""

FIRST_PORT = 1024
PORTS = 65536 - FIRST_PORT
"""What NATs draw from: never the ports below (RFC 4787, REQ-3, keeps the two ranges apart)."""


class Turn:
    """One attempt at a time, of all peers together."""

    def __init__(self) -> None:
        self._until = -inf
        self._whose: object = None

    def take(self, who: object, now: float) -> bool:
        """Whether an attempt of `who` may begin."""
        if now < self._until:
            return False
        self._until, self._whose = now + ATTEMPT_S, who
        return True

    def give_back(self, who: object) -> None:
        """It has ended; if that was before its time, the next may begin."""
        if self._whose is who:
            self._until = -inf


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """The hard end's: so long sockets are to be open that have sent to `to`."""

    to: Endpoint
    until: float


class Birthday:
    """One peer's attempts, as either end. Times are monotonic seconds."""

    def __init__(
        self, turn: Turn, draw: Callable[[int], bytes], agent: Acquaintance, checklist: Checklist
    ) -> None:
        """`turn` is all peers', `draw` gives random bytes; the others are the same peer's."""
        self._turn, self._draw, self._agent, self._checklist = turn, draw, agent, checklist
        self.attempt: Attempt | None = None
        self.attempts = 0
        """Begun, as the hard end."""
        self.searches = 0
        """Begun, as the easy end."""
        self._failures = 0
        self._next_at = self._ended_at = -inf
        self._last: Endpoint | None = None
        """Where the last attempt was to."""
        self._announced = False
        self._aim: IPv4Address | None = None
        self._search_until = self._probe_at = inf
        self._search_again_at = -inf
        self._tried: set[int] = set()

    # The hard end -------------------------------------------------------------------------------------------

    def _begin(self, local: Local, now: float) -> None:
        """An attempt, if the checks came to nothing, it is time, and nobody else's turn."""
        checklist, agent = self._checklist, self._agent
        hard = local.birthday and local.symmetric and BIRTHDAY in (agent.features or ())
        in_vain = checklist.round_at > -inf and not checklist.checking
        if not (hard and in_vain and agent.connected and self.attempt is None):
            return
        to = checklist.mapped_endpoint()
        at = self._next_at if to == self._last else self._ended_at + MOVED_PAUSE_S
        if to is None or _outer(local) is None or now < at or not self._turn.take(self, now):
            return
        self.attempt, self._announced, self._last = Attempt(to, now + ATTEMPT_S), False, to
        self.attempts += 1

    def opened(self, count: int, local: Local, now: float) -> list[Send]:
        """`count` sockets have sent. What is to be said now; with none of them it is over."""
        address = _outer(local)
        if self.attempt is None or self._announced:
            return []
        if not count or address is None:
            self._end(now, met=False)
            return []
        self._announced = True
        session = self._agent.session
        call = FindPort(
            generation=session.next_generation(),
            session=session.own,
            yours=session.yours,
            address=str(address),
        )
        return [Send(call)]

    def _end(self, now: float, *, met: bool) -> None:
        """The attempt is over, and has led to a direct path or not."""
        if self.attempt is None:
            return
        self.attempt = None
        self._turn.give_back(self)
        self._ended_at = now
        self._failures = 0 if met else self._failures + 1
        self._next_at = now + min(PAUSE_CAP_S, PAUSE_S * 2.0 ** min(max(0, self._failures - 1), 10))

    def forgive(self) -> None:
        """An address changed: what failed was another NAT."""
        self._failures, self._next_at, self._ended_at, self._search_again_at = 0, -inf, -inf, -inf

    # The easy end -------------------------------------------------------------------------------------------

    def heard(self, message: FindPort, local: Local, now: float) -> None:
        """Ping random ports from now on, unless that isn't ours to do, or it is another peer's turn.

        Only of an address that the peer has told as its own: it is no way to aim us at somebody in passing.
        """
        address = ip_address(message.address)
        told = {pair.remote.address for pair in self._checklist.pairs.values() if pair.type == "srflx"}
        if not isinstance(address, IPv4Address) or not local.may_ping(address):
            return
        if address not in told or not local.birthday or local.symmetric or self._aim is not None:
            return
        if now < self._search_again_at or not self._turn.take(self, now):
            return
        self._aim, self._search_until, self._probe_at = address, now + ATTEMPT_S, now
        self._tried.clear()
        self.searches += 1

    def _stop_search(self) -> None:
        """It has led somewhere, or its time is over."""
        if self._aim is not None:
            self._aim, self._probe_at = None, inf
            self._turn.give_back(self)

    def _due(self, now: float) -> list[Send]:
        """The Pings that are due now: one, or as many as a late call has missed."""
        if self._aim is not None and now >= self._search_until:
            self._stop_search()
            self._search_again_at = now + SEARCH_PAUSE_S
        found: list[Send] = []
        while self._aim is not None and self._probe_at <= now and len(found) < MAX_LATE:
            found.append(Send(Ping(self._draw(TXID_BYTES)), Endpoint(self._aim, self._next_port())))
            self._probe_at += PROBE_S
        if self._aim is not None:
            self._probe_at = max(self._probe_at, now)
        return found

    def _next_port(self) -> int:
        """At random, and none twice."""
        port = 0
        while port < FIRST_PORT or port in self._tried:
            port = int.from_bytes(self._draw(2), "big")
        self._tried.add(port)
        return port

    # Both ---------------------------------------------------------------------------------------------------

    def act(self, local: Local, now: float, *, able: bool, direct: bool) -> list[Send]:
        """Begin, end, ping. `able`: both ends can be pinged at WireGuard's port; `direct`: they are."""
        if direct or self._checklist.valid(now):
            self._end(now, met=True)
            self._stop_search()
            return []
        if self.attempt is not None and now >= self.attempt.until:
            self._end(now, met=False)
        if able:
            self._begin(local, now)
        return self._due(now)

    @property
    def next_at(self) -> float:
        """When something is due; inf: nothing is under way."""
        ends_at = self.attempt.until if self.attempt is not None else inf
        return min(ends_at, self._probe_at)


def _outer(local: Local) -> IPv4Address | None:
    """What our NAT's ports are at."""
    seen = (one.endpoint.address for one in local.candidates if one.type == "srflx")
    return next((one for one in seen if isinstance(one, IPv4Address)), None)
