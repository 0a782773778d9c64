"""An agent of a Kubernetes cluster: where its source comes from, and what it reports of itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from relayd import marks
from relayd.config import AgentConfig, InterfaceConfig
from relayd.config.types import KEY_FILE
from relayd.coordination.kubernetes.client import ApiClient, access_of
from relayd.coordination.kubernetes.memory import ClusterMemory
from relayd.coordination.kubernetes.mesh import Discovered, Self
from relayd.coordination.kubernetes.publisher import Publisher
from relayd.coordination.kubernetes.report import Facts, PeerFacts
from relayd.coordination.kubernetes.source import KubernetesSource
from relayd.coordination.model import Mesh, OwnedInterface
from relayd.kernel.state_dir import CLUSTER, read_json, write_json
from relayd.paths.candidates import Candidate
from relayd.paths.findings import Finding, Method
from relayd.paths.nat_class import NatType
from relayd.paths.report import ice_state
from relayd.secret_file import private_key

if TYPE_CHECKING:
    from relayd.agent.agent import Agent

ICE_STATES = ("connected", "relay", "checking", "failed", "gathering")
"""In the order in which they count for a node as a whole. Checks go on all the time for peers that are
relayed: each of them isn't worth a write to the API server."""


class Cluster:
    """What an agent has of its cluster."""

    def __init__(self, config: AgentConfig, environ: Mapping[str, str] = os.environ) -> None:
        """The node's key is made if need be. Raises ConfigError and HostError."""
        assert config.node_name is not None  # the configuration was checked
        self._config, self._state_dir = config, Path(config.state_dir)
        self._key = private_key(self._state_dir / KEY_FILE)
        self.client = ApiClient(access_of(config, environ))
        self._file = self._state_dir / CLUSTER
        self.source = KubernetesSource(
            self.client,
            self._own(config),
            remembered=read_json(self._file, ClusterMemory),
            remember=self._remember,
        )

    def use(self, config: AgentConfig) -> None:
        """The agent's own configuration has changed while it runs: its relays may be others."""
        self.source.use(self._own(config))

    def _own(self, config: AgentConfig) -> Self:
        return Self(
            name=str(self._config.node_name),
            private_key=self._key,
            interface=self._config.interface if self._config.interface != marks.DEFAULT_INTERFACE else "",
            relays=config.relays,
        )

    async def _remember(self, memory: ClusterMemory) -> None:
        await trio.to_thread.run_sync(write_json, self._file, memory)

    def configured(self, mesh: Mesh) -> AgentConfig:
        """The configuration of an agent with the mesh's interface."""
        interface = mesh.interface
        assert isinstance(interface, OwnedInterface)  # as this source has it
        return msgspec.structs.replace(
            self._config,
            interface=interface.name,
            owned=InterfaceConfig(
                name=interface.name,
                private_key_file=self._state_dir / KEY_FILE,
                private_key=interface.private_key,
                listen_port=interface.listen_port,
                address=interface.addresses,
                mtu=interface.mtu,
            ),
        )

    def publisher(self, agent: Agent) -> Publisher:
        """Who reports of `agent`."""
        return Publisher(self.client, str(self._config.node_name), partial(self._facts, agent))

    def _facts(self, agent: Agent) -> Facts | None:
        meaning = self.source.meaning
        if meaning is None or self.source.removed:
            return None
        paths = agent.direct_paths
        if paths is not None:
            self.source.discover(discovered(paths.discovery.findings, paths.discovery.nat()))
        relay_connected = agent.relays.connected
        round_trip_ms = agent.relays.home.status()["round_trip_ms"]
        return Facts(
            peers=[
                PeerFacts(
                    name=meaning.names[key],
                    path="none" if path.path.value == "relay" and not relay_connected else path.path.value,
                    handshake_at=path.peer.handshake_at,
                    rx_bytes=path.peer.rx_bytes,
                    tx_bytes=path.peer.tx_bytes,
                )
                for key, path in agent.reconciler.paths.items()
                if key in meaning.names
            ],
            relay_connected=relay_connected,
            relay_latency_ms=round_trip_ms if isinstance(round_trip_ms, float) else None,
            endpoint_method=self.source.endpoint_method,
            nat_type="" if paths is None else _known(paths.discovery.nat()),
            ice_state="" if paths is None else overall(map(ice_state, paths.prober.finders.values())),
            candidates=() if paths is None else reported(paths.addresses.local.candidates),
            mapped_ports=() if paths is None else paths.addresses.mapped_ports(),
            bind_mode=agent.reconciler.engine,
            problems=self._problems(agent),
        )

    def _problems(self, agent: Agent) -> Sequence[str]:
        meaning = self.source.meaning
        lines = [*(meaning.problems if meaning is not None else ()), *agent.keeper.problems]
        return [*lines, agent.follower.problem] if agent.follower.problem else lines


def discovered(findings: Iterable[Finding], nat: NatType) -> Discovered:
    """The endpoint to publish, of what discovery has found, the most believable first.

    Guesses and addresses of interfaces aren't published: of these, the Node's InternalIP is the one that
    counts. What a symmetric NAT gave for a STUN server is of little use to anybody, and another one at each
    look; an IPv6 address of an interface may be behind a firewall.
    """
    for one in findings:
        if not one.estimated and one.method is not Method.INTERNAL_IP:
            in_vain = (
                one.method is Method.STUN and one.endpoint.address.version == 4 and nat is NatType.SYMMETRIC
            )
            return Discovered(
                endpoint=str(one.endpoint),
                method=one.method.value,
                sure=not in_vain and one.method is not Method.IPV6,
            )
    return Discovered()


def overall(states: Iterable[str]) -> str:
    """`iceState` of a node, of its peers' states: the best that there is. "": there are no peers."""
    seen = set(states)
    return next((state for state in ICE_STATES if state in seen), "")


def reported(candidates: Iterable[Candidate]) -> list[dict[str, object]]:
    """`iceCandidates`."""
    return [{"type": one.type, "address": str(one.endpoint), "priority": one.priority} for one in candidates]


def _known(nat: NatType) -> str:
    return "" if nat is NatType.UNKNOWN else nat.value
