"""Where this host may be reached, each with how it was found out, and which of it is published. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from relayd.endpoints import Endpoint

Address = IPv4Address | IPv6Address


class Method(Enum):
    """How an endpoint was found out, in the words of a WireKubePeer's `endpointDiscoveryMethod`; in the order
    in which they are believed."""

    MANUAL = "manual"
    """Somebody wrote it into the configuration."""
    STUN = "stun"
    UPNP = "upnp"
    """A mapping that a gateway made for us: by UPnP, NAT-PMP or PCP (`source` says which)."""
    AWS_METADATA = "aws-metadata"
    IPV6 = "ipv6"
    """A global address of an interface."""
    INTERNAL_IP = "internal-ip"
    """Any other address of an interface."""


_ORDER = list(Method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One endpoint of this host."""

    method: Method
    endpoint: Endpoint
    base: Address | None = None
    """The own address behind it, where that is known."""
    source: str = ""
    """Who said so: a STUN server, a gateway, an interface."""
    estimated: bool = False
    """Found out through another port than WireGuard's: a guess, as a NAT may map that one differently."""
    found_at: float = 0.0
    """Monotonic seconds."""


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The most believable first, of a method's IPv4 ones before IPv6 ones; each endpoint once."""
    found: dict[Endpoint, Finding] = {}

    def rank(one: Finding) -> tuple[bool, int, int]:
        return one.estimated, _ORDER.index(one.method), one.endpoint.address.version

    for one in sorted(findings, key=rank):
        found.setdefault(one.endpoint, one)
    return list(found.values())


def kind_of(one: Finding) -> tuple[Method, int]:
    """Method and IP version: what is looked for, and fails, together."""
    return one.method, one.endpoint.address.version


def renewed(
    known: Sequence[Finding], fresh: Sequence[Finding], *, failed: Collection[tuple[Method, int]]
) -> list[Finding]:
    """What is known after another look: `fresh`, and what was known by the methods that `failed` this time.

    That a STUN server can't be reached says nothing of the endpoint that it saw a minute ago. And a guess
    never takes the place of what was really seen, of the same method and IP version.
    """
    real = {kind_of(one) for one in known if not one.estimated}
    guessed = {kind_of(one) for one in fresh if one.estimated} & real
    kept = [one for one in fresh if kind_of(one) not in guessed]
    kept += [one for one in known if kind_of(one) in failed or kind_of(one) in guessed]
    return in_order(kept)


def to_publish(findings: Iterable[Finding], published: Endpoint | None) -> Endpoint | None:
    """The one endpoint that others are told; `published` is what they were told before.

    A guess is better than nothing, and than nothing else.
    """
    for one in in_order(findings):
        if not one.estimated:
            return one.endpoint
        return published or one.endpoint
    return published


def on_port(findings: Iterable[Finding], port: int) -> list[Finding]:
    """The same when an address counts and not the port that was seen: estimates, with WireGuard's port in its
    place. Most NATs keep it while it is free."""
    return [
        replace(one, endpoint=Endpoint(one.endpoint.address, port)) if one.estimated else one
        for one in findings
    ]
