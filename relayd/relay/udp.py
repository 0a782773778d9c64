"""The relay's UDP sockets, sending unasked: NAT probes for registered agents. (`stun_server` reads them.)

An agent asks where its NAT lets packets in (NATProbe); the relay sends it one datagram from the port
that the agent has talked to, and one from a port that it hasn't. Only to the address that the agent's
connection comes from: any other would be a way to aim the relay at a stranger.
"""

from __future__ import annotations

import socket
from collections import Counter
from ipaddress import IPv4Address

from relayd.endpoints import Endpoint
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.relay.rates import BucketOf
from relayd.token_bucket import TokenBucket
from relayd.wire.frames import NAT_PROBE_DATAGRAM, NAT_VERIFY_DATAGRAM, NatProbe

PROBES_PER_S = 100.0
PROBE_BURST = 16.0

PROBES_PER_S_HERE, PROBE_BURST_HERE = 5.0, 8.0
"""Of these to one address: an agent asks a few times an hour, and one that asks all the time leaves the
others theirs."""


class NatProber:
    """Sends the two datagrams of a NATProbe, from the UDP sockets of the listeners."""

    def __init__(self, poller: Poller, sockets: list[socket.socket]) -> None:
        """`sockets` are bound UDP sockets, non-blocking; they stay the caller's."""
        self._poller = poller
        self._sockets = sockets
        self._bucket = TokenBucket(rate_per_s=PROBES_PER_S, burst=PROBE_BURST)
        self._bucket_of: BucketOf[IPv4Address] = BucketOf(PROBES_PER_S_HERE, PROBE_BURST_HERE)
        self.counts: Counter[str] = Counter()
        """Probes sent, and those refused by reason."""

    def probe(self, request: NatProbe, requester: Endpoint) -> None:
        """Probe, or count why not. Never blocks, never raises for what the network does."""
        if request.address != requester.address or not request.port:
            self.counts["refused_not_requester"] += 1
            return
        now = self._poller.now
        if not self._bucket_of.of(request.address, now).try_take(1.0, now):
            self.counts["refused_rate"] += 1
            return
        if not self._bucket.try_take(1.0, now):
            self.counts["refused_rate"] += 1
            return
        bound = next((sock for sock in self._sockets if sock.family == socket.AF_INET), None)
        if bound is None:
            self.counts["refused_no_ipv4"] += 1
            return
        target = (str(request.address), request.port)
        local = bound.getsockname()[0]
        try:
            bound.sendto(NAT_VERIFY_DATAGRAM, target)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as fresh:
                fresh.setblocking(False)
                fresh.bind((local, 0))
                fresh.sendto(NAT_PROBE_DATAGRAM, target)
        except OSError as error:
            self.counts["failed"] += 1
            log.get().debug("nat_probe.failed", target=str(requester.address), reason=error.strerror)
        else:
            self.counts["sent"] += 1
