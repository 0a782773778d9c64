"""UDP from and to a port that another socket holds: raw sockets with a UDP header of our own.

Linux gives a copy of each UDP datagram to every raw UDP socket, whoever holds the port, and lets a raw socket
send what looks as if it came from that port. So the NAT mapping that is found out, and kept, is the one that
WireGuard's own packets go through. raw(7), ipv6(7), ip(7).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol

from relayd.endpoints import Endpoint
from relayd.netio import bpf, mmsg

Address = IPv4Address | IPv6Address
Mark = Callable[[socket.socket], None]
Patterns = Sequence[Sequence[bpf.Word]]

# Not in Python's socket module. linux/in.h, linux/in6.h
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_DONT: Final = 0
_IPV6_CHECKSUM: Final = 7
_CHECKSUM_AT: Final = 6
"""Where UDP's header has its checksum (RFC 768)."""

_UDP = struct.Struct("!HHHH")  # source port, destination port, length, checksum
_PSEUDO = struct.Struct("!4s4sBBH")  # RFC 768: source, destination, zero, protocol, UDP length
_PKTINFO6 = struct.Struct("@16sI")  # struct in6_pktinfo: address, interface
_PKTINFO4 = struct.Struct("@i4s4s")  # struct in_pktinfo: interface, source, destination

_IPV4_HEADER_BYTES: Final = 20
_RECEIVE_BYTES: Final = 65535
_CONTROL_BYTES: Final = socket.CMSG_SPACE(_PKTINFO6.size)
_ANY_BYTES: Final = 4 << 10
"""Drained datagrams are thrown away: what of them is read doesn't matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datagram:
    """One received UDP datagram. `local` is the own address that it was sent to; a link-local IPv6 `source`
    has its scope."""

    payload: bytes
    source: Endpoint
    local: Address
    interface: int = 0
    """The index of the one that it came in by; 0: not known."""


class UdpLeg(Protocol):
    """One family's way to send and receive UDP datagrams."""

    version: int
    """4 or 6."""
    port: int
    """What its datagrams come from."""

    def fileno(self) -> int:
        """To wait on."""

    def set_port(self, port: int) -> None:
        """Send from and receive for another port from now on. Raises OSError."""

    def send(self, payload: bytes, to: Endpoint, source: Address | None) -> None:
        """Send one datagram, without waiting. Raises OSError as the kernel has it."""

    def receive(self) -> Datagram | None:
        """One datagram; None: this one was malformed. Raises BlockingIOError when there is none."""

    def close(self) -> None:
        """Close the socket."""


def checksum(source: IPv4Address, to: IPv4Address, segment: bytes) -> int:
    """UDP's checksum over IPv4 (RFC 768) of `segment`: UDP header with a zero checksum, and payload."""
    data = _PSEUDO.pack(source.packed, to.packed, 0, socket.IPPROTO_UDP, len(segment)) + segment
    # The ones' complement sum of 16-bit words is the number's rest by 0xFFFF, since 0x10000 leaves 1. Zero
    # would mean "no checksum" and is sent as 0xFFFF instead, which is what a rest of 0 gives.
    return int(0xFFFF - int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF)


def scoped(host: str, scope: int) -> IPv6Address:
    """An IPv6 address as a socket told it. Link-local ones mean nothing without their interface's name."""
    address = IPv6Address(host.partition("%")[0])
    if not (scope and address.is_link_local):
        return address
    try:
        return IPv6Address(f"{address}%{socket.if_indextoname(scope)}")
    except OSError:  # the interface went meanwhile
        return address


def _name6(address: Address, port: int) -> tuple[str, int, int, int]:
    scope = address.scope_id if isinstance(address, IPv6Address) else None
    return str(address).partition("%")[0], port, 0, socket.if_nametoindex(scope) if scope else 0


