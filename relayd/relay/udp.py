"""The relay's UDP socket: NAT probes for registered agents.

An agent asks where its NAT lets packets in (NATProbe); the relay sends it one datagram from the port
that the agent has talked to, and one from a port that it hasn't. Only to the address that the agent's
connection comes from: any other would be a way to aim the relay at a stranger.
"""

from __future__ import annotations

import socket
from collections import Counter

from relayd.endpoints import Endpoint
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.wire.frames import NatProbe

VERIFY = b"WIREKUBE_NAT_VERIFY"
"""From the relay's bound port: it comes through any NAT that the agent has sent a datagram through."""

PROBE = b"WIREKUBE_NAT_PROBE"
"""From a fresh port: it comes through only where filtering is endpoint-independent (RFC 4787, section 5)."""

PROBES_PER_S = 100.0
PROBE_BURST = 16.0

READS_AT_ONCE = 64
DATAGRAM_BYTES = 2048


class NatProber:
    """Sends the two datagrams of a NATProbe, from the UDP sockets of the listeners."""

    def __init__(self, poller: Poller, sockets: list[socket.socket]) -> None:
        """`sockets` are bound UDP sockets, non-blocking; they stay the caller's."""
        self._poller = poller
        self._sockets = sockets
        self._tokens, self._filled_at = PROBE_BURST, poller.now
        self.counts: Counter[str] = Counter()
        """Probes sent, and those refused by reason."""
        for sock in sockets:
            poller.add(sock.fileno(), _Discard(sock, self.counts).on_event)

    def close(self) -> None:
        """Stop reading the sockets."""
        for sock in self._sockets:
            self._poller.remove(sock.fileno())

    def probe(self, request: NatProbe, requester: Endpoint) -> None:
        """Probe, or count why not. Never blocks, never raises for what the network does."""
        if request.address != requester.address or not request.port:
            self.counts["refused_not_requester"] += 1
            return
        if not self._allowed():
            self.counts["refused_rate"] += 1
            return
        bound = next((sock for sock in self._sockets if sock.family == socket.AF_INET), None)
        if bound is None:
            self.counts["refused_no_ipv4"] += 1
            return
        target = (str(request.address), request.port)
        local = bound.getsockname()[0]
        try:
            bound.sendto(VERIFY, target)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as fresh:
                fresh.setblocking(False)
                fresh.bind((local, 0))
                fresh.sendto(PROBE, target)
        except OSError as error:
            self.counts["failed"] += 1
            log.get().debug("nat_probe.failed", target=str(requester.address), reason=error.strerror)
        else:
            self.counts["sent"] += 1

    def _allowed(self) -> bool:
        """A token bucket: PROBES_PER_S in the long run, PROBE_BURST at once."""
        now = self._poller.now
        self._tokens = min(PROBE_BURST, self._tokens + (now - self._filled_at) * PROBES_PER_S)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Discard:
    """Datagrams that nobody answers yet (agents open their NAT by sending one) are read and counted."""

    def __init__(self, sock: socket.socket, counts: Counter[str]) -> None:
        self._sock, self._counts = sock, counts

    def on_event(self, _mask: int) -> None:
        try:
            for _ in range(READS_AT_ONCE):
                self._sock.recv(DATAGRAM_BYTES)
                self._counts["received"] += 1
        except BlockingIOError:
            return
        except OSError as error:  # an ICMP error for an earlier probe
            self._counts["receive_errors"] += 1
            log.get().debug("relay.udp_failed", reason=error.strerror)
