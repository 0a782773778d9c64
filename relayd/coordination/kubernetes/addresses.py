"""A node's own address in the mesh: derived from its name, and no other node's.

    base + FNV-1a(name) mod (size - 2) + 1          as WireKube's agents do it, who don't look who has it

With 1,000 nodes in a /16 two of them share an address in all likelihood (the birthday problem: 7 pairs). The
node whose resource is older keeps it; the other one takes the next that is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

FNV_OFFSET, FNV_PRIME = 0x811C9DC5, 0x01000193
"""32 bits: https://www.rfc-editor.org/rfc/rfc9923, section 6."""


def fnv1a(text: str) -> int:
    """FNV-1a with 32 bits of `text` in UTF-8."""
    value = FNV_OFFSET
    for byte in text.encode():
        value = (value ^ byte) * FNV_PRIME & 0xFFFF_FFFF
    return value


def preferred(node: str, network: Network) -> Address:
    """The address that a node's name stands for. Raises ValueError when `network` has none for nodes."""
    return network[_preferred_index(node, network)]


def _preferred_index(node: str, network: Network) -> int:
    usable = network.num_addresses - 2
    if usable < 1:
        raise ValueError(f"meshCIDR {network} has no addresses for nodes")
    return fnv1a(node) % usable + 1


def choose(node: str, network: Network, *, has: Address | None, taken: Iterable[Address]) -> Address:
    """The node's address, none of `taken`; `has` is kept when it can be.

    Raises ValueError when `network` is full.
    """
    others = set(taken)
    if has is not None and has in network and has not in others:
        return has
    usable = network.num_addresses - 2
    start = _preferred_index(node, network)
    for step in range(min(usable, len(others) + 1)):
        address = network[(start - 1 + step) % usable + 1]
        if address not in others:
            return address
    raise ValueError(f"meshCIDR {network} is full: {usable} nodes have addresses of it")


def hosts_in(networks: Iterable[str], mesh: Network) -> list[Address]:
    """The single addresses among allowed IPs that lie in `mesh`. What can't be read is none."""
    found: list[Address] = []
    for text in networks:
        try:
            network = network_of(text)
        except ValueError:
            continue
        if network.num_addresses == 1 and network.version == mesh.version and network[0] in mesh:
            found.append(network[0])
    return found


MAX_TEXT = 64
"""Characters; no network takes more."""


def network_of(text: str) -> Network:
    """A network as it is written. Raises ValueError.

    Parsing takes ten microseconds, and a thousand peers have most of theirs at the next look, too.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"{text[:MAX_TEXT]!r} ... is no network")
    return _parsed(text)


@lru_cache(1 << 14)
def _parsed(text: str) -> Network:
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which means something on its own host alone")
    return ip_network(text, strict=False)