def source_for(to: Endpoint, mark: Mark) -> Address:
    """The own address that datagrams to `to` leave from, as routing has it now. Raises OSError: no route."""
    family = socket.AF_INET6 if to.address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        mark(sock)
        if to.address.version == 6:
            sock.connect(_name6(to.address, to.port))
            name = sock.getsockname()
            return scoped(name[0], name[3])
        sock.connect((str(to.address), to.port))
        return IPv4Address(sock.getsockname()[0])


def own_source(address: Address) -> tuple[int, int, bytes]:
    """The control message that makes `address`, one of this host's, a datagram's source (ip(7), ipv6(7))."""
    if address.version == 6:
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(address.packed, _name6(address, 0)[3])
    # On sending the kernel takes `ipi_spec_dst` for the source.
    return socket.IPPROTO_IP, mmsg.IP_PKTINFO, _PKTINFO4.pack(0, address.packed, bytes(4))


def _drain(sock: socket.socket) -> None:
    """Throw away what came between the socket's making and its filter's: the filter hasn't seen it."""
    try:
        while True:
            sock.recv(_ANY_BYTES)
    except BlockingIOError:
        return


def open_marked(family: socket.AddressFamily, kind: socket.SocketKind, mark: Mark) -> socket.socket:
    """A socket for UDP, plain or raw, that fragments as WireGuard's does. Raises OSError."""
    protocol = socket.IPPROTO_UDP if kind == socket.SOCK_RAW else 0
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        mark(sock)
        # As WireGuard's own packets leave: they may be fragmented on the way, so probes of their size must be
        # judged by whether they arrive, not by whether they arrive in one piece.
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            if kind == socket.SOCK_RAW:
                # The kernel fills the checksum in, and drops what comes with a wrong one (RFC 3542, 3.1).
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _CHECKSUM_AT)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
            sock.setsockopt(socket.IPPROTO_IP, mmsg.IP_PKTINFO, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class _Leg:
    """What all legs have in common."""

    version = 4

    def __init__(self, sock: socket.socket, port: int, patterns: Patterns, *, ip_header: bool) -> None:
        self._sock, self._patterns, self._ip_header = sock, patterns, ip_header
        self.port = port
        try:
            self._filter()
        except BaseException:
            sock.close()
            raise

    def _filter(self) -> None:
        bpf.attach(self._sock, bpf.udp_filter(self.port, self._patterns, ip_header=self._ip_header))
        _drain(self._sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    def set_port(self, port: int) -> None:
        self.port = port
        self._filter()

    def close(self) -> None:
        self._sock.close()


class RawUdp4(_Leg):
    """IPv4 from a port that somebody else holds."""

    def __init__(self, port: int, patterns: Patterns, mark: Mark) -> None:
        """Raises PermissionError without CAP_NET_RAW, OSError else."""
        self._mark = mark
        super().__init__(open_marked(socket.AF_INET, socket.SOCK_RAW, mark), port, patterns, ip_header=True)

    def send(self, payload: bytes, to: Endpoint, source: Address | None) -> None:
        # The kernel would choose the source itself, but the checksum covers it.
        chosen = source if source is not None else source_for(to, self._mark)
        assert isinstance(chosen, IPv4Address)
        assert isinstance(to.address, IPv4Address)
        length = _UDP.size + len(payload)
        segment = _UDP.pack(self.port, to.port, length, 0) + payload
        total = checksum(chosen, to.address, segment)
        header = _UDP.pack(self.port, to.port, length, total)
        self._sock.sendmsg([header, payload], [own_source(chosen)], 0, (str(to.address), 0))

    def receive(self) -> Datagram | None:
        packet, control, _, _ = self._sock.recvmsg(_RECEIVE_BYTES, _CONTROL_BYTES)
        # The kernel has looked at the IP header, but not at UDP's: raw sockets come before that.
        start = 4 * (packet[0] & 15)
        if start < _IPV4_HEADER_BYTES or len(packet) < start + _UDP.size:
            return None
        source_port, port, length, _ = _UDP.unpack_from(packet, start)
        if port != self.port or not source_port or not _UDP.size <= length <= len(packet) - start:
            return None
        return Datagram(
            payload=packet[start + _UDP.size : start + length],
            source=Endpoint(IPv4Address(packet[12:16]), source_port),
            local=IPv4Address(packet[16:20]),
            interface=_interface(control),
        )


def _local6(control: list[tuple[int, int, bytes]]) -> IPv6Address | None:
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) == _PKTINFO6.size:
            packed, interface = _PKTINFO6.unpack(data)
            return scoped(str(IPv6Address(packed)), interface)
    return None


def _local4(control: list[tuple[int, int, bytes]]) -> IPv4Address | None:
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IP, mmsg.IP_PKTINFO) and len(data) == _PKTINFO4.size:
            return IPv4Address(_PKTINFO4.unpack(data)[2])
    return None


