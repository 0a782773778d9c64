"""The kernel's own WireGuard, by generic netlink (include/uapi/linux/wireguard.h).

It is read by `genl` and `wireguard_dump`, every second, and written by pyroute2, now and then. A long
interface is written in several messages: a netlink attribute holds less than 64 KiB.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from ipaddress import IPv6Address
from itertools import islice
from typing import Any, Literal, TypeVar

import trio

from relayd.endpoints import Endpoint
from relayd.kernel import discover, genl, hints, links, rtnl
from relayd.kernel.device import Changes, Interface, Network
from relayd.kernel.nlmsg import InterruptedDumpError, KernelError
from relayd.kernel.planned import PlannedWireGuard
from relayd.kernel.pyroute import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    WG_CMD_SET_DEVICE,
    WG_GENL_VERSION,
    WGPEER_F_REMOVE_ME,
    WGPEER_F_REPLACE_ALLOWEDIPS,
    WGPEER_F_UPDATE_ONLY,
    AsyncWireGuard,
    NetlinkError,
    wgmsg,
)
from relayd.kernel.wireguard_dump import FAMILY, GET_DEVICE, VERSION, Reader, request

ALLOWED_IPS_A_MESSAGE = 500
"""At most 28 + 8 bytes each: a third of what a netlink attribute can hold (65,535 bytes)."""

PEERS_A_MESSAGE = 100
"""Some 130 bytes each without their allowed IPs."""

MESSAGES_A_CALL = 10
"""A call has one deadline. 5,000 allowed IPs take half a second, nearly all of it pyroute2's."""

READ_ATTEMPTS = 10
"""A dump during which the interface changed is inconsistent (NLM_F_DUMP_INTR) and is read again."""

PEERS_AT_ONCE = 50
"""Decoded before other tasks have their turn: half a millisecond."""

_NOT_THERE = (errno.ENODEV, errno.EOPNOTSUPP, errno.ENOENT)
"""The kernel has no such interface, it isn't WireGuard, there is no WireGuard in this kernel."""

_Result = TypeVar("_Result")
_Attribute = tuple[str, Any]


