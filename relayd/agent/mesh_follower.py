"""Lets an agent follow its source: peers that come, change and go, and settings that change, while it runs.

    source.changed -> host keeper: the interface (peers, addresses, port, MTU), then rules and routes
                   -> reconciler: endpoints, the proxy's peers
                   -> mesh_settings: relays, STUN servers, times

An interface that somebody else made has peers that are not ours to change: for those, only where the relay is
is followed. What a running agent can't change (the interface's name) is said, and waits for a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from relayd.agent.beginning import owned_of
from relayd.agent.host_keeper import HostKeeper
from relayd.agent.local_bypass import LocalBypass
from relayd.agent.reconciler import Reconciler
from relayd.coordination.model import Mesh, OwnedInterface
from relayd.coordination.source import Source
from relayd.endpoints import Endpoint
from relayd.kernel import host_rules, ownership
from relayd.keys import PublicKey
from relayd.observe import log


class MeshFollower:
    """One agent's mesh, from `mesh` on."""

    def __init__(
        self,
        source: Source,
        mesh: Mesh,
        keeper: HostKeeper,
        reconciler: Reconciler,
        state_dir: Path,
        *,
        on_mesh: Callable[[Mesh], None],
        proved: Callable[[], Mapping[PublicKey, Endpoint]],
    ) -> None:
        """`on_mesh` is given each mesh, for what of it is neither the host's nor the peers'. `proved`: where
        peers are."""
        self._source, self._keeper, self._reconciler, self._state_dir = source, keeper, reconciler, state_dir
        self._on_mesh = on_mesh
        self.mesh = mesh
        """As it was followed last."""
        self.problem = ""
        """What of it takes a restart; empty: nothing does."""
        self._turn = trio.Lock()
        self.bypass = LocalBypass(
            mesh.interface.name,
            mesh=lambda: self.mesh,
            proved=proved,
            look_up=keeper.look_up,
            changed=self._route_anew,
        )
        self._log = log.get(interface=mesh.interface.name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled."""
        task_status.started()
        seen = self.mesh
        while True:
            seen = await self._source.changed(seen)
            async with self._turn:
                await self._follow(seen)

    async def _route_anew(self) -> None:
        """Which peers are on a wire of ours has changed."""
        async with self._turn:
            if isinstance(self.mesh.interface, OwnedInterface):
                await self._keep_host(self.mesh, self.mesh.interface, self.mesh)

    async def _follow(self, wanted: Mesh) -> None:
        before, interface = self.mesh, wanted.interface
        if interface.name != before.interface.name:
            problem = f"the mesh's interface is called {interface.name} now: restart the agent"
            if problem != self.problem:
                self._log.error("mesh.restart_needed", reason=problem)
            self.problem = problem
            interface = replace(interface, name=before.interface.name)
            wanted = replace(wanted, interface=interface)
        else:
            self.problem = ""
        self.mesh = wanted
        if not isinstance(interface, OwnedInterface):
            self._on_mesh(wanted)
            return
        had = {peer.key: peer for peer in before.peers}
        has = {peer.key: peer for peer in wanted.peers}
        self._log.info(
            "mesh.changed",
            peers=len(has),
            added=len(has.keys() - had.keys()),
            removed=len(had.keys() - has.keys()),
            changed=sum(1 for key in has.keys() & had.keys() if has[key] != had[key]),
        )
        # An endpoint is news only when it is new: what a peer roamed to is true, and what the source said
        # before may not be.
        news = replace(
            wanted,
            peers=tuple(
                replace(peer, endpoint=None)
                if peer.key in had and had[peer.key].endpoint == peer.endpoint
                else peer
                for peer in wanted.peers
            ),
        )
        await self._keep_host(wanted, interface, news)
        self._reconciler.configure(
            {peer.key: peer.endpoint for peer in wanted.peers if peer.endpoint is not None}
        )
        # Not before the host knows them: the connection to a relay must not go into the tunnel.
        self._on_mesh(wanted)
        self._reconciler.nudge()

    async def _keep_host(self, wanted: Mesh, interface: OwnedInterface, news: Mesh) -> None:
        keep = partial(ownership.keep_owned, state_dir=self._state_dir)
        routed = [network for peer in wanted.peers for network in peer.routed]
        await self._keeper.follow(
            host_rules.owned(
                interface.name,
                interface.addresses,
                [network for network in routed if network not in self.bypass.networks],
            ),
            (*wanted.relays, *wanted.relay_sets),
            now=partial(keep, owned_of(interface, news), endpoints=news is not wanted),
            later=partial(keep, owned_of(interface, wanted)),
        )
