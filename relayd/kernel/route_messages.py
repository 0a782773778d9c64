"""Routes of one table as rtnetlink's messages (rtnetlink(7), linux/rtnetlink.h), and the exchange of many.

A mesh of a thousand nodes has as many routes. By pyroute2, one after the other, they took half a second to
write and a fifth to read, each with the interpreter held; here it is some milliseconds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

import trio

from relayd.kernel import nlmsg
from relayd.kernel.nlmsg import InterruptedDumpError, attribute, attributes_of

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

_RTMSG = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, bits of destination and source, TOS, table, protocol, scope, type, flags."""

_NEXT_HOP = struct.Struct("=HBBi")
"""struct rtnexthop: its length with its attributes, flags, weight, interface."""

_U32 = struct.Struct("=I")
_NEW, _DELETE, _GET = 24, 25, 26
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _MULTIPATH, _TABLE, _VIA, _ENCAP, _NH_ID = (
    1, 4, 5, 6, 7, 9, 15, 18, 22, 30,
)  # fmt: skip
_SPECIAL = frozenset((_GATEWAY, _MULTIPATH, _VIA, _ENCAP, _NH_ID))
_STATIC = 4  # RTPROT_STATIC: routing daemons take the default, "boot", for something to be replaced
_UNICAST = 1
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_SOL_NETLINK, _CAP_ACK, _STRICT_CHECK = 270, 10, 12

BATCH = 64
"""Requests that are sent before their answers are read: each answer takes up a kilobyte of the socket's
buffer, as the kernel counts it, of 208 KiB."""

READ_ATTEMPTS = 10
"""A dump during which routes changed may have missed some, and is made again. On a router whose routes never
stand still the last one has to do."""


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """One route of the table."""

    destination: Network
    device: int
    """The interface's index; 0: it names none."""

    source: Address | None
    metric: int
    plain: bool
    """Whether it leads straight to a device: no gateway, not "unreachable"."""


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A way out of this host's networks."""

    devices: tuple[int, ...]
    """The interfaces' indices: several, where it has several ways."""

    gateway: Address | None
    """None: it has none, or several."""

    metric: int


_Route = TypeVar("_Route", KernelRoute, DefaultRoute)


# Values and bytes ------------------------------------------------------------------------------------------


def put(route: KernelRoute, table: int, sequence: int) -> bytes:
    """The request that sets a plain route, in place of one to the same destination."""
    is_v4 = route.destination.version == 4
    attributes = [attribute(_OIF, _U32.pack(route.device))]
    if route.source is not None:
        attributes.append(attribute(_PREFSRC, route.source.packed))
    scope = _SCOPE_LINK if is_v4 else _SCOPE_UNIVERSE
    flags = nlmsg.REQUEST | nlmsg.ACK | nlmsg.CREATE | nlmsg.REPLACE
    body = _body(route.destination, route.metric, table, (_STATIC, scope, _UNICAST), attributes)
    return nlmsg.message(_NEW, flags, sequence, body)


def remove(destination: Network, metric: int, table: int, sequence: int) -> bytes:
    """The request that removes the route, of whatever kind and scope (fib_table_delete)."""
    body = _body(destination, metric, table, (0, _SCOPE_NOWHERE, 0), [])
    return nlmsg.message(_DELETE, nlmsg.REQUEST | nlmsg.ACK, sequence, body)


def _body(
    destination: Network, metric: int, table: int, kind: tuple[int, int, int], more: Sequence[bytes]
) -> bytes:
    family, bits = _FAMILY[destination.version], destination.prefixlen
    parts = [_RTMSG.pack(family, bits, 0, 0, 0, *kind, 0), attribute(_TABLE, _U32.pack(table))]
    if bits:
        parts.append(attribute(_DST, destination.network_address.packed))
    parts.append(attribute(_PRIORITY, _U32.pack(metric)))
    return b"".join((*parts, *more))


