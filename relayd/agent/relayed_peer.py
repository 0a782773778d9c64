"""A peer of the interface as the proxy has it, and what went through for it."""

from __future__ import annotations

from ipaddress import IPv4Address

from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.netio import mmsg


class RelayedPeer:
    """Its key, its loopback address, and its counters.

    tx is from WireGuard towards the relay, rx from the relay; frames, and bytes of their payloads. A frame
    counts when it is taken, whatever happens to it later. gone is what a relay said of the peer last: a
    reason (`identity_frames.Gone`), when, and how often it has said so.
    """

    __slots__ = (
        "address",
        "direct",
        "direct_at",
        "gone_at",
        "gone_count",
        "gone_reason",
        "key",
        "rx_bytes",
        "rx_frames",
        "source",
        "tx_bytes",
        "tx_frames",
    )

    def __init__(self, key: PublicKey, address: IPv4Address) -> None:
        self.key, self.address = key, address
        self.source = mmsg.pktinfo_cmsg(address)
        self.tx_frames = self.tx_bytes = self.rx_frames = self.rx_bytes = 0
        self.gone_count = self.gone_reason = 0
        self.gone_at: float | None = None
        self.direct: Endpoint | None = None
        self.direct_at = 0.0
