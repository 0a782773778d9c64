"""The kernel's own WireGuard, by generic netlink (include/uapi/linux/wireguard.h).

A long interface arrives, and is written, in several messages: the kernel continues a peer's allowed IPs
under its bare key, and a netlink attribute holds less than 64 KiB.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
import sys
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, TypeVar

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import (
    WG_CMD_GET_DEVICE,
    WG_CMD_SET_DEVICE,
    WG_GENL_VERSION,
    WGPEER_F_REMOVE_ME,
    WGPEER_F_REPLACE_ALLOWEDIPS,
    WGPEER_F_UPDATE_ONLY,
    AsyncWireGuard,
    wgmsg,
)

from relayd.endpoints import Endpoint
from relayd.kernel import discover, hints, links, rtnl
from relayd.kernel.device import NO_KEY, Changes, Interface, Network, Peer
from relayd.kernel.planned import PlannedWireGuard
from relayd.keys import PrivateKey, PublicKey

ALLOWED_IPS_A_MESSAGE = 500
"""At most 28 + 8 bytes each: a third of what a netlink attribute can hold (65,535 bytes)."""

PEERS_A_MESSAGE = 100
"""Some 130 bytes each without their allowed IPs."""

READ_ATTEMPTS = 10
"""A dump during which the interface changed is inconsistent (NLM_F_DUMP_INTR) and is read again."""

_Result = TypeVar("_Result")
_Attribute = tuple[str, Any]


class _NotThereError(Exception):
    """The kernel has no such interface (ENODEV), not of this kind (EOPNOTSUPP), or no WireGuard (ENOENT)."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class NetlinkWireGuard(PlannedWireGuard):
    """An interface of kind "wireguard"."""

    async def dump(self) -> Interface:
        """See relayd.kernel.device.WireGuard."""
        messages = await self._call(f"read {self.name}", lambda wireguard: _dump(wireguard, self.name))
        return interface_of(self.name, messages)

    async def _write(self, attempt: str, changes: Changes) -> None:
        async def write(wireguard: Any) -> None:
            for attributes in messages_of(changes):
                await _request(wireguard, self.name, attributes)

        async def go(wireguard: Any) -> None:
            try:
                await write(wireguard)
            except NetlinkError as error:
                if error.code == errno.EADDRINUSE:
                    raise hints.port_in_use(self.name, changes.listen_port or 0) from error
                raise

        await self._call(attempt, go)

    async def _call(self, attempt: str, function: Callable[[Any], Awaitable[_Result]]) -> _Result:
        """Run `function` on a WireGuard socket. Raises HostError, saying why if the interface is gone."""

        async def talk() -> _Result:
            async with AsyncWireGuard() as wireguard:
                wireguard.module_err_level = "debug"  # what it would log as an error is told by ours
                try:
                    await wireguard.setup_endpoint()
                    return await function(wireguard)
                except NetlinkError as error:
                    if error.code in (errno.ENODEV, errno.EOPNOTSUPP, errno.ENOENT):
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


async def _dump(wireguard: Any, name: str) -> list[Any]:
    for _ in range(READ_ATTEMPTS):
        request = wgmsg()
        request["cmd"] = WG_CMD_GET_DEVICE
        request["version"] = WG_GENL_VERSION
        request["attrs"] = [("WGDEVICE_A_IFNAME", name)]
        answers = await wireguard.nlm_request(
            request, msg_type=wireguard.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
        )
        messages = [message async for message in answers]
        if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in messages):
            return messages
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


# Messages to values ----------------------------------------------------------------------------------------


def interface_of(name: str, messages: Iterable[Any]) -> Interface:
    """The interface that the messages of one dump describe."""
    public_key, listen_port, fwmark = NO_KEY, 0, 0
    private_key: PrivateKey | None = None
    peers: dict[PublicKey, Peer] = {}
    for message in messages:
        # Only the first message has these.
        public_key = _key(message.get_attr("WGDEVICE_A_PUBLIC_KEY")) or public_key
        private = b64decode(message.get_attr("WGDEVICE_A_PRIVATE_KEY") or b"")
        private_key = PrivateKey(private) if any(private) else private_key
        listen_port = message.get_attr("WGDEVICE_A_LISTEN_PORT") or listen_port
        fwmark = message.get_attr("WGDEVICE_A_FWMARK") or fwmark
        for attributes in message.get_attr("WGDEVICE_A_PEERS") or ():
            key = _key(attributes.get_attr("WGPEER_A_PUBLIC_KEY"))
            if key is None:
                continue
            allowed_ips = tuple(
                ip_network(allowed["addr"]) for allowed in attributes.get_attr("WGPEER_A_ALLOWEDIPS") or ()
            )
            if (begun := peers.get(key)) is not None:
                peers[key] = dataclasses.replace(begun, allowed_ips=begun.allowed_ips + allowed_ips)
            else:
                peers[key] = _peer(key, allowed_ips, attributes)
    return Interface(name, public_key, listen_port, fwmark, peers, private_key)


def _peer(key: PublicKey, allowed_ips: tuple[Network, ...], attributes: Any) -> Peer:
    handshake = attributes.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME") or {"tv_sec": 0, "tv_nsec": 0}
    handshake_at = handshake["tv_sec"] + handshake["tv_nsec"] / 1e9
    return Peer(
        key=key,
        endpoint=_endpoint(attributes.get_attr("WGPEER_A_ENDPOINT")),
        allowed_ips=allowed_ips,
        handshake_at=handshake_at or None,
        rx_bytes=attributes.get_attr("WGPEER_A_RX_BYTES") or 0,
        tx_bytes=attributes.get_attr("WGPEER_A_TX_BYTES") or 0,
        keepalive_s=attributes.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
    )


def _key(base64_key: bytes | None) -> PublicKey | None:
    return PublicKey(b64decode(base64_key)) if base64_key else None


def _endpoint(fields: Any) -> Endpoint | None:
    """None until the peer has one: pyroute2 then gives None, or an empty mapping."""
    if not fields or not fields.get("addr"):
        return None
    address = ip_address(fields["addr"])
    if address.is_link_local and (scope := _swapped(fields.get("scope_id", 0))):
        address = ip_address(f"{address}%{scope}")
    return Endpoint(address, fields["port"])


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
