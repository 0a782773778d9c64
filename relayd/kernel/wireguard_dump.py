"""What the kernel answers to WG_CMD_GET_DEVICE (linux/wireguard.h), as an `Interface`. Pure.

An agent reads its interface every second. pyroute2's decoding into objects takes 0.2 ms a peer and holds the
interpreter meanwhile: with 1,000 peers the data plane would stall each second. This takes some 10 us a peer,
and lets others have their turn in between.

A long interface comes in several messages: a peer whose allowed IPs don't fit goes on in the next one, under
its bare key (wg_get_device_dump in drivers/net/wireguard/netlink.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from relayd.endpoints import Endpoint
from relayd.kernel.device import NO_KEY, Interface, Network, Peer
from relayd.kernel.genl import GENL_HEADER
from relayd.kernel.nlmsg import attribute, attributes_of
from relayd.keys import KEY_BYTES, PrivateKey, PublicKey

FAMILY, VERSION, GET_DEVICE = "wireguard", 1, 0

_IFNAME, _PRIVATE_KEY, _PUBLIC_KEY, _LISTEN_PORT, _FWMARK, _PEERS = 2, 3, 4, 6, 7, 8
_PEER_KEY, _ENDPOINT, _KEEPALIVE, _HANDSHAKE, _RX, _TX, _ALLOWED_IPS = 1, 4, 5, 6, 7, 8, 9
_ADDRESS, _PREFIX = 2, 3
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_TIMESPEC = struct.Struct("=qq")  # struct __kernel_timespec
_PORT = struct.Struct("!H")
_SOCKADDR_IN, _SOCKADDR_IN6 = 16, 28  # bytes; the address at 4 and at 8, the IPv6 scope at 24

_REMEMBERED = 1 << 14
"""Endpoints that are the same at the next look, as most are."""

_LISTS_REMEMBERED = {128: 1 << 14, 2048: 1 << 10, 1 << 16: 1 << 6}
"""Of lists of allowed IPs, by the bytes that they have at most. Decoded they have twenty times as many: who
changes his list all the time shall not fill the memory with what it was before."""


def request(name: str) -> bytes:
    """The attributes that ask for the interface `name`."""
    return attribute(_IFNAME, name.encode() + b"\0")


class Reader:
    """Takes the messages of one dump."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._public_key, self._private_key = NO_KEY, bytes(KEY_BYTES)
        self._listen_port = self._fwmark = 0
        self._peers: dict[PublicKey, Peer] = {}

    def feed(self, body: bytes) -> Iterator[None]:
        """Decode one message; yields after each peer. Raises ValueError or struct.error for what can't be
        one: a kernel whose WireGuard isn't the one that we know."""
        for kind, start, end in attributes_of(body, GENL_HEADER.size, len(body)):
            # Only the first message has these.
            if kind == _PUBLIC_KEY:
                self._public_key = PublicKey(body[start:end])
            elif kind == _PRIVATE_KEY:
                self._private_key = body[start:end]
            elif kind == _LISTEN_PORT:
                (self._listen_port,) = _U16.unpack_from(body, start)
            elif kind == _FWMARK:
                (self._fwmark,) = _U32.unpack_from(body, start)
            elif kind == _PEERS:
                for _, peer_start, peer_end in attributes_of(body, start, end):
                    self._peer(body, peer_start, peer_end)
                    yield

    def _peer(self, body: bytes, start: int, end: int) -> None:
        key = NO_KEY
        endpoint: Endpoint | None = None
        keepalive_s = rx_bytes = tx_bytes = 0
        handshake_at = 0.0
        allowed_ips: tuple[Network, ...] = ()
        for kind, at, until in attributes_of(body, start, end):
            if kind == _PEER_KEY:
                key = PublicKey(body[at:until])
            elif kind == _ENDPOINT:
                endpoint = _endpoint(body[at:until])
            elif kind == _KEEPALIVE:
                (keepalive_s,) = _U16.unpack_from(body, at)
            elif kind == _HANDSHAKE:
                whole_s, nanoseconds = _TIMESPEC.unpack_from(body, at)
                handshake_at = whole_s + nanoseconds / 1e9
            elif kind == _RX:
                (rx_bytes,) = _U64.unpack_from(body, at)
            elif kind == _TX:
                (tx_bytes,) = _U64.unpack_from(body, at)
            elif kind == _ALLOWED_IPS:
                allowed_ips = _remembered(body[at:until])
        begun = self._peers.get(key)
        if begun is not None:
            self._peers[key] = replace(begun, allowed_ips=begun.allowed_ips + allowed_ips)
            return
        self._peers[key] = Peer(
            key=key,
            endpoint=endpoint,
            allowed_ips=allowed_ips,
            handshake_at=handshake_at or None,
            rx_bytes=rx_bytes,
            tx_bytes=tx_bytes,
            keepalive_s=keepalive_s,
        )

    def interface(self) -> Interface:
        """All that was fed."""
        private_key = PrivateKey(self._private_key) if any(self._private_key) else None
        return Interface(
            self._name, self._public_key, self._listen_port, self._fwmark, self._peers, private_key
        )


@lru_cache(_REMEMBERED)
def _endpoint(address: bytes) -> Endpoint | None:
    """A struct sockaddr_in or sockaddr_in6; None: the peer has none yet."""
    if len(address) < _SOCKADDR_IN:
        return None
    (port,) = _PORT.unpack_from(address, 2)
    if len(address) < _SOCKADDR_IN6:
        return Endpoint(IPv4Address(address[4:8]), port) if port else None
    found = IPv6Address(address[8:24])
    (scope,) = _U32.unpack_from(address, 24)
    if found.is_link_local and scope:
        found = IPv6Address(f"{found}%{scope}")
    return Endpoint(found, port) if port else None


def _remembered(nested: bytes) -> tuple[Network, ...]:
    return next(lists for at_most, lists in _LISTS.items() if len(nested) <= at_most)(nested)


def _networks(nested: bytes) -> tuple[Network, ...]:
    found: list[Network] = []
    for _, start, end in attributes_of(nested, 0, len(nested)):
        address, prefix = b"", 0
        for kind, at, until in attributes_of(nested, start, end):
            if kind == _ADDRESS:
                address = nested[at:until]
            elif kind == _PREFIX:
                prefix = nested[at]
        found.append(IPv4Network((address, prefix)) if len(address) == 4 else IPv6Network((address, prefix)))
    return tuple(found)


_LISTS = {at_most: lru_cache(count)(_networks) for at_most, count in _LISTS_REMEMBERED.items()}
