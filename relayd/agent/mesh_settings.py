"""What of a mesh is neither the host's nor the peers': relays, STUN servers, when which is used, and how long
one waits. Each mesh that comes is applied to the parts that it concerns.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from relayd.agent.direct_paths import DirectPaths
from relayd.agent.reconciler import Reconciler
from relayd.agent.relay_pool import RelayPool
from relayd.agent.relay_sets import RelaySets
from relayd.config import AgentConfig
from relayd.coordination.model import Mesh, RelayMode
from relayd.join import JoinString


class MeshSettings:
    """The settings in force."""

    def __init__(
        self,
        config: AgentConfig,
        mesh: Mesh,
        relays: RelayPool,
        reconciler: Reconciler,
        direct_paths: DirectPaths | None,
    ) -> None:
        self._config, self._mesh = config, mesh
        self._relays, self._reconciler, self._direct_paths = relays, reconciler, direct_paths
        self.relay_sets = RelaySets(self._reach, connected=lambda: relays.connected)
        self.use(mesh)

    def use(self, mesh: Mesh) -> None:
        """This is the mesh from now on."""
        self._mesh = mesh
        self.relay_sets.follow(mesh.relays, mesh.relay_sets)
        always = mesh.relay_mode is RelayMode.ALWAYS
        patience = mesh.patience.over(self._config.patience)
        self._reconciler.be_patient(patience)
        self._reconciler.relay_always(always)
        if self._direct_paths is not None:
            birthday = self._config.birthday if mesh.birthday is None else mesh.birthday
            self._direct_paths.use(msgspec.structs.replace(self._config, birthday=birthday))
            self._direct_paths.prober.be_patient(patience)
            self._direct_paths.prober.search(not always)
            self._direct_paths.use_servers(self._stun_servers())

    def configure(self, config: AgentConfig) -> None:
        """This is the agent's own configuration from now on."""
        self._config = config
        self.use(self._mesh)

    def _reach(self, relays: Sequence[JoinString]) -> None:
        self._relays.update(relays)
        if self._direct_paths is not None:
            self._direct_paths.use_servers(self._stun_servers())

    def _stun_servers(self) -> list[str]:
        """Each relay is one."""
        return [
            *(relay.address for relay in self.relay_sets.relays),
            *self._config.stun,
            *self._mesh.stun,
        ]
