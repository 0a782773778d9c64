"""The addresses of this host's interfaces: where somebody on the same network, or on the internet, may reach
it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from relayd.kernel import routing, rtnl
from relayd.kernel.pyroute import AsyncIPRoute

Address = IPv4Address | IPv6Address

_IFF_UP = 1  # linux/if.h
_IFA_F_TENTATIVE, _IFA_F_DEPRECATED, _IFA_F_DADFAILED = 0x40, 0x20, 0x08  # linux/if_addr.h
_IFA_F_TEMPORARY = 0x01
_UNUSABLE = _IFA_F_TENTATIVE | _IFA_F_DEPRECATED | _IFA_F_DADFAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """One address of one interface that is up. Link-local IPv6 ones have their scope."""

    address: Address
    interface: str
    kind: str
    """Of the interface, as the kernel has it: "bridge", "veth"; empty for a plain device."""

    leads_out: bool
    """Whether a default route of the main table goes through that interface."""

    temporary: bool = False
    """An IPv6 privacy address (RFC 8981): it will go within a day or a week."""


async def host_addresses() -> list[HostAddress]:
    """All of them but loopback's, and but those that can't be used yet or any more. Raises HostError."""

    async def look() -> list[HostAddress]:
        async with AsyncIPRoute() as kernel:
            links = [message async for message in await kernel.link("dump")]
            found = [message async for message in await kernel.addr("dump")]
        return _joined(links, found, ways_out)

    ways_out = {
        device
        for version in (4, 6)
        for route in await routing.default_routes(version)
        for device in route.devices
    }
    return await rtnl.call("list this host's addresses", look)


async def default_gateways() -> list[IPv4Address]:
    """The IPv4 gateways of the main table's default routes, the preferred one first. Raises HostError."""
    ways = sorted(await routing.default_routes(4), key=lambda route: route.metric)
    return [route.gateway for route in ways if isinstance(route.gateway, IPv4Address)]


def _joined(links: Sequence[Any], found: Sequence[Any], ways_out: Collection[int]) -> list[HostAddress]:
    up = {link["index"]: link for link in links if link["flags"] & _IFF_UP}
    addresses = []
    for message in found:
        link = up.get(message["index"])
        # IFA_LOCAL is the own one; on a point-to-point link IFA_ADDRESS is the other end's.
        text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
        flags = message.get("IFA_FLAGS") or message["flags"]
        if link is None or text is None or flags & _UNUSABLE:
            continue
        name = str(link.get("IFLA_IFNAME"))
        address = ip_address(text)
        if address.is_loopback:
            continue
        if address.version == 6 and address.is_link_local:
            address = IPv6Address(f"{text}%{name}")
        info = link.get("IFLA_LINKINFO")
        addresses.append(
            HostAddress(
                address=address,
                interface=name,
                kind=str(info.get("IFLA_INFO_KIND") or "") if info is not None else "",
                leads_out=message["index"] in ways_out,
                temporary=bool(address.version == 6 and flags & _IFA_F_TEMPORARY),
            )
        )
    return addresses
