"""Everything about how this host is reached, found out in one go: what `relayd stun` prints and the agent
keeps.

In order: what the configuration says, STUN, the gateway's port mapping, a cloud's metadata, the interfaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

import trio

from relayd.agent.discovery.cloud import NoMetadataError, aws_public_address, looks_like_aws
from relayd.agent.discovery.gateway import Mapped, NoMappingError, map_port
from relayd.agent.discovery.relay_probes import RelayProbes
from relayd.agent.discovery.stun_answers import StunAnswers
from relayd.agent.discovery.stun_look import Look, look
from relayd.agent.discovery.stun_servers import StunServer
from relayd.agent.shared_port import SharedPort
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.addresses import HostAddress, default_gateways, host_addresses
from relayd.paths.findings import Finding, Method, in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Whom to ask."""

    servers: tuple[StunServer, ...] = ()
    manual: tuple[Endpoint, ...] = ()
    """What the configuration says that this host is reached at."""
    probes: RelayProbes | None = None
    """A relay that sends NAT probes, for when no STUN server tells of filtering."""
    lifetime_s: float = 0.0
    """Find out how long a mapping lives, up to this; 0: don't."""
    measure_lifetime: bool = False
    """Likewise, but by `keeper`, while what else was found out is in use already."""
    port_mapping: bool = False
    """Have the gateway map WireGuard's port, where there is a NAT."""
    aws: Literal["auto", "always", "never"] = "auto"
    """Ask AWS's metadata service: where the machine looks like one of AWS's, or in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found out at one time."""

    port: int
    """WireGuard's."""
    lacks: str = ""
    """Why it couldn't be shared; the findings by STUN are estimates then."""
    looks: tuple[Look, ...] = ()
    """By STUN, one for each IP version that there is."""
    findings: tuple[Finding, ...] = ()
    """The most believable first."""
    failed: frozenset[tuple[Method, int]] = frozenset()
    """Methods that could have told something and didn't, by IP version."""
    problems: tuple[str, ...] = ()
    addresses: tuple[HostAddress, ...] = ()
    mapped: Mapped | None = None
    """What the gateway gave."""

    def look_of(self, version: int) -> Look | None:
        """What STUN told for this IP version."""
        return next((one for one in self.looks if one.version == version), None)


