"""Network interfaces of this host: what kind one is, and making a WireGuard one with its addresses."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from relayd.kernel import hints, rtnl
from relayd.kernel.pyroute import AsyncIPRoute, NetlinkError

Address = IPv4Interface | IPv6Interface

MADE_HERE = "made by relayd"
"""The alias of an interface that relayd made. It lives as long as the interface does."""

_IFF_UP = 1  # linux/if.h
_SCOPE_LINK = 253  # linux/rtnetlink.h, RT_SCOPE_LINK


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel lists it. `kind` is "wireguard", "tun", "veth", or "" for a plain device.

    `alias` is free text that `ip link` shows: relayd writes MADE_HERE to the interfaces that it makes.
    """

    name: str
    index: int
    kind: str
    mtu: int
    is_up: bool
    alias: str = ""


async def find(name: str) -> Link | None:
    """The interface called `name`, None if there is none. Needs no capability. Raises HostError."""

    async def look() -> Link | None:
        async with AsyncIPRoute() as kernel:
            return await _find(kernel, name)

    return await rtnl.call(f"look for {name}", look)


async def all_links() -> list[Link]:
    """Every interface, by name. Needs no capability. Raises HostError."""

    async def look() -> list[Link]:
        async with AsyncIPRoute() as kernel:
            links = [_link(message) async for message in await kernel.link("dump")]
        return sorted(links, key=lambda link: link.name)

    return await rtnl.call("list interfaces", look)


async def make_wireguard(name: str) -> None:
    """Make a WireGuard interface in the kernel, down, without a key, and known as ours. Raises HostError."""

    async def make() -> None:
        async with AsyncIPRoute() as kernel:
            try:
                await kernel.link("add", ifname=name, kind="wireguard")
            except NetlinkError as error:
                if error.code == errno.EOPNOTSUPP:
                    raise hints.no_wireguard(name) from error
                raise
            # Not part of the message above: the kernel ignores an alias there (rtnl_create_link).
            await kernel.link("set", ifname=name, IFLA_IFALIAS=MADE_HERE)

    await rtnl.call(f"make {name}", make)


async def mark_as_ours(name: str) -> None:
    """Give the interface `name` the alias MADE_HERE. Raises HostError."""

    async def go() -> None:
        async with AsyncIPRoute() as kernel:
            await kernel.link("set", ifname=name, IFLA_IFALIAS=MADE_HERE)

    await rtnl.call(f"mark {name}", go)


async def remove(name: str) -> None:
    """Remove the interface `name`, if it is there. Raises HostError."""

    async def go() -> None:
        async with AsyncIPRoute() as kernel:
            link = await _find(kernel, name)
            if link is not None:
                await kernel.link("del", index=link.index)

    await rtnl.call(f"remove {name}", go)


@dataclass(frozen=True, slots=True)
class AddressChange:
    """What `bring_up` changed about an interface's addresses."""

    added: tuple[Address, ...]
    removed: tuple[Address, ...]


async def bring_up(name: str, *, mtu: int, addresses: Sequence[Address]) -> AddressChange:
    """Give `name` this MTU and exactly these addresses, and set it up. What is right is not written again.

    No addresses: those that it has stay, whoever gave them. IPv6 link-local ones always stay: the kernel
    makes them. Raises HostError.
    """

    async def change() -> AddressChange:
        async with AsyncIPRoute() as kernel:
            link = await _find(kernel, name)
            if link is None:
                raise hints.no_interface(name, [])
            if link.mtu != mtu:
                await kernel.link("set", index=link.index, mtu=mtu)
            before = await _addresses(kernel, link.index)
            removed = tuple(address for address in before if addresses and address not in addresses)
            # The old go first: of two in one network the kernel would go on using the older as source.
            for address in removed:
                await _address(kernel, "del", link, address)
            # Read again: an IPv4 address may have taken others of its network along (see _address).
            left = await _addresses(kernel, link.index) if removed else before
            added = tuple(address for address in addresses if address not in left)
            for address in added:
                await _address(kernel, "add", link, address)
            if not link.is_up:
                await _up(kernel, link)
            return AddressChange(added, removed)

    return await rtnl.call(f"set up {name}", change)


async def addresses_of(name: str) -> list[Address]:
    """The interface's addresses, IPv6 link-local ones aside; none when it isn't there. Raises HostError."""

    async def look() -> list[Address]:
        async with AsyncIPRoute() as kernel:
            link = await _find(kernel, name)
            return [] if link is None else await _addresses(kernel, link.index)

    return await rtnl.call(f"read the addresses of {name}", look)


async def _up(kernel: Any, link: Link) -> None:
    try:
        await kernel.link("set", index=link.index, state="up")
    except NetlinkError as error:
        if error.code == errno.EADDRINUSE:  # the kernel opens WireGuard's sockets here
            raise hints.port_taken_at_up(link.name) from error
        raise


async def _find(kernel: Any, name: str) -> Link | None:
    try:
        messages = await kernel.link("get", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    return _link(messages[0]) if messages else None


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=(info.get_attr("IFLA_INFO_KIND") if info is not None else None) or "",
        mtu=message.get_attr("IFLA_MTU"),
        is_up=bool(message["flags"] & _IFF_UP),
        alias=message.get_attr("IFLA_IFALIAS") or "",
    )


async def _addresses(kernel: Any, index: int) -> list[Address]:
    found = []
    async for message in await kernel.addr("dump", match={"index": index}):
        if message["family"] == socket.AF_INET6 and message["scope"] == _SCOPE_LINK:
            continue
        # IFA_LOCAL is one's own address; IFA_ADDRESS is the other end's on a point-to-point link.
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        found.append(ip_interface(f"{text}/{message['prefixlen']}"))
    return found


async def _address(kernel: Any, verb: str, link: Link, address: Address) -> None:
    try:
        await kernel.addr(
            verb, index=link.index, address=str(address.ip), prefixlen=address.network.prefixlen
        )
    except NetlinkError as error:
        if verb == "add" and address.version == 6 and error.code == errno.EACCES:
            raise hints.no_ipv6(f"give {link.name} the address {address}", link.name) from error
        # With a primary IPv4 address the kernel removes its secondaries, unless promote_secondaries is on.
        if not (verb == "del" and error.code == errno.EADDRNOTAVAIL):
            raise
