"""Where a datagram or a connection goes: an address and a port, as one value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Self

MAX_HOST_NAME = 253
"""Characters of a DNS name in its textual form (RFC 1035, section 2.3.4)."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# The dot is no part of what repeats without one: with an optional dot, labels could be cut in as many ways as
# there are subsets of their characters, and a name that fails would be tried in all of them.
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\.?")


def is_host_name(text: str) -> bool:
    """Whether `text` can be a DNS name, with or without the last dot. IPv4 addresses look like one too."""
    return len(text) <= MAX_HOST_NAME and _HOST_NAME.fullmatch(text) is not None


def split_host_port(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT` as (host, port). Raises ValueError saying what is wrong."""
    host, colon, digits = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text!r} has no port (HOST:PORT, or [IPV6]:PORT)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address goes in brackets, as in [2001:db8::1]:3478")
    if not (digits.isascii() and digits.isdigit() and 0 <= int(digits) <= 65535):
        raise ValueError(f"{text!r}: {digits!r} is not a port from 0 to 65535")
    return host, int(digits)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IP address and a UDP or TCP port."""

    address: IPv4Address | IPv6Address
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`192.0.2.1:51820` or `[2001:db8::1]:51820`. Raises ValueError saying what is wrong."""
        host, port = split_host_port(text)
        return cls(ip_address(host), port)

    @classmethod
    def of_socket(cls, name: tuple[Any, ...]) -> Self:
        """From what `accept`, `getpeername` or `recvfrom` of an IP socket gave. An IPv4 address that came in
        through an IPv6 socket is IPv4 all the same; a scope is left out."""
        address = ip_address(name[0].partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return cls(address, name[1])

    def is_loopback(self) -> bool:
        """Whether it is one of ours: WireGuard talks to the proxy there, not to a peer."""
        return self.address.is_loopback

    def without_scope(self) -> Self:
        """The same without the zone of a link-local IPv6 address, which is this host's own affair."""
        if isinstance(self.address, IPv6Address) and self.address.scope_id is not None:
            return type(self)(IPv6Address(self.address.packed), self.port)
        return self

    def __str__(self) -> str:
        if self.address.version == 6:
            return f"[{self.address}]:{self.port}"
        return f"{self.address}:{self.port}"
