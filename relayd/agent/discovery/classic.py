"""Classic STUN servers (RFC 3489), which tell of a second address in CHANGED-ADDRESS: pystun3 asks them.

It blocks, so it runs in a worker thread. It raises whatever its indexing comes upon when a server sends
nonsense, and has no end where one keeps sending; so everything is caught here, and its socket is closed when
time is up.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import MappingProxyType

import stun
import trio

from relayd.agent.shared_port import mark_if_allowed
from relayd.endpoints import Endpoint
from relayd.netio.raw_udp import source_for
from relayd.paths.nat_class import Filtering

LIMIT_S = 12.0
"""Four questions, each sent up to four times."""

ANSWER_S = 0.5
"""For each time that a question is sent."""

FILTERING: Mapping[str, Filtering] = MappingProxyType(
    {
        stun.OpenInternet: Filtering.INDEPENDENT,
        stun.FullCone: Filtering.INDEPENDENT,
        stun.RestricNAT: Filtering.ADDRESS,
        stun.RestricPortNAT: Filtering.ADDRESS_AND_PORT,
        stun.SymmetricUDPFirewall: Filtering.ADDRESS_AND_PORT,
    }
)
"""pystun3's words -> what they say about filtering. Symmetric NATs aren't asked for theirs."""


class ClassicError(Exception):
    """The text says what became of it."""


async def classify(server: Endpoint) -> Filtering:
    """How the NAT filters, by a classic server (IPv4). Raises ClassicError."""
    try:
        own = source_for(server, mark_if_allowed)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:
        raise ClassicError(error.strerror or str(error)) from error
    with sock:
        mark_if_allowed(sock)
        sock.bind(("", 0))
        sock.settimeout(ANSWER_S)
        with trio.move_on_after(LIMIT_S):
            return await trio.to_thread.run_sync(_blocking, sock, str(own), server, abandon_on_cancel=True)
    raise ClassicError(f"no end within {LIMIT_S:g} s")


def _blocking(sock: socket.socket, own: str, server: Endpoint) -> Filtering:
    port = sock.getsockname()[1]
    try:
        kind, _ = stun.get_nat_type(sock, own, port, stun_host=str(server.address), stun_port=server.port)
    except (KeyError, ValueError, IndexError, TypeError, OSError) as error:
        raise ClassicError(f"its answers can't be read ({type(error).__name__})") from error
    if kind not in FILTERING:
        raise ClassicError(f"it ended with {kind!r}")
    return FILTERING[kind]
