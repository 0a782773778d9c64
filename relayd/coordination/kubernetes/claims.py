"""Whose a key or a network is that several resources claim, and what of a peer's resource can be used. Pure.

    what this node has            no other's, whatever their resources say
    an address in meshCIDR        that node's whose name stands for it, if it claims it; else the older one's
    any other network             the older one's (the API server says how old a resource is)
    a key                         whose it is: what is claimed under it leads to who has the private one

So an agent that was taken over, and may write the resource of its own node alone, can't do by that what it
may not do to another's: take the address that a node has by its name, or cut a node off by naming its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address

from relayd.config.net_values import public_key
from relayd.config.values import WrongError
from relayd.coordination.kubernetes import addresses, resources
from relayd.coordination.kubernetes.addresses import Address, Network
from relayd.coordination.model import MeshPeer
from relayd.endpoints import Endpoint
from relayd.keys import PublicKey

MAX_ALLOWED_IPS = 10_000
"""Of one resource. Other programs' definitions have no limit, and etcd's is some 70,000: each change of so
many would keep every agent busy for ten seconds."""


def age(peer: resources.Peer) -> tuple[str, str]:
    """Sorts by who was there first."""
    return peer.metadata.creationTimestamp or "~", peer.metadata.name


def has_by_name(name: str, address: Address, overlay: Network) -> bool:
    """Whether a node's name stands for the address in the mesh."""
    return addresses.preferred(name, overlay) == address


def comes_before(one: resources.Peer, other: resources.Peer, address: Address, overlay: Network) -> bool:
    """Which of two nodes that claim an address in the mesh has it: is it `one`?"""
    ranks = [(not has_by_name(peer.metadata.name, address, overlay), age(peer)) for peer in (one, other)]
    return ranks[0] < ranks[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What one resource says that can be used."""

    name: str
    key: PublicKey
    networks: tuple[Network, ...]
    resource: resources.Peer


class Claims:
    """What all resources but this node's own say; what can't be used is a line in `problems`."""

    def __init__(
        self,
        peers: Mapping[str, resources.Peer],
        own_name: str,
        own_key: PublicKey,
        own_networks: Iterable[Network],
        overlay: Network | None,
        problems: list[str],
    ) -> None:
        """`own_networks` are this node's; `overlay` is meshCIDR."""
        self._problems, self._overlay = problems, overlay
        self._own_name, self._own_key = own_name, own_key
        self._claims = [
            claim
            for one in sorted(peers.values(), key=age)
            if one.metadata.name != own_name and (claim := self._claim(one)) is not None
        ]
        self._holders = dict.fromkeys(own_networks, own_name)
        for claim in self._claims:
            for network in claim.networks:
                self._hold(network, claim.name)

    def _claim(self, one: resources.Peer) -> _Claim | None:
        if not one.spec.publicKey:  # its agent hasn't come yet
            return None
        who = f"WireKubePeer {one.metadata.name}"
        try:
            key = public_key(one.spec.publicKey)
        except WrongError as error:
            self._problems.append(f"{who}: publicKey: {error}")
            return None
        if key == self._own_key:
            self._problems.append(f"{who} has the key of {self._own_name}: it is left out")
            return None
        texts = one.spec.allowedIPs[:MAX_ALLOWED_IPS]
        if len(texts) < len(one.spec.allowedIPs):
            self._problems.append(f"{who}: of its allowedIPs the first {MAX_ALLOWED_IPS} count")
        found = networks(texts, f"{who}: allowedIPs", self._problems)
        return _Claim(name=one.metadata.name, key=key, networks=tuple(dict.fromkeys(found)), resource=one)

    def _hold(self, network: Network, name: str) -> None:
        holder, overlay = self._holders.setdefault(network, name), self._overlay
        if holder in (name, self._own_name) or overlay is None:
            return
        address = network.network_address
        if (
            network.num_addresses == 1
            and address in overlay
            and has_by_name(name, address, overlay)
            and not has_by_name(holder, address, overlay)
        ):
            self._holders[network] = name

    def peers(self) -> tuple[dict[PublicKey, MeshPeer], dict[PublicKey, str]]:
        """-> the peers, and the names of their resources"""
        peers: dict[PublicKey, MeshPeer] = {}
        names: dict[PublicKey, str] = {}
        for claim in self._claims:
            who, has = f"WireKubePeer {claim.name}", list[Network]()
            for network in claim.networks:
                if (holder := self._holders[network]) == claim.name:
                    has.append(network)
                else:
                    self._problems.append(f"{who}: {network} is {holder}'s: it is left out")
            before = peers.get(claim.key)
            if before is not None:
                self._problems.append(
                    f"{who} has the key of {names[claim.key]}: packets for either go to who has that key"
                )
            else:
                names[claim.key] = claim.name
            peers[claim.key] = MeshPeer(
                key=claim.key,
                allowed_ips=(*(before.allowed_ips if before is not None else ()), *has),
                endpoint=(before.endpoint if before is not None else None)
                or endpoint(claim.resource.spec.endpoint, who, self._problems),
                keepalive_s=min(max(claim.resource.spec.persistentKeepalive, 0), 65535),
                name=names[claim.key],
            )
        return peers, names


def networks(texts: Iterable[str], where: str, problems: list[str]) -> list[Network]:
    """Those that can be used."""
    found: list[Network] = []
    for text in texts:
        try:
            found.append(addresses.network_of(text))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    return found


def endpoint(text: str, who: str, problems: list[str]) -> Endpoint | None:
    """Where a peer says that it is. None: nobody could reach it there."""
    if not text:
        return None
    try:
        found = Endpoint.parse(text)
    except ValueError as error:
        problems.append(f"{who}: endpoint: {error}")
        return None
    address = found.address
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:  # as sockets have it
        found = Endpoint(address.ipv4_mapped, found.port)
        address = found.address
    if (
        found.port == 0
        or address.is_loopback
        or address.is_unspecified
        or address.is_multicast
        or str(address) == "255.255.255.255"
        or "%" in text  # a zone is the name of an interface, on another host
    ):
        problems.append(f"{who}: endpoint: {text} can't be reached")
        return None
    return found
