"""Addresses where an agent may be reached, with the numbers that RFC 8445 (ICE) gives them.

Of ICE this takes candidates, foundations, priorities, pairs and triggered checks. It leaves out components
(there is one: WireGuard's port), and local candidates in pairs: that port is bound to all addresses, and the
kernel chooses the source by its routes. So a pair is known by its remote endpoint. A candidate travels as a
map in a sealed message and not as a line of SDP, so that of aioice's codec two formulas would be left, which
brings asyncio and a DNS library along: they are here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from relayd.endpoints import Endpoint
from relayd.wire.sealed_messages import MAX_CANDIDATES, CandidateType, WireCandidate, is_known_type

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

TYPE_PREFERENCES: dict[CandidateType, int] = {"host": 126, "prflx": 110, "srflx": 100, "relay": 0}
"""RFC 8445, section 5.1.2.2."""

_COMPONENT = 1

VIRTUAL_KINDS = frozenset(
    (
        *("bridge", "dummy", "geneve", "gre", "gretap", "ifb", "ip6gre", "ip6tnl", "ipip", "ipvlan"),
        *("macvlan", "nlmon", "sit", "tun", "vcan", "vti", "vxlan", "wireguard", "xfrm"),
    )
)
"""Kinds of links whose addresses mean something on this host or in an overlay, as a rule. Not veth: it is
what a container has instead of a network card."""

VIRTUAL_NAMES = (
    "br-",
    "cali",
    "cilium",
    "cni",
    "docker",
    "flannel",
    "kube",
    "lxc",
    "nerdctl",
    "podman",
    "virbr",
)
"""Beginnings of the names that container engines and CNIs give to links of any kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAddress:
    """An address of an interface of this host."""

    address: Address
    """A link-local IPv6 one with its scope."""

    interface: str
    kind: str = ""
    """As the kernel has it: "bridge", "veth"; empty for a plain device."""

    leads_out: bool = False
    """Whether a default route goes through the interface: then it isn't virtual, whatever its kind (a server
    whose network card is in a bridge)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One address where an agent may be reached."""

    type: CandidateType
    endpoint: Endpoint
    foundation: str
    priority: int
    found_at: float = field(default=0.0, compare=False)
    """Monotonic seconds; the freshest come first. One that was found again is the same one."""

    method: str = ""
    """How it was found out, in a word, for people."""


def priority(kind: CandidateType, address: Address) -> int:
    """RFC 8445, section 5.1.2.1. Among equals IPv6 comes before IPv4 (RFC 8421, section 4), and link-local
    last."""
    local = 65535 if address.version == 6 else 65534
    if address.is_link_local:
        local = 1
    return TYPE_PREFERENCES[kind] << 24 | local << 8 | 256 - _COMPONENT


def foundation(kind: CandidateType, base: Address | None, server: str = "") -> str:
    """The same for candidates of one type, base and server, and only for those (RFC 8445, section 5.1.1.3).

    Eight characters that say nothing of the addresses they stand for.
    """
    return blake2b(f"{kind} {base} {server} udp".encode(), digest_size=4).hexdigest()


def make(
    kind: CandidateType,
    endpoint: Endpoint,
    *,
    base: Address | None = None,
    server: str = "",
    found_at: float = 0.0,
    method: str = "",
) -> Candidate:
    """A candidate with its numbers. `base`: the own address behind it, for other types than `host`."""
    return Candidate(
        type=kind,
        endpoint=endpoint,
        foundation=foundation(kind, base or endpoint.address, server),
        priority=priority(kind, endpoint.address),
        found_at=found_at,
        method=method,
    )


def is_virtual(local: LocalAddress) -> bool:
    """Whether an interface is of this host alone, or of an overlay on top of the network that is looked
    for."""
    if local.leads_out:
        return False
    return local.kind in VIRTUAL_KINDS or local.interface.startswith(VIRTUAL_NAMES)


