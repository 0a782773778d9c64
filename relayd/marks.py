"""The numbers by which relayd is known on a host. Each is defined here and nowhere else."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network

FWMARK = 0x574B
"""Mark on relay connections, proxy sockets and probes: such packets never go into the tunnel they carry."""

DEFAULT_INTERFACE = "wire_kube"
DEFAULT_LISTEN_PORT = 51820
DEFAULT_MTU = 1420
RELAY_PORT = 3478
PROXY_PORT = 22347
"""UDP port of the agent's socket on `lo`, below Linux's ephemeral ports (32768 and up)."""

PROXY_NETWORK = IPv4Network("127.64.0.0/10")
"""Each relayed peer has an address here, derived from its public key: the same after every restart."""

HANDSHAKE_FRESH_S = 180.0
"""A session is dead when its last handshake is older: REJECT_AFTER_TIME of the WireGuard paper, section 6."""


def set_mark(sock: socket.socket) -> None:
    """Set SO_MARK on `sock`. Raises PermissionError where CAP_NET_ADMIN is lacking."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
