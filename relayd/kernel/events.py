"""Tells when somebody changed what relayd keeps on a host, as soon as the kernel says so.

Two netlink sockets: rtnetlink for links, addresses, rules, our table's routes and rp_filter, nfnetlink for
rules in the chains where our exemptions stand. Only these wake anybody: a router's main table or a CNI's
chains can change a hundred times a second. What the kernel doesn't tell (legacy iptables, most sysctls,
WireGuard's own settings) is the periodic look's to find.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Callable, Iterator

import trio

from relayd import marks
from relayd.kernel.firewall import EXEMPTIONS
from relayd.observe import log

_ROUTE, _NETFILTER = 0, 12  # linux/netlink.h
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")

# linux/rtnetlink.h: RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, and the
# bits of RTNLGRP_IPV6_RULE (19) and RTNLGRP_IPV4_NETCONF (24).
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18 | 1 << 23
_ADDRESS_GROUPS = 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
_NFTABLES = 1 << 6  # linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES is 7

_LINK, _ADDRESS, _ROUTES, _RULES, _NETCONF = (16, 17), (20, 21), (24, 25), (32, 33), (80, 81)
# NFTA_RULE_CHAIN is 2 (linux/netfilter/nf_tables.h): what precedes its string is the end of a 2 or of its
# padding. KUBE-POSTROUTING, which kube-proxy fills anew all the time, isn't POSTROUTING.
_CHAIN_NAMES = re.compile(
    b"[\x00\x02](?:%b)\x00" % b"|".join(re.escape(one.chain.encode()) for one in EXEMPTIONS)
)
_IFF_UP, _IFLA_IFNAME, _RTA_TABLE = 1, 3, 15
_MAIN_TABLE = 254
_BUFFER_BYTES = 64 << 10


async def watch(interface: str, changed: Callable[[], None], firewall_changed: Callable[[], None]) -> None:
    """Call one of them for each piece of news, until cancelled. They must not block.

    A socket that can't be had (a sandbox) is told of, and done without.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_listen, _ROUTE, _GROUPS, lambda data: concerns_routing(data, interface), changed)
        nursery.start_soon(_listen, _NETFILTER, _NFTABLES, concerns_firewall, firewall_changed)


async def watch_addresses(changed: Callable[[], None]) -> None:
    """Call `changed` when an address or a default route of this host comes or goes, until cancelled. It must
    not block.

    A socket that can't be had is told of, and done without.
    """
    await _listen(_ROUTE, _ADDRESS_GROUPS, concerns_addresses, changed)


async def _listen(
    protocol: int, groups: int, concerns: Callable[[bytes], bool], changed: Callable[[], None]
) -> None:
    try:
        sock = trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            await sock.bind((0, groups))
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        log.get().info("changes.unwatched", protocol=protocol, error=error.strerror)
        return
    with sock:
        while True:
            try:
                data = await sock.recv(_BUFFER_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    log.get().warning("changes.unwatched", protocol=protocol, error=error.strerror)
                    return
                changed()  # news were lost, whatever they were
                continue
            if concerns(data):
                changed()


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each netlink message; a cut one ends it."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def concerns_routing(data: bytes, interface: str) -> bool:
    """Whether rtnetlink's news are about a rule, a route of our table, or `interface` (or its address)."""
    return any(_concerns(kind, body, interface) for kind, body in _messages(data))


def _concerns(kind: int, body: bytes, interface: str) -> bool:
    if kind in _RULES or kind in _NETCONF:
        return True
    if kind in _ROUTES:  # struct rtmsg has 12 bytes
        table = struct.pack("=I", marks.TABLE)
        return any(name == _RTA_TABLE and value == table for name, value in _attributes(body, 12))
    if kind in _LINK:  # struct ifinfomsg has 16
        name = interface.encode() + b"\0"
        return any(found == _IFLA_IFNAME and value == name for found, value in _attributes(body, 16))
    if kind in _ADDRESS:  # struct ifaddrmsg has 8, the last four are the interface's index
        try:
            return len(body) >= 8 and socket.if_nametoindex(interface) == struct.unpack_from("=I", body, 4)[0]
        except OSError:
            return True  # it is gone
    return False


def concerns_addresses(data: bytes) -> bool:
    """Whether rtnetlink's news are about any address, or about a default route of the main table."""
    for kind, body in _messages(data):
        if kind in _ADDRESS:
            return True
        # struct rtmsg: family, length of the destination's prefix, ..., table
        if kind in _ROUTES and len(body) >= 12 and body[1] == 0 and body[4] == _MAIN_TABLE:
            return True
    return False


def concerns_firewall(data: bytes) -> bool:
    """Whether nfnetlink's news are about a chain of an exemption's: they carry its name."""
    return _CHAIN_NAMES.search(data) is not None
