"""What kind of NAT is in front of us, from what STUN servers saw and what came back through it. Pure.

The terms are RFC 4787's: a NAT *maps* an own port to an outer one, for all destinations alike or anew for
each, and *filters* what comes in to it. The names of the kinds are those of the field (RFC 3489's, in part).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from relayd.endpoints import Endpoint
from relayd.wire.sealed_messages import MAX_PREDICTED

Address = IPv4Address | IPv6Address


class NatType(Enum):
    """In the field's words, as in a WireKubePeer's status."""

    OPEN = "open"
    """No NAT, and nothing is known to keep strangers out."""
    CONE = "cone"
    """One mapping for all destinations; strangers' packets get in, or those of addresses that were sent
    to."""
    PORT_RESTRICTED_CONE = "port-restricted-cone"
    """One mapping for all; only who was sent to gets in, address and port. A firewall without a NAT too."""
    SYMMETRIC = "symmetric"
    """Another mapping for each destination: what one server sees is of no use to anybody else."""
    UNKNOWN = "unknown"


class Mapping(Enum):
    """RFC 4787, section 4.1."""

    INDEPENDENT = "endpoint-independent"
    ADDRESS = "address-dependent"
    ADDRESS_AND_PORT = "address-and-port-dependent"
    UNKNOWN = "unknown"


SYMMETRIC = (Mapping.ADDRESS, Mapping.ADDRESS_AND_PORT)
"""What makes a NAT symmetric, in the field's words."""


class Filtering(Enum):
    """RFC 4787, section 5."""

    INDEPENDENT = "endpoint-independent"
    ADDRESS = "address-dependent"
    NOT_BY_PORT = "not by port"
    """One of the two above: what came was from an address that had been sent to."""
    ADDRESS_AND_PORT = "address-and-port-dependent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Observation:
    """A server was asked, and said where the question came from. In the order of asking."""

    server: Endpoint
    mapped: Endpoint


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where a symmetric NAT is likely to put the next mapping."""

    first: Endpoint
    step: int
    """From one mapping to the next; may be negative."""
    count: int = MAX_PREDICTED
    """How many are worth a try: others behind the same NAT take ports too."""

    def following(self, mapped: Endpoint) -> Prediction | None:
        """The same after one more mapping was seen; None: it is at the end of the ports, or another NAT."""
        port = mapped.port + self.step
        if mapped.address.version != self.first.address.version or not 1 <= port <= 65535:
            return None
        return Prediction(Endpoint(mapped.address, port), self.step, self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of the NAT for one IP version."""

    nat: NatType
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    mapped: Endpoint | None = None
    """The outer address and port; of a symmetric NAT, those for the first server that was asked."""
    translated: bool = False
    """Whether the outer address isn't one of ours: there is a NAT."""
    keeps_port: bool = False
    """Whether the outer port is the own one."""
    one_server: bool = False
    """All observations are from one address: a mapping by address can't be told from one for all."""
    prediction: Prediction | None = None


MAX_STEP = 64
"""Ports between two mappings, past which a NAT isn't counting but drawing. Two that are drawn lie so near
each other twice in a thousand times, which costs a peer MAX_PREDICTED Pings."""


def mapping_of(observations: Sequence[Observation]) -> Mapping:
    """How the NAT maps. Two observations of two servers, or two ports, at the least."""
    by_server = {one.server: one.mapped for one in observations}
    if len(by_server) < 2:
        return Mapping.UNKNOWN
    if len(set(by_server.values())) == 1:
        return Mapping.INDEPENDENT
    for server, mapped in by_server.items():
        for other, seen in by_server.items():
            if server.address == other.address and mapped != seen:
                return Mapping.ADDRESS_AND_PORT
    ports_tried = len(by_server) > len({server.address for server in by_server})
    # Two addresses, a mapping each: by address and port, unless two ports of one address had the same.
    return Mapping.ADDRESS if ports_tried else Mapping.ADDRESS_AND_PORT


def predict(observations: Sequence[Observation]) -> Prediction | None:
    """Where the next mapping will be, when those so far follow each other. None: the NAT gives all
    destinations the same, or draws its ports.

    Two are enough: a relay alone has no more ports to ask at.
    """
    mapped = list(dict.fromkeys(one.mapped for one in observations))
    if len(mapped) < 2 or len({one.address for one in mapped}) != 1:
        return None
    steps = [after.port - before.port for before, after in pairwise(mapped)]
    step = min(steps, key=abs)
    # Others took a port in between now and then: a multiple of the step, in the same direction.
    if any(abs(other) > MAX_STEP or other % step or other // step < 0 for other in steps):
        return None
    return Prediction(mapped[-1], step).following(mapped[-1])


def classify(
    observations: Sequence[Observation], filtering: Filtering, *, own: Collection[Address], port: int
) -> Verdict:
    """The verdict on observations of one IP version, all made from the own `port`; `own` are this host's
    addresses."""
    if not observations:
        return Verdict(nat=NatType.UNKNOWN, filtering=filtering)
    mapping = mapping_of(observations)
    mapped = observations[0].mapped
    translated = mapped.address not in own
    if mapping in SYMMETRIC:
        nat = NatType.SYMMETRIC
    elif not translated and mapped.port == port:
        restricted = filtering is Filtering.ADDRESS_AND_PORT
        nat = NatType.PORT_RESTRICTED_CONE if restricted else NatType.OPEN
    elif mapping is Mapping.UNKNOWN:
        nat = NatType.UNKNOWN
    else:
        restricted = filtering is Filtering.ADDRESS_AND_PORT
        nat = NatType.PORT_RESTRICTED_CONE if restricted else NatType.CONE
    return Verdict(
        nat=nat,
        mapping=mapping,
        filtering=filtering,
        mapped=mapped,
        translated=translated,
        keeps_port=mapped.port == port,
        one_server=len({one.server.address for one in observations}) == 1,
        prediction=predict(observations) if nat is NatType.SYMMETRIC else None,
    )


def from_probes(verify: bool, probe: bool) -> Filtering:
    """From the two datagrams of a relay's NATProbe: VERIFY from the port that was sent to, PROBE from another
    one of the same address. Neither: they were lost, or the relay sent none."""
    if probe:
        return Filtering.NOT_BY_PORT
    return Filtering.ADDRESS_AND_PORT if verify else Filtering.UNKNOWN
