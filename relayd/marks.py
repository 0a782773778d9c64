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

TABLE = 22347
"""Routing table of what goes into the tunnel of an interface that relayd made. All of it is relayd's."""

TABLE_PRIORITY = 200
"""Of the policy rule that has every packet look into TABLE."""

MARK_PRIORITY_MIN = 110
MARK_PRIORITY_MAX = 199
"""Of the rule that sends marked packets to the main table: after the local table, before TABLE. CNIs move the
local table's rule, to 100 as a rule."""

FIREWALL_CHAIN = "KUBE-FIREWALL"
"""kubelet's: it drops packets to 127.0.0.0/8 of which a CNI made the source something else."""

FIREWALL_COMMENT = "wirekube: allow WG relay proxy on loopback"

NAT_CHAIN = "KUBE-POSTROUTING"
"""kube-proxy's: it gives another source to what carries the bit 0x4000 of the mark, as FWMARK does."""

NAT_COMMENT = "relayd: WireGuard packets keep their source"

HANDSHAKE_FRESH_S = 180.0
"""A session is dead when its last handshake is older: REJECT_AFTER_TIME of the WireGuard paper, section 6."""


def set_mark(sock: socket.socket) -> None:
    """Set SO_MARK on `sock`. Raises PermissionError where CAP_NET_ADMIN is lacking."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
