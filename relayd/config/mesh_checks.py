"""What must hold between the peers and the interface of a file, each of which is right by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from relayd import marks
from relayd.config.net_values import MIN_MTU_IPV6
from relayd.config.toml import Document, Place
from relayd.config.types import InterfaceConfig, PeerConfig
from relayd.errors import ConfigError
from relayd.keys import PublicKey

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Claim:
    """Element `element` (from 0) of the allowed IPs of peer `peer` (from 0)."""

    peer: int
    element: int
    network: Network


def interface_mistakes(owned: InterfaceConfig, proxy_port: int, document: Document) -> Iterator[ConfigError]:
    """What would keep this interface from working."""
    has_ipv6 = any(address.version == 6 for address in owned.address)
    if has_ipv6 and owned.mtu < MIN_MTU_IPV6:
        yield document.place(("interface", "mtu")).error(
            f"{owned.mtu} is too small for the interface's IPv6 address",
            f"at least {MIN_MTU_IPV6} (RFC 8200)",
        )
    if owned.listen_port == proxy_port:
        yield document.place(("interface", "listen_port")).error(
            f"{proxy_port} is the port of the agent's own socket on lo",
            f"another, for example {marks.DEFAULT_LISTEN_PORT}, or set proxy_port in [agent]",
        )


def peer_mistakes(
    peers: Mapping[int, PeerConfig], owned: InterfaceConfig | None, document: Document
) -> Iterator[ConfigError]:
    """Peers that are ourselves, or claim what another peer or we have.

    `peers` by their place in the file, from 0. Without `owned` (its table has mistakes of its own) they are
    compared among themselves.
    """
    own_key = owned.private_key.public() if owned is not None and owned.private_key is not None else None
    own_hosts = {address.ip for address in owned.address} if owned is not None else set()
    first: dict[PublicKey, int] = {}
    named: dict[str, int] = {}
    for index, peer in peers.items():
        key_place = document.place(("peer", index, "public_key"))
        if peer.public_key == own_key:
            yield key_place.error("is this node's own key", "the public key of another node")
        if first.setdefault(peer.public_key, index) != index:
            yield key_place.error(
                f"the same key as {_other(document, first[peer.public_key])}",
                "one [[peer]] a key; put all its allowed_ips there",
            )
        if peer.name and named.setdefault(peer.name, index) != index:
            yield document.place(("peer", index, "name")).error(
                f"the same name as {_other(document, named[peer.name])}",
                "a name is one peer's, as its key is",
            )
        for element, network in enumerate(peer.allowed_ips):
            if network.num_addresses == 1 and network.network_address in own_hosts:
                yield document.place(("peer", index, "allowed_ips", element)).error(
                    f"{network} is this node's own address", "the addresses of the other node"
                )
    for later, earlier in sorted(overlaps(peers), key=lambda pair: (pair[0].peer, pair[0].element)):
        yield document.place(("peer", later.peer, "allowed_ips", later.element)).error(
            f"{later.network} overlaps {earlier.network} of {_other(document, earlier.peer)}",
            "an address belongs to one peer",
        )


def _other(document: Document, peer: int) -> str:
    place: Place = document.place(("peer", peer))
    return f"{place.key}, line {place.line}"


def overlaps(peers: Mapping[int, PeerConfig]) -> Iterator[tuple[Claim, Claim]]:
    """Pairs (later, earlier in the file) of allowed IPs of different peers that share addresses.

    At least one where there is any, not all of them. WireGuard itself takes the longest
    prefix, and a default route (0.0.0.0/0, ::/0) beside other peers' networks is how an exit node is written:
    it clashes with another default route alone. Any other overlap is taken for the slip that it mostly is.
    """
    claims = [
        Claim(index, element, network)
        for index, peer in peers.items()
        for element, network in enumerate(peer.allowed_ips)
    ]
    # Sorted like this a network comes after all that contain it, and CIDR networks nest or are disjoint.
    claims.sort(
        key=lambda one: (one.network.version, int(one.network.network_address), one.network.prefixlen)
    )
    around: list[Claim] = []
    for claim in claims:
        while around and not _contains(around[-1].network, claim.network):
            around.pop()
        for outer in around:
            default_route = outer.network.prefixlen == 0 and claim.network.prefixlen > 0
            if outer.peer != claim.peer and not default_route:
                yield (claim, outer) if outer.peer < claim.peer else (outer, claim)
                break
        around.append(claim)


def _contains(outer: Network, inner: Network) -> bool:
    return (
        outer.version == inner.version
        and int(outer.network_address) <= int(inner.network_address)
        and int(inner.broadcast_address) <= int(outer.broadcast_address)
    )
