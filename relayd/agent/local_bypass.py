"""Peers on a wire that this host is on too: what is sent to their own addresses needn't go through the
tunnel.

Where the mesh wants that (`bypass_local`), no route leads into the tunnel for an allowed IP that is the very
address at which the peer is reached directly, over a network that this host is attached to. That the peer is
there is proved by its WireGuard key, not by the address: private ranges repeat, and a stranger may have it.
When the proof gets stale, the route comes back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import trio

from relayd import marks
from relayd.agent.path_prober import PathProber
from relayd.agent.reconcile import Path
from relayd.agent.reconciler import Reconciler
from relayd.coordination.model import Mesh, MeshPeer
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.routing import MAIN, Hop
from relayd.keys import PublicKey
from relayd.observe import log

LOOK_S = 2.0
"""Between two looks: a peer that moved away gets no packets for this much longer, and for as long as its path
takes to be given up."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
LookUp = Callable[[Sequence[Address]], Awaitable[Sequence[Hop | None]]]
"""Where packets of WireGuard's own would go, an answer an address. Raises HostError."""


def on_own_addresses(
    peers: Iterable[MeshPeer], proved: Mapping[PublicKey, Endpoint]
) -> dict[Address, Network]:
    """Allowed IPs that are one address each, and that of the peer's proved endpoint."""
    found: dict[Address, Network] = {}
    for peer in peers:
        endpoint = proved.get(peer.key)
        if endpoint is not None and (own := ip_network(endpoint.without_scope().address)) in peer.routed:
            found[own.network_address] = own
    return found


def is_attached(hop: Hop | None, interface: str) -> bool:
    """Whether a packet would leave by no gateway, on a network of the host's own, and not by `interface`."""
    return hop is not None and hop.gateway is None and hop.table == MAIN and hop.device != interface


class LocalBypass:
    """The networks that are left out, and the task that keeps them true."""

    def __init__(
        self,
        interface: str,
        *,
        mesh: Callable[[], Mesh],
        proved: Callable[[], Mapping[PublicKey, Endpoint]],
        look_up: LookUp,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """`interface` is WireGuard's; `proved` says where peers are, by key, and `changed` routes anew."""
        self._interface, self._mesh, self._proved = interface, mesh, proved
        self._look_up, self._changed = look_up, changed
        self.networks: frozenset[Network] = frozenset()
        """No route of ours leads to these."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again and again, until cancelled."""
        task_status.started()
        while True:
            await self.look()
            await trio.sleep(LOOK_S)

    async def look(self) -> None:
        """See what is on a wire of ours now."""
        mesh = self._mesh()
        wanted = on_own_addresses(mesh.peers, self._proved()) if mesh.bypass_local else {}
        try:
            hops = await self._look_up(list(wanted)) if wanted else []
        except HostError as error:  # the host keeper tells of a host whose routing can't be read
            log.get(interface=self._interface).debug("bypass.unknown", reason=str(error))
            return
        found = frozenset(
            network
            for network, hop in zip(wanted.values(), hops, strict=True)
            if is_attached(hop, self._interface)
        )
        if found != self.networks:
            self.networks = found
            log.get(interface=self._interface).info("bypass.changed", networks=sorted(map(str, found)))
            await self._changed()


def proved_by(reconciler: Reconciler, prober: PathProber | None) -> dict[PublicKey, Endpoint]:
    """Where peers are, as their keys prove: a Ping of full size was answered there, or a fresh session is."""
    now, finders = trio.current_time(), {} if prober is None else prober.finders
    found: dict[PublicKey, Endpoint] = {}
    for key, path in reconciler.paths.items():
        endpoint, finder = path.peer.endpoint, finders.get(key)
        if path.path is not Path.DIRECT or endpoint is None:
            continue
        fresh = path.handshake_at is not None and now - path.handshake_at < marks.HANDSHAKE_FRESH_S
        if fresh or (finder is not None and finder.direct and finder.selector.endpoint == endpoint):
            found[key] = endpoint
    return found
