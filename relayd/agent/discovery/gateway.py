"""A port mapping of the gateway's: PCP and NAT-PMP, which are two datagrams, and UPnP, by miniupnpc in a
thread.

A mapping is a lease. It is renewed while an agent runs and stays when it ends, so that direct paths don't
notice a restart; the gateway drops it when the lease is over.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TypeVar

import trio

from relayd import marks
from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.observe import log
from relayd.wire import port_control
from relayd.wire.port_control import OtherVersionError, PortMapping, RefusedError

LEASE_S = 7200
"""RFC 6886, section 3.3 recommends it."""

REPEAT_S = (0.25, 0.5, 1.0)
"""How long each of three questions waits for an answer: RFC 6886, section 3.1, cut short. A gateway is one
hop away."""

UPNP_DISCOVERY_MS = 1500
"""For gateways to answer a multicast question; UPnP devices may take a second (MX: 1)."""

UPNP_S = 15.0
"""For all of UPnP: a search, a description and two calls by HTTP."""

DESCRIPTION = "relayd (WireGuard)"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping that a gateway made for us."""

    protocol: str
    """"PCP", "NAT-PMP" or "UPnP"."""
    external: Endpoint
    lifetime_s: int
    """0: for ever."""
    gateway: str


class NoMappingError(Exception):
    """No gateway made one; the text says what each way said."""


async def map_port(port: int, gateway: IPv4Address, own: IPv4Address, *, upnp: bool = True) -> Mapped:
    """Have UDP `port` of `own` mapped by `gateway`, to the same outer port if that is free.

    PCP, NAT-PMP and UPnP (unless not `upnp`) are tried at once, and believed in this order. Raises
    NoMappingError.
    """
    done: dict[str, Mapped] = {}
    problems: dict[str, str] = {}

    async def attempt(name: str, way: Callable[[], Awaitable[Mapped]]) -> None:
        try:
            done[name] = await way()
        except (NoMappingError, RefusedError, OSError) as error:
            problems[name] = str(error) or type(error).__name__
        else:
            log.get().debug("gateway.mapped", by=name, external=str(done[name].external))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, "PCP and NAT-PMP", lambda: _by_datagrams(port, gateway, own))
        if upnp:
            nursery.start_soon(attempt, "UPnP", lambda: _by_upnp(port, own))
    for name in ("PCP and NAT-PMP", "UPnP"):
        if name in done:
            return done[name]
    raise NoMappingError("; ".join(f"{name}: {problem}" for name, problem in problems.items()))


# PCP and NAT-PMP --------------------------------------------------------------------------------------------


async def _by_datagrams(port: int, gateway: IPv4Address, own: IPv4Address) -> Mapped:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, marks.FWMARK)
        except PermissionError:
            log.get().debug("gateway.unmarked", reason="no CAP_NET_ADMIN")
        await sock.bind((str(own), 0))
        # Connected: whoever else sends something is not heard.
        await sock.connect((str(gateway), port_control.PORT))
        nonce = os.urandom(port_control.NONCE_BYTES)
        try:
            given = await _ask(
                sock,
                port_control.pcp_map_request(nonce, own, port, port, LEASE_S),
                lambda datagram: port_control.pcp_map_answer_untrusted(datagram, nonce, port),
            )
            assert given.address is not None
            return Mapped("PCP", Endpoint(given.address, given.port), given.lifetime_s, str(gateway))
        except OtherVersionError:
            address = await _ask(
                sock, port_control.pmp_address_request(), port_control.pmp_address_answer_untrusted
            )
            mapping: PortMapping = await _ask(
                sock,
                port_control.pmp_map_request(port, port, LEASE_S),
                lambda datagram: port_control.pmp_map_answer_untrusted(datagram, port),
            )
            return Mapped("NAT-PMP", mapping.endpoint(address), mapping.lifetime_s, str(gateway))


async def _ask(sock: trio.socket.SocketType, request: bytes, read: Callable[[bytes], _T]) -> _T:
    """The answer, of three tries. Raises NoMappingError, RefusedError, OSError."""
    for wait_s in REPEAT_S:
        await sock.send(request)
        with trio.move_on_after(wait_s):
            while True:
                datagram = await sock.recv(port_control.MAX_BYTES + 1)
                try:
                    return read(datagram)
                except RemoteProtocolError as error:
                    log.get().debug("gateway.malformed_answer", error=str(error))
    raise NoMappingError("the gateway doesn't answer")


# UPnP -------------------------------------------------------------------------------------------------------


async def _by_upnp(port: int, own: IPv4Address) -> Mapped:
    """In a worker thread, which is left to itself after UPNP_S: its own time-outs end it later."""
    with trio.move_on_after(UPNP_S):
        return await trio.to_thread.run_sync(_upnp_blocking, port, own, abandon_on_cancel=True)
    raise NoMappingError(f"the gateway did not come to an end within {UPNP_S:g} s")


def _upnp_blocking(port: int, own: IPv4Address) -> Mapped:
    import miniupnpc  # a shared library that most hosts never need: loaded when asked for

    upnp = miniupnpc.UPnP(multicastif=str(own), discoverdelay=UPNP_DISCOVERY_MS)
    try:
        if not upnp.discover():
            raise NoMappingError("no gateway answers")
        upnp.selectigd()
        address = IPv4Address(upnp.externalipaddress())
        external = _upnp_port(upnp, port, own)
    except NoMappingError:
        raise
    except Exception as error:
        raise NoMappingError(str(error) or "refused") from error
    return Mapped("UPnP", Endpoint(address, external), LEASE_S, str(upnp.lanaddr))


def _upnp_port(upnp: object, port: int, own: IPv4Address) -> int:
    """The outer port that was mapped: the same, or one above it where that is another host's."""
    failure: Exception | None = None
    for external in range(port, min(port + 8, 65536)):
        try:
            if upnp.addportmapping(external, "UDP", str(own), port, DESCRIPTION, "", LEASE_S):  # type: ignore[attr-defined]
                return external
        except Exception as error:  # noqa: BLE001 (as above)
            failure = error
            if "Conflict" not in str(error):
                break
    raise NoMappingError(str(failure) if failure is not None else "refused")