class _NotThereError(Exception):
    """One of _NOT_THERE."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class NetlinkWireGuard(PlannedWireGuard):
    """An interface of kind "wireguard"."""

    engine: Literal["kernel"] = "kernel"

    async def dump(self) -> Interface:
        """See relayd.kernel.device.WireGuard."""
        attempt = f"read {self.name}"
        with trio.move_on_after(rtnl.DEADLINE_S):
            try:
                return await _read(self.name)
            except KernelError as error:
                if error.code in _NOT_THERE:
                    raise await self._gone(attempt, error.code) from error
                raise rtnl.failure(attempt, error.code) from error
            except OSError as error:  # the socket itself: no netlink in a sandbox, no descriptors left
                raise rtnl.failure(attempt, error.errno or errno.EIO) from error
        raise hints.no_answer(attempt, "the kernel", rtnl.DEADLINE_S)

    async def _write(self, attempt: str, changes: Changes) -> None:
        messages = messages_of(changes)
        while batch := list(islice(messages, MESSAGES_A_CALL)):

            async def write(wireguard: Any, batch: list[list[_Attribute]] = batch) -> None:
                try:
                    for attributes in batch:
                        await _request(wireguard, self.name, attributes)
                except NetlinkError as error:
                    if error.code == errno.EADDRINUSE:
                        raise hints.port_in_use(self.name, changes.listen_port or 0) from error
                    raise

            await self._call(attempt, write)

    async def _call(self, attempt: str, function: Callable[[Any], Awaitable[_Result]]) -> _Result:
        """Run `function` on a WireGuard socket. Raises HostError, saying why if the interface is gone."""

        async def talk() -> _Result:
            async with AsyncWireGuard() as wireguard:
                wireguard.module_err_level = "debug"  # what it would log as an error is told by ours
                try:
                    await wireguard.setup_endpoint()
                    return await function(wireguard)
                except NetlinkError as error:
                    if error.code in _NOT_THERE:
                        raise _NotThereError(error.code) from error
                    raise

        try:
            return await rtnl.call(attempt, talk)
        except _NotThereError as error:
            raise await self._gone(attempt, error.code) from error

    async def _gone(self, attempt: str, code: int) -> Exception:
        """Why the kernel knows no such WireGuard interface (any more)."""
        link = await links.find(self.name)
        if link is None:
            return hints.no_interface(self.name, await discover.wireguard_names())
        if link.kind != "wireguard":
            return hints.other_kind(self.name, link.kind, await discover.wireguard_names())
        return rtnl.failure(attempt, code)


async def _read(name: str) -> Interface:
    """Raises KernelError, HostError and OSError."""
    for _ in range(READ_ATTEMPTS):
        reader = Reader(name)
        try:
            async with aclosing(genl.dump(FAMILY, GET_DEVICE, VERSION, request(name))) as messages:
                async for message in messages:
                    for number, _ in enumerate(reader.feed(message), 1):
                        if number % PEERS_AT_ONCE == 0:
                            await trio.lowlevel.checkpoint()
        except InterruptedDumpError:
            continue
        return reader.interface()
    raise hints.always_changing(name)


async def _request(wireguard: Any, name: str, attributes: Sequence[_Attribute]) -> None:
    request = wgmsg()
    request["cmd"] = WG_CMD_SET_DEVICE
    request["version"] = WG_GENL_VERSION
    request["attrs"] = [("WGDEVICE_A_IFNAME", name), *attributes]
    answers = await wireguard.nlm_request(
        request, msg_type=wireguard.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK
    )
    async for _ in answers:
        pass


# Values to messages ----------------------------------------------------------------------------------------


def messages_of(changes: Changes) -> Iterator[list[_Attribute]]:
    """The attributes of each message that must be sent, in order."""
    device: list[_Attribute] = []
    if changes.private_key is not None:
        device.append(("WGDEVICE_A_PRIVATE_KEY", changes.private_key.to_base64()))
    if changes.listen_port is not None:
        device.append(("WGDEVICE_A_LISTEN_PORT", changes.listen_port))
    if changes.fwmark is not None:
        device.append(("WGDEVICE_A_FWMARK", changes.fwmark))
    if device:
        yield device
    batch: list[dict[str, Any]] = []
    allowed_ips = 0
    for size, attributes in _peers_of(changes):
        if batch and (len(batch) == PEERS_A_MESSAGE or allowed_ips + size > ALLOWED_IPS_A_MESSAGE):
            yield [("WGDEVICE_A_PEERS", batch)]
            batch, allowed_ips = [], 0
        batch.append({"attrs": attributes})
        allowed_ips += size
    if batch:
        yield [("WGDEVICE_A_PEERS", batch)]


def _peers_of(changes: Changes) -> Iterator[tuple[int, list[_Attribute]]]:
    """(number of allowed IPs, attributes) of each part of the peers' list; a long peer has several parts."""
    for key in changes.remove:
        yield 0, [("WGPEER_A_PUBLIC_KEY", str(key)), ("WGPEER_A_FLAGS", WGPEER_F_REMOVE_ME)]
    for change in changes.peers:
        flags = 0 if change.new else WGPEER_F_UPDATE_ONLY
        attributes: list[_Attribute] = [("WGPEER_A_PUBLIC_KEY", str(change.key))]
        if change.endpoint is not None:
            attributes.append(("WGPEER_A_ENDPOINT", _endpoint_fields(change.endpoint)))
        if change.keepalive_s is not None:
            attributes.append(("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", change.keepalive_s))
        if change.allowed_ips is None:
            yield 0, [*attributes, ("WGPEER_A_FLAGS", flags)]
            continue
        flags |= WGPEER_F_REPLACE_ALLOWEDIPS
        for start in range(0, max(1, len(change.allowed_ips)), ALLOWED_IPS_A_MESSAGE):
            part = change.allowed_ips[start : start + ALLOWED_IPS_A_MESSAGE]
            listed = [("WGPEER_A_ALLOWEDIPS", [_allowed_ip(network) for network in part])] if part else []
            yield len(part), [*attributes, ("WGPEER_A_FLAGS", flags), *listed]
            attributes, flags = [("WGPEER_A_PUBLIC_KEY", str(change.key))], WGPEER_F_UPDATE_ONLY


def _allowed_ip(network: Network) -> dict[str, Any]:
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return {
        "attrs": [
            ("WGALLOWEDIP_A_FAMILY", family),
            ("WGALLOWEDIP_A_IPADDR", network.network_address.packed),
            ("WGALLOWEDIP_A_CIDR_MASK", network.prefixlen),
        ]
    }


def _endpoint_fields(endpoint: Endpoint) -> dict[str, Any]:
    address = endpoint.address
    fields: dict[str, Any] = {"addr": str(address).partition("%")[0], "port": endpoint.port}
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        fields["scope_id"] = _swapped(_scope(address.scope_id))
    return fields


def _scope(zone: str) -> int:
    """The interface index of an IPv6 zone, which is a number or a name (RFC 4007, section 11)."""
    return int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


def _swapped(scope_id: int) -> int:
    """struct sockaddr_in6 has its scope_id in the machine's byte order; pyroute2 (0.9) reads and writes it
    as big-endian."""
    return int.from_bytes(scope_id.to_bytes(4, "big"), sys.byteorder)