@dataclass(slots=True)
class _Notes:
    findings: list[Finding] = field(default_factory=list)
    failed: set[tuple[Method, int]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    looks: dict[int, Look] = field(default_factory=dict)
    mapped: Mapped | None = None


async def survey(port: SharedPort, said: StunAnswers, sources: Sources) -> Survey:
    """Find out all of it, by what STUN servers `said` just now; some seconds, where nobody answers. Nothing
    the network does makes it fail.
    """
    notes, now = _Notes(problems=list(said.problems)), trio.current_time()
    try:
        addresses = await host_addresses()
    except HostError as error:
        addresses = []
        notes.problems.append(str(error))
    notes.findings += [
        Finding(method=Method.MANUAL, endpoint=one, source="configuration", found_at=now)
        for one in sources.manual
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_learn_from_stun, port, said, sources, addresses, notes)
        if port.wireguard_port and (sources.aws == "always" or (sources.aws == "auto" and looks_like_aws())):
            nursery.start_soon(_ask_aws, port.wireguard_port, notes)
    if sources.port_mapping and port.wireguard_port and _behind_nat(notes, addresses):
        await _ask_gateway(port.wireguard_port, addresses, notes)
    notes.findings += _of_interfaces(addresses, port.wireguard_port, now)
    return Survey(
        port=port.wireguard_port,
        lacks=port.lacks,
        looks=tuple(notes.looks[version] for version in sorted(notes.looks)),
        findings=tuple(in_order(notes.findings)),
        failed=frozenset(notes.failed),
        problems=tuple(notes.problems),
        addresses=tuple(addresses),
        mapped=notes.mapped,
    )


async def _learn_from_stun(
    port: SharedPort, said: StunAnswers, sources: Sources, addresses: Sequence[HostAddress], notes: _Notes
) -> None:
    own = {one.address for one in addresses}

    async def one(version: int) -> None:
        notes.looks[version] = await look(
            said,
            port.port_of(version),
            version=version,
            own=own,
            lifetime_s=sources.lifetime_s,
            probes=sources.probes,
        )

    async with trio.open_nursery() as nursery:
        for version in (4, 6):
            told = said.seen(version)
            notes.findings += [
                Finding(
                    method=Method.STUN,
                    endpoint=asked.mapped,
                    base=asked.local,
                    source=str(asked.server),
                    estimated=port.estimated,
                    found_at=trio.current_time(),
                )
                for asked in told
                if asked.mapped is not None
            ]
            if not told and sources.servers:
                notes.failed.add((Method.STUN, version))
            if said.of_version(version):
                nursery.start_soon(one, version)


async def _ask_aws(port: int, notes: _Notes) -> None:
    try:
        address = await aws_public_address()
    except NoMetadataError as error:
        notes.failed.add((Method.AWS_METADATA, 4))
        notes.problems.append(f"AWS metadata: {error}")
        return
    notes.findings.append(
        Finding(
            method=Method.AWS_METADATA,
            endpoint=Endpoint(address, port),
            source="instance metadata",
            found_at=trio.current_time(),
        )
    )


def _behind_nat(notes: _Notes, addresses: Sequence[HostAddress]) -> bool:
    """Whether there may be a NAT that a mapping helps with: not where STUN saw an own address."""
    look = notes.looks.get(4)
    if look is not None and look.verdict.mapped is not None:
        return look.verdict.translated
    return any(one.leads_out and one.address.version == 4 and one.address.is_private for one in addresses)


async def _ask_gateway(port: int, addresses: Sequence[HostAddress], notes: _Notes) -> None:
    try:
        gateways = await default_gateways()
    except HostError as error:
        notes.problems.append(str(error))
        return
    own = [one.address for one in addresses if one.leads_out and isinstance(one.address, IPv4Address)]
    if not gateways or not own:
        return
    try:
        mapped = await map_port(port, gateways[0], own[0])
    except NoMappingError as error:
        notes.failed.add((Method.UPNP, 4))
        notes.problems.append(f"port mapping: {error}")
        return
    notes.mapped = mapped
    if not is_outside(mapped.external.address):
        # A NAT behind a NAT: nobody reaches what the inner one calls its outer address.
        notes.problems.append(
            f"port mapping: {mapped.protocol} gave {mapped.external}, which is no address of the internet"
        )
        return
    notes.findings.append(
        Finding(
            method=Method.UPNP,
            endpoint=mapped.external,
            base=own[0],
            source=f"{mapped.protocol}, {mapped.gateway}",
            found_at=trio.current_time(),
        )
    )


_SHARED = IPv4Network("100.64.0.0/10")  # RFC 6598: between a carrier's NAT and its customers
_INSIDE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")))


def is_outside(address: IPv4Address | IPv6Address) -> bool:
    """Whether an IPv4 address can be one that strangers reach."""
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return False
    return address not in _SHARED and not any(address in network for network in _INSIDE)


def _of_interfaces(addresses: Sequence[HostAddress], port: int, now: float) -> list[Finding]:
    """Those that others may reach: of interfaces that lead out, and not of one network segment only."""
    return [
        Finding(
            method=Method.IPV6 if _is_public6(one.address) else Method.INTERNAL_IP,
            endpoint=Endpoint(one.address, port),
            base=one.address,
            source=one.interface,
            found_at=now,
        )
        for one in addresses
        if one.leads_out and not one.address.is_link_local
    ]


_UNIQUE_LOCAL = IPv6Network("fc00::/7")  # RFC 4193


def _is_public6(address: IPv4Address | IPv6Address) -> bool:
    return address.version == 6 and address not in _UNIQUE_LOCAL