def route_of(body: bytes) -> KernelRoute | None:
    """What an RTM_NEWROUTE says; None: it is none of IPv4 or IPv6. Raises ValueError, struct.error."""
    family, bits, _, _, _, _, _, kind, _ = _RTMSG.unpack_from(body)
    version = {one: number for number, one in _FAMILY.items()}.get(family)
    if version is None:
        return None
    make, network = (IPv4Address, IPv4Network) if version == 4 else (IPv6Address, IPv6Network)
    destination, device, source, metric, plain = make(0), 0, None, 0, kind == _UNICAST
    for name, start, end in attributes_of(body, _RTMSG.size, len(body)):
        if name == _DST:
            destination = make(body[start:end])
        elif name == _PREFSRC:
            source = make(body[start:end])
        elif name == _OIF:
            (device,) = _U32.unpack_from(body, start)
        elif name == _PRIORITY:
            (metric,) = _U32.unpack_from(body, start)
        elif name in _SPECIAL:
            plain = False
    return KernelRoute(network((destination, bits)), device, source, metric, plain)


def default_of(body: bytes) -> DefaultRoute | None:
    """What an RTM_NEWROUTE says, if it is a default route that leads somewhere. Raises ValueError,
    struct.error."""
    family, bits, _, _, _, _, _, kind, _ = _RTMSG.unpack_from(body)
    if bits or kind != _UNICAST or family not in _FAMILY.values():
        return None  # of a million routes nearly all: nothing else of them is looked at
    make = IPv4Address if family == socket.AF_INET else IPv6Address
    devices: list[int] = []
    gateway, metric = None, 0
    for name, start, end in attributes_of(body, _RTMSG.size, len(body)):
        if name == _OIF:
            devices += _U32.unpack_from(body, start)
        elif name == _GATEWAY:
            gateway = make(body[start:end])
        elif name == _PRIORITY:
            (metric,) = _U32.unpack_from(body, start)
        elif name == _MULTIPATH:
            while start + _NEXT_HOP.size <= end:
                length, _, _, device = _NEXT_HOP.unpack_from(body, start)
                devices.append(device)
                start += max(_NEXT_HOP.size, length + 3 & ~3)
    return DefaultRoute(tuple(devices), gateway, metric)


# Exchanges -------------------------------------------------------------------------------------------------


async def read_table(version: int, table: int) -> list[KernelRoute]:
    """All routes of the table, of one IP version. Raises KernelError, OSError, and ValueError or struct.error
    for a kernel that we don't know. To be bounded by the caller."""
    found: list[KernelRoute] = []
    for _ in range(READ_ATTEMPTS):
        found.clear()
        try:
            (await _dump(version, table, route_of, found)).check()
        except InterruptedDumpError:
            continue
        break
    return found


async def read_defaults(version: int, table: int) -> list[DefaultRoute]:
    """The default routes alone; likewise. One that comes or goes meanwhile is news of its own."""
    found: list[DefaultRoute] = []
    await _dump(version, table, default_of, found)
    return found


async def _dump(
    version: int, table: int, of: Callable[[bytes], _Route | None], found: list[_Route]
) -> nlmsg.Dump:
    """What `of` makes of the table's routes goes into `found`."""
    answer = nlmsg.Dump(1)
    with _socket() as sock:
        request = _RTMSG.pack(_FAMILY[version], *[0] * 8) + attribute(_TABLE, _U32.pack(table))
        await sock.send(nlmsg.message(_GET, nlmsg.REQUEST | nlmsg.DUMP, 1, request))
        while not answer.done:
            for kind, body in answer.take(await sock.recv(nlmsg.BUFFER_BYTES)):
                if kind == _NEW and (route := of(body)) is not None:
                    found.append(route)
    return answer


async def carry_out(requests: Sequence[bytes]) -> list[int]:
    """Send requests that `put` and `remove` have made, numbered from 1 on. -> each one's errno, 0: done

    Raises KernelError and OSError when the kernel can't be talked to. To be bounded by the caller.
    """
    codes = [0] * len(requests)
    with _socket() as sock:
        for first in range(0, len(requests), BATCH):
            batch = requests[first : first + BATCH]
            await sock.send(b"".join(batch))
            waiting = len(batch)
            while waiting:
                for sequence, kind, _, body in nlmsg.split(await sock.recv(nlmsg.BUFFER_BYTES)):
                    if kind == nlmsg.ERROR and first < sequence <= first + len(batch):
                        codes[sequence - 1] = nlmsg.code_of(body)
                        waiting -= 1
    return codes


def _socket() -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        # The kernel picks out the table: a router's main one can have a million routes.
        sock.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        sock.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # errors without the request in them
    except BaseException:
        sock.close()
        raise
    return sock
