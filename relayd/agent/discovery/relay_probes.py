"""How a NAT filters, by a relay's probes: for relays that have no second STUN port, WireKube's own among
them.

The agent sends a datagram to the relay's UDP port from a fresh port of its own, which opens its NAT to that
port alone, and asks over its connection for two datagrams to where that port is mapped: one from the port
that was sent to, one from another (PROTOCOL, NATProbe).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

import trio

from relayd.agent.shared_port import mark_if_allowed
from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.paths.nat_class import Filtering, from_probes
from relayd.wire import stun
from relayd.wire.frames import NAT_OPEN, NAT_PROBE_DATAGRAM, NAT_VERIFY_DATAGRAM, NatProbe

REPEAT_S = 0.5
TRIES = 3
WAIT_S = 3.0
"""For the two datagrams, from when they were asked for: as long as WireKube's agents wait."""

_MOST_BYTES = 2048


@dataclass(frozen=True, slots=True)
class RelayProbes:
    """Who can be asked."""

    relay: Callable[[], Endpoint | None]
    """The relay's UDP port: the address that the connection is to, with the same port. None: not
    connected."""
    ask: Callable[[NatProbe], None]
    """Send the request over the connection, without waiting."""

    async def find(self, server: Endpoint) -> tuple[Filtering, str]:
        """The filtering, and who told of it; `server` is a STUN server that answers. Raises OSError."""
        relay = self.relay()
        if relay is None or relay.address.version != 4:
            return Filtering.UNKNOWN, "no relay is connected that could probe over IPv4"
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        mark_if_allowed(plain)
        with trio.socket.from_stdlib_socket(plain) as sock:
            await sock.bind(("", 0))
            mapped = await _mapped(sock, server)
            if mapped is None or not isinstance(mapped.address, IPv4Address):
                return Filtering.UNKNOWN, f"{server} doesn't answer any more"
            await sock.sendto(NAT_OPEN, (str(relay.address), relay.port))
            self.ask(NatProbe(mapped.address, mapped.port))
            verify = probe = False
            with trio.move_on_after(WAIT_S):
                while not (verify and probe):
                    data, (host, port) = await sock.recvfrom(_MOST_BYTES)
                    if host == str(relay.address):
                        verify |= data == NAT_VERIFY_DATAGRAM and port == relay.port
                        probe |= data == NAT_PROBE_DATAGRAM and port != relay.port
            filtering = from_probes(verify, probe)
            return filtering, f"the probes of {relay}" if verify or probe else f"{relay} sent no probes"


async def _mapped(sock: trio.socket.SocketType, server: Endpoint) -> Endpoint | None:
    """Where `server` sees the socket."""
    transaction = os.urandom(stun.TRANSACTION_BYTES)
    for _ in range(TRIES):
        await sock.sendto(stun.encode_request(transaction), (str(server.address), server.port))
        with trio.move_on_after(REPEAT_S):
            while True:
                try:
                    answer = stun.decode_answer_untrusted(await sock.recv(_MOST_BYTES))
                except RemoteProtocolError:
                    continue
                if answer.transaction == transaction:
                    return answer.mapped
    return None