def counts(local: LocalAddress, only: Collection[str]) -> bool:
    """Whether peers may be on the network of that interface: one of `only`; empty: any that isn't virtual.

    Of link-local addresses those on a host's ends of its containers' links don't count either: each has one,
    there may be hundreds, and at the other end there is nobody but a container.
    """
    if only:
        return local.interface in only
    inward = local.kind == "veth" and local.address.is_link_local and not local.leads_out
    return not inward and not is_virtual(local)


def host_candidates(
    addresses: Iterable[LocalAddress],
    port: int,
    *,
    tunnels: Collection[Network] = (),
    only: Collection[str] = (),
    now: float = 0.0,
) -> list[Candidate]:
    """The addresses of this host as candidates, on WireGuard's `port`.

    `tunnels`: networks inside of tunnels, our own first of all: a path through them would go in circles.
    `only`: the interfaces that count, virtual or not; empty: all that aren't virtual.
    """
    found = []
    for local in addresses:
        if counts(local, only) and is_usable(local.address, tunnels):
            found.append(make("host", Endpoint(local.address, port), found_at=now, method=local.interface))
    return found


def is_usable(address: Address, tunnels: Collection[Network] = ()) -> bool:
    """Whether a datagram to `address` could ever be a peer's, and not our own or a group's."""
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        if address.is_link_local or address.is_reserved:  # 169.254/16 can't be told apart by interface
            return False
    elif address.ipv4_mapped is not None or (address.is_link_local and address.scope_id is None):
        return False
    return not any(address in network for network in tunnels if network.version == address.version)


def chosen(candidates: Iterable[Candidate], limit: int = MAX_CANDIDATES) -> list[Candidate]:
    """At most `limit`, the freshest first. Of those with one endpoint the one of the highest priority stays
    (RFC 8445, section 5.1.3), as fresh as the freshest of them."""
    best: dict[Endpoint, Candidate] = {}
    found_at: dict[Endpoint, float] = {}
    for candidate in candidates:
        endpoint = candidate.endpoint
        found_at[endpoint] = max(found_at.get(endpoint, candidate.found_at), candidate.found_at)
        if endpoint not in best or candidate.priority > best[endpoint].priority:
            best[endpoint] = candidate
    ordered = sorted(best.values(), key=lambda one: (-found_at[one.endpoint], -one.priority))
    return ordered[:limit]


def to_wire(candidates: Iterable[Candidate]) -> tuple[WireCandidate, ...]:
    """What a peer is told. The scope of a link-local address stays here: it means nothing to others."""
    return tuple(
        WireCandidate(
            type=one.type,
            address=str(one.endpoint.address).partition("%")[0],
            port=one.endpoint.port,
            priority=one.priority,
            foundation=one.foundation,
        )
        for one in candidates
    )


def from_wire(
    told: Iterable[WireCandidate],
    *,
    tunnels: Collection[Network] = (),
    own: Collection[Address] = (),
    links: Collection[str] = (),
    now: float = 0.0,
) -> list[Candidate]:
    """What of a peer's list may be pinged: it may name any address of the world, ours too.

    `own`: our addresses, which it must not send us to. `links`: interfaces with link-local addresses, on
    each of which a link-local candidate is tried."""
    found: list[Candidate] = []
    for one in told:
        if not is_known_type(one.type) or one.type == "relay":
            continue
        endpoint = one.endpoint
        ways = [endpoint]
        if isinstance(endpoint.address, IPv6Address) and endpoint.address.is_link_local:
            ways = [Endpoint(IPv6Address(f"{endpoint.address}%{link}"), endpoint.port) for link in links]
        for way in ways:
            if way.address not in own and is_usable(way.address, tunnels):
                found.append(
                    Candidate(
                        type=one.type,  # type: ignore[arg-type]  # is_known_type said so
                        endpoint=way,
                        foundation=one.foundation,
                        priority=one.priority,
                        found_at=now,
                        method="told",
                    )
                )
    return chosen(found)