def _interface(control: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IP, mmsg.IP_PKTINFO) and len(data) == _PKTINFO4.size:
            return int(_PKTINFO4.unpack(data)[0])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) == _PKTINFO6.size:
            return int(_PKTINFO6.unpack(data)[1])
    return 0


class RawUdp6(_Leg):
    """IPv6 from a port that somebody else holds."""

    version = 6

    def __init__(self, port: int, patterns: Patterns, mark: Mark) -> None:
        """Raises PermissionError without CAP_NET_RAW, OSError else."""
        super().__init__(open_marked(socket.AF_INET6, socket.SOCK_RAW, mark), port, patterns, ip_header=False)

    def send(self, payload: bytes, to: Endpoint, source: Address | None) -> None:
        header = _UDP.pack(self.port, to.port, _UDP.size + len(payload), 0)
        control = [own_source(source)] if source is not None else []
        self._sock.sendmsg([header, payload], control, 0, _name6(to.address, 0))

    def receive(self) -> Datagram | None:
        segment, control, _, name = self._sock.recvmsg(_RECEIVE_BYTES, _CONTROL_BYTES)
        local = _local6(control)
        if len(segment) < _UDP.size or local is None:
            return None
        source_port, port, length, _ = _UDP.unpack_from(segment)
        if port != self.port or not source_port or not _UDP.size <= length <= len(segment):
            return None
        return Datagram(
            payload=segment[_UDP.size : length],
            source=Endpoint(scoped(name[0], name[3]), source_port),
            local=local,
            interface=_interface(control),
        )


class OwnUdp(_Leg):
    """An ordinary UDP socket on a port of its own: what there is where raw sockets can't be had."""

    def __init__(self, version: int, patterns: Patterns, mark: Mark) -> None:
        """On any free port. Raises OSError."""
        self.version = version
        sock = open_marked(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM, mark)
        try:
            if version == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::" if version == 6 else "", 0))
        except BaseException:
            sock.close()
            raise
        super().__init__(sock, sock.getsockname()[1], patterns, ip_header=False)

    def set_port(self, port: int) -> None:
        """Nothing: its port is its own, whatever WireGuard's is."""

    def send(self, payload: bytes, to: Endpoint, source: Address | None) -> None:
        if self.version == 6:
            control = [own_source(source)] if source is not None else []
            self._sock.sendmsg([payload], control, 0, _name6(to.address, to.port))
        else:
            control = [own_source(source)] if source is not None else []
            self._sock.sendmsg([payload], control, 0, (str(to.address), to.port))

    def receive(self) -> Datagram | None:
        payload, control, _, name = self._sock.recvmsg(_RECEIVE_BYTES, _CONTROL_BYTES)
        local = _local6(control) if self.version == 6 else _local4(control)
        if local is None:
            return None
        address = scoped(name[0], name[3]) if self.version == 6 else IPv4Address(name[0])
        source = Endpoint(address, name[1])
        return Datagram(payload=payload, source=source, local=local, interface=_interface(control))
