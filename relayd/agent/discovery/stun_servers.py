"""STUN servers by name, and the addresses behind them, remembered: a dead or lying DNS takes nothing away."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Self

import trio

from relayd.endpoints import Endpoint, is_host_name, split_host_port
from relayd.marks import RELAY_PORT
from relayd.observe import log

RESOLVE_S = 3.0
"""For one name. A resolver that is dead takes 10 s and more to say so (resolv.conf(5): 5 s, twice)."""

ADDRESSES = 2
"""Of a name and IP version that are asked: more say nothing new."""

Look = Callable[..., Awaitable[list[tuple[Any, ...]]]]


@dataclass(frozen=True, slots=True)
class StunServer:
    """HOST or HOST:PORT as somebody wrote it; IPv6 in brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError saying what is wrong."""
        try:
            return cls(str(ip_address(text.strip("[]"))), RELAY_PORT)
        except ValueError:
            if is_host_name(text):
                return cls(text, RELAY_PORT)
        host, port = split_host_port(text)
        try:
            return cls(str(ip_address(host)), port)
        except ValueError:
            if not is_host_name(host):
                raise ValueError(f"{host!r} is not a host name") from None
        return cls(host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def usable(address: IPv4Address | IPv6Address, *, named: bool) -> bool:
    """Whether a STUN server can be there. A name that leads to this very host is a lie, or of no use: what
    comes from here sees no NAT."""
    if address.is_unspecified or address.is_multicast or int(address) == 0xFFFFFFFF:
        return False
    return not (named and (address.is_loopback or address.is_link_local))


class Resolver:
    """Looks names up, and knows what they last were."""

    def __init__(self, look: Look = trio.socket.getaddrinfo) -> None:
        """`look` is getaddrinfo, or a test's."""
        self._look = look
        self._known: dict[StunServer, list[Endpoint]] = {}

    async def resolve(self, server: StunServer) -> list[Endpoint]:
        """At most ADDRESSES of each IP version; the last known ones when there is no answer in RESOLVE_S.

        Raises OSError saying why there is none at all.
        """
        try:
            return [Endpoint(ip_address(server.host), server.port)]
        except ValueError:
            pass  # a name
        problem = f"no answer for {server.host} within {RESOLVE_S:g} s"
        found: list[Endpoint] = []
        with trio.move_on_after(RESOLVE_S):
            try:
                entries = await self._look(server.host, server.port, type=socket.SOCK_DGRAM)
            except OSError as error:  # gaierror, or what kept the resolver from asking
                problem = f"{server.host}: {error.strerror or error}"
            except UnicodeError as error:  # from the IDNA codec: an empty label, or one of more than 63 bytes
                problem = f"{server.host!r} is not a host name: {error}"
            else:
                found = _chosen([Endpoint.of_socket(entry[4]) for entry in entries])
                problem = f"{server.host} has no address that can be asked"
        if found:
            self._known[server] = found
            return found
        if server in self._known:
            log.get().debug("stun.resolution_failed", server=str(server), error=problem, used="last known")
            return self._known[server]
        raise OSError(problem)


def _chosen(found: list[Endpoint]) -> list[Endpoint]:
    by_version: dict[int, list[Endpoint]] = {4: [], 6: []}
    for endpoint in dict.fromkeys(found):
        if usable(endpoint.address, named=True):
            by_version[endpoint.address.version].append(endpoint)
    return [one for some in by_version.values() for one in some[:ADDRESSES]]
