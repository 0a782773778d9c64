"""An existing WireGuard interface (made by wg-quick, by hand) as the description of the mesh, by polling it.

Kernel and coordination don't know each other: what reads the interface comes in as a function, and what it
reads is told here by two small protocols, which `relayd.kernel.wireguard.Interface` and `Peer` fit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

import trio

from relayd.coordination.model import AdoptedInterface, Mesh, MeshPeer
from relayd.errors import HostError
from relayd.join import JoinString
from relayd.keys import PublicKey
from relayd.observe import log


class PeerSeen(Protocol):
    """What matters here of a peer of the interface."""

    @property
    def key(self) -> PublicKey: ...
    @property
    def allowed_ips(self) -> tuple[IPv4Network | IPv6Network, ...]: ...
    @property
    def keepalive_s(self) -> int: ...


class InterfaceSeen(Protocol):
    """What matters here of the interface."""

    @property
    def name(self) -> str: ...
    @property
    def peers(self) -> Mapping[PublicKey, PeerSeen]: ...


def mesh_of(interface: InterfaceSeen, relays: tuple[JoinString, ...]) -> Mesh:
    """The mesh that the interface describes.

    Two readings of which nobody changed anything are equal: peers and allowed IPs are sorted, and endpoints
    are left out (a peer that roams, or is pointed at the relay, is still the same peer of the same mesh).
    """
    return Mesh(
        interface=AdoptedInterface(interface.name),
        peers=tuple(
            MeshPeer(
                key=peer.key,
                allowed_ips=tuple(sorted(peer.allowed_ips, key=_order)),
                keepalive_s=peer.keepalive_s,
            )
            for peer in sorted(interface.peers.values(), key=lambda peer: peer.key)
        ),
        relays=relays,
    )


def _order(network: IPv4Network | IPv6Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


class AdoptedSource:
    """A `Source` that reads the interface anew every `poll_s` seconds while somebody waits for a change."""

    def __init__(
        self,
        read: Callable[[], Awaitable[InterfaceSeen]],
        relays: tuple[JoinString, ...],
        *,
        poll_s: float = 1.0,
    ) -> None:
        """`read` gives the interface as it is now (WireGuard.read), or raises HostError."""
        self._read, self._relays, self._poll_s = read, relays, poll_s

    async def snapshot(self) -> Mesh:
        """The mesh as the interface has it now. Raises HostError with what is missing."""
        return mesh_of(await self._read(), self._relays)

    async def changed(self, seen: Mesh) -> Mesh:
        """The first reading that differs from `seen`. An interface that is away is waited for."""
        logger, away = log.get(interface=seen.interface.name), False
        while True:
            try:
                mesh = await self.snapshot()
            except HostError as error:
                if not away:
                    logger.warning("interface.lost", reason=str(error))
                away = True
            else:
                if away:
                    logger.info("interface.found")
                away = False
                if mesh != seen:
                    return mesh
            await trio.sleep(self._poll_s)
