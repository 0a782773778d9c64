"""Hands WireGuard a peer's relayed packets as if they had come directly: from a raw socket on `lo`.

WireGuard roams: it sends to where a peer's last authenticated packet came from. After a change to a direct
path, packets that are still under way through the relay would move the endpoint back to the proxy, at once
and for good, since the answer goes that way too. With the direct endpoint as their source they move nothing.

The destination is the own address that leads to that endpoint, and not 127.0.0.1: kubelet's firewall drops
what goes there from elsewhere.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from relayd import marks
from relayd.endpoints import Endpoint
from relayd.netio.raw_udp import Address, Mark, checksum, source_for
from relayd.observe import log

_IP4 = struct.Struct("!BBHHHBBH4s4s")  # RFC 791: version and length ... source, destination
_IP6 = struct.Struct("!IHBB16s16s")  # RFC 8200
_UDP = struct.Struct("!HHHH")
_PSEUDO6 = struct.Struct("!16s16sI3xB")  # RFC 8200, section 8.1
_HOPS: Final = 64
_ROUTES: Final = 4096
"""Own addresses remembered, by the endpoint that they lead to."""
_ROUTE_S: Final = 1.0
"""So long: a packet to an address that isn't ours any more would leave the host. Asking takes some 20 us."""


class Reinjector:
    """Raw sockets, one for each IP version that there is."""

    def __init__(self, port: int, *, mark: Mark = marks.set_mark) -> None:
        """`port` is WireGuard's. Where raw sockets can't be had, `lacks` says why, and nothing is handed
        over."""
        self.port = port
        self.lacks = ""
        self.counts: Counter[str] = Counter()
        """Packets handed over, and those that the kernel didn't take, by reason."""
        self._mark = mark
        self._sockets: dict[int, socket.socket] = {}
        self._own: dict[Endpoint, tuple[Address, float]] = {}
        """What was found, and until when it is believed."""
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            try:
                # IPPROTO_RAW: the header is ours, for both families (raw(7), ipv6(7)).
                sock = socket.socket(
                    family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
                )
            except OSError as error:  # no CAP_NET_RAW, or no IPv6
                if version == 4:
                    self.lacks = (
                        "CAP_NET_RAW is missing" if isinstance(error, PermissionError) else str(error)
                    )
                continue
            try:
                mark(sock)
            except OSError as error:
                sock.close()
                self.lacks = f"the mark can't be set: {error.strerror}"
                continue
            self._sockets[version] = sock

    def can(self, source: Endpoint) -> bool:
        """Whether packets of this IP version can be handed over."""
        return source.address.version in self._sockets

    def forget_routes(self) -> None:
        """Own addresses changed."""
        self._own.clear()

    def hand_over(self, payload: memoryview, source: Endpoint) -> bool:
        """Give WireGuard `payload` as from `source`. Whether the kernel took it; never blocks."""
        sock = self._sockets.get(source.address.version)
        if sock is None:
            return False
        try:
            own, until = self._own.get(source, (None, 0.0))
            now = time.monotonic()
            if own is None or now >= until:
                own = source_for(source, self._mark)
                if len(self._own) >= _ROUTES:
                    self._own.clear()
                self._own[source] = own, now + _ROUTE_S
            sock.sendto(self._packet(payload, source, own), (str(own).partition("%")[0], 0))
        except OSError as error:
            self._own.pop(source, None)  # the route may be another one now
            self.counts[f"refused: {error.strerror}"] += 1
            log.get().debug("reinjector.refused", source=str(source), error=error.strerror)
            return False
        self.counts["handed over"] += 1
        return True

    def _packet(self, payload: memoryview, source: Endpoint, own: Address) -> bytes:
        length = _UDP.size + len(payload)
        if isinstance(source.address, IPv4Address) and isinstance(own, IPv4Address):
            segment = _UDP.pack(source.port, self.port, length, 0) + payload
            segment = (
                _UDP.pack(source.port, self.port, length, checksum(source.address, own, segment)) + payload
            )
            total = _IP4.size + length
            # The kernel fills in the header's checksum and id (raw(7)).
            header = _IP4.pack(
                0x45, 0, total, 0, 0, _HOPS, socket.IPPROTO_UDP, 0, source.address.packed, own.packed
            )
            return header + segment
        assert isinstance(source.address, IPv6Address)
        assert isinstance(own, IPv6Address)
        segment = _UDP.pack(source.port, self.port, length, 0) + payload
        pseudo = _PSEUDO6.pack(source.address.packed, own.packed, length, socket.IPPROTO_UDP)
        data = pseudo + segment
        total = 0xFFFF - int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
        segment = _UDP.pack(source.port, self.port, length, total) + payload
        header = _IP6.pack(6 << 28, length, socket.IPPROTO_UDP, _HOPS, source.address.packed, own.packed)
        return header + segment

    def close(self) -> None:
        """Close the sockets. Twice is no error."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
