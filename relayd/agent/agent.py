"""The agent, put together: the interface, the proxy beside it, the link to the relay, and who decides.

    kernel WireGuard -> wg_proxy -> relay_link -> relay       (and back, all within the poller's task)
    kernel WireGuard -> reconciler (reconcile.plan) -> endpoints
    peers' agents <-> direct_paths (path_prober) -> reconciler (verdicts)
    kernel's news -> host_keeper -> interface, rules, routes

When it ends, connections and sockets go; interface, peers, endpoints, routes and rules stay as they are, so
that a direct tunnel doesn't notice, and a relayed one goes on when the agent is back: the proxy's port
and the peers' loopback addresses are the same then.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from msgspec import structs

import relayd
from relayd.agent.agent_status import histories, interest, merge_drops, peer_status, proxy_status, ways
from relayd.agent.direct_endpoints import DirectEndpoints
from relayd.agent.direct_paths import DirectPaths
from relayd.agent.handover import AgentHandover
from relayd.agent.host_keeper import HostKeeper
from relayd.agent.known_relays import KnownRelays
from relayd.agent.link_settings import LinkSettings
from relayd.agent.local_bypass import proved_by
from relayd.agent.loopback import FILE_NAME, LoopbackAddresses
from relayd.agent.mesh_follower import MeshFollower
from relayd.agent.mesh_settings import MeshSettings
from relayd.agent.reconciler import Reconciler
from relayd.agent.reinjector import Reinjector
from relayd.agent.relay_connection import OnRuns
from relayd.agent.relay_link import RelayLink
from relayd.agent.relay_pool import RelayPool
from relayd.agent.wg_proxy import WgProxy
from relayd.config import AgentConfig
from relayd.coordination.model import Mesh
from relayd.coordination.source import Source
from relayd.join import JoinString
from relayd.kernel import hints
from relayd.kernel.state_dir import RELAYS
from relayd.kernel.wireguard import Interface, WireGuard, open_wireguard
from relayd.keys import PrivateKey, PublicKey
from relayd.manager.handover import ended_in_order
from relayd.netio.datagrams import DatagramSocket
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.observe.control import serve_control
from relayd.observe.http_place import HttpPlace
from relayd.observe.http_site import serve_http
from relayd.observe.loop_lag import LoopLag
from relayd.observe.telling import Telling
from relayd.services import Service
from relayd.wire.identity_frames import PeerGone
from relayd.wire.runs import Run

if TYPE_CHECKING:
    from relayd.agent.cluster import Cluster


class Agent:
    """The parts of one agent, each knowing what it needs of the others."""

    def __init__(
        self,
        config: AgentConfig,
        source: Source,
        mesh: Mesh,
        wireguard: WireGuard,
        interface: Interface,
        keeper: HostKeeper,
        stack: ExitStack,
        handover: AgentHandover,
        *,
        http: HttpPlace,
        cluster: Cluster | None = None,
    ) -> None:
        """`mesh` is what `source` had, `interface` what `wireguard` read. `stack` closes what is opened here.

        What `handover` has of an earlier process is used. Raises HostError.
        """
        if interface.private_key is None:
            raise hints.no_private_key(interface.name)
        self._config, self._cluster = config, cluster
        self._http = http
        self._link_settings = LinkSettings.of(config)
        self.keeper = keeper
        self._started_at = time.monotonic()
        self.loop_lag = LoopLag()
        self.poller = Poller()
        stack.callback(self.poller.close)
        addresses = LoopbackAddresses(Path(config.state_dir) / FILE_NAME)
        # Link and proxy know each other by one function each; the link sends nothing before it runs.
        known = KnownRelays(Path(config.state_dir) / RELAYS)

        def make_link(
            relay: JoinString,
            key: PrivateKey,
            home_key: PublicKey | None,
            on_runs: OnRuns,
            on_gone: Callable[[PeerGone], None],
        ) -> RelayLink:
            return RelayLink(
                self.poller,
                relay,
                key,
                on_runs,
                self._link_settings,
                home_key=home_key,
                known=known,
                handover=handover,
                on_message=self._on_message,
                on_gone=on_gone,
                on_up=lambda: self.proxy.initiations.all_again(self.poller.now),
                agents=lambda: len(self.reconciler.interface.peers) + 1,
            )

        self.relays = RelayPool(
            mesh.relays,
            interface.private_key,
            make_link,
            on_runs=self._deliver,
            on_gone=self._on_gone,
            handover=handover,
        )
        reinjector = Reinjector(interface.listen_port) if config.direct_paths else None
        self.proxy = WgProxy(
            self.poller,
            DatagramSocket(
                config.proxy_port,
                passed=handover.take_loopback(config.proxy_port),
                keep=handover.keep_loopback,
            ),
            wireguard_port=interface.listen_port,
            peers={},
            send_frames=self.relays.send,
            congested=self.relays.congested,
            hand_over=reinjector,
        )
        stack.callback(self.proxy.close)
        direct = DirectEndpoints(Path(config.state_dir), interface.name)
        configured = {peer.key: peer.endpoint for peer in mesh.peers if peer.endpoint is not None}
        self.direct_paths: DirectPaths | None = None
        if reinjector is not None:
            stack.callback(reinjector.close)
            self.direct_paths = DirectPaths(
                config,
                interface,
                self.poller,
                reinjector,
                stack,
                link=self.relays,
                proxy=self.proxy,
                nudge=self._nudge,
                known=lambda key: filter(None, (configured.get(key), direct.endpoints.get(key))),
            )
        self.reconciler = Reconciler(
            interface,
            wireguard,
            reopen=lambda: open_wireguard(interface.name),
            proxy=self.proxy,
            link=self.relays,
            address_of=addresses.address_of,
            direct=direct,
            configured=configured,
            deciders=self.direct_paths.prober if self.direct_paths is not None else None,
            proxy_port=self.proxy.port,
            patience=config.patience,
            every_s=config.reconcile_s,
            on_read=keeper.interface_read,
        )
        stack.callback(self.reconciler.close)
        self.settings = MeshSettings(config, mesh, self.relays, self.reconciler, self.direct_paths)
        prober = self.direct_paths.prober if self.direct_paths is not None else None
        self.follower = MeshFollower(
            source,
            mesh,
            keeper,
            self.reconciler,
            Path(config.state_dir),
            on_mesh=self.settings.use,
            proved=lambda: proved_by(self.reconciler, prober),
        )

    def hand_over(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """At the end: after one in order (cancelled, that is) the next process goes on from here."""
        if ended_in_order(error) and (handed_over := self.relays.save()):
            log.get().info("agent.handed_over", connections=handed_over)

    def use(self, config: AgentConfig) -> None:
        """Take over what can change while it runs: the settings that are `live`. (Peers, relays and the
        interface come from the source.)"""
        self._config = structs.replace(config, interface=self._config.interface, owned=self._config.owned)
        self._http.use(config.http, config.http_names)
        self._link_settings = LinkSettings.of(config)
        self.relays.use(self._link_settings)
        self.reconciler.look_every(config.reconcile_s)
        self.settings.configure(self._config)

    def services(self) -> list[Service]:
        """What runs, in the order in which it starts."""
        telling = Telling(self)
        reports = [] if self._cluster is None else [self._cluster.publisher(self).run]
        return [
            Service(
                name="control socket",
                run=partial(
                    serve_control, self._config.control_path, {**telling.answers(), "why": self._histories}
                ),
            ),
            Service(name="http", run=partial(serve_http, self._http, self, telling)),
            Service(name="data path", run=self.poller.run),
            Service(name="relay names", run=self.settings.relay_sets.run),
            Service(name="relays", run=self.relays.run),
            *(self.direct_paths.services() if self.direct_paths is not None else ()),
            Service(name="reconciler", run=self.reconciler.run),
            Service(name="host keeper", run=self.keeper.run),
            Service(name="mesh", run=self.follower.run),
            Service(name="local bypass", run=self.follower.bypass.run),
            *(Service(name="reports", run=run) for run in reports),
        ]

    def summary(self) -> dict[str, object]:
        """What `relayd status` shows, all but the peers."""
        interface = self.reconciler.interface
        return {
            "role": "agent",
            "version": relayd.__version__,
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "http": self._http.address,
            "interface": interface.name,
            "interface_problem": self.reconciler.problem,
            "host_problems": list(self.keeper.problems),
            "mesh_problem": self.follower.problem,
            "patience": asdict(self.reconciler.patience),
            "cluster": None if self._cluster is None else self._cluster.source.status(),
            "public_key": str(interface.public_key),
            "listen_port": interface.listen_port,
            "proxy_port": self.proxy.port,
            "relay": self.relays.home_status(),
            "relays": self.relays.status(),
            "relay_names_problem": self.settings.relay_sets.problem,
            "paths": dict(Counter(str(peer["path"]) for peer in self.peers())),
            "discovery": self.direct_paths.discovery.status() if self.direct_paths is not None else None,
            "direct_paths": self.direct_paths.summary() if self.direct_paths is not None else None,
            "drops": merge_drops(
                self.relays.drops(),
                self.proxy.drops(),
                self.direct_paths.drops() if self.direct_paths is not None else {},
            ),
            "queued_bytes": self.relays.queued_bytes,
            "queue_delay": self.relays.delays.status(),
            "proxy": proxy_status(self.proxy),
            "loop_lag_ms_max": round(self.loop_lag.max_s() * 1e3, 3),
        }

    def status_line(self) -> str:
        """For `systemctl status`."""
        return f"relay {self.relays.home_status()['state']}; peers: {ways(self.reconciler.paths.values())}"

    def peers(self, limit: int | None = None) -> Iterator[dict[str, object]]:
        """The peers one by one; with `limit` so many of them, those on the relay and the busiest first."""
        now = trio.current_time()
        relayed = self.proxy.peers
        paths = list(self.reconciler.paths.items())
        if limit is not None:
            paths = heapq.nlargest(limit, paths, key=interest)
        finders = self.direct_paths.prober.finders if self.direct_paths is not None else {}
        names = {peer.key: peer.name for peer in self.follower.mesh.peers}
        return (
            peer_status(
                path,
                relayed.get(key),
                relay_connected=self.relays.connected,
                now=now,
                finder=finders.get(key),
                name=names.get(key, ""),
            )
            for key, path in paths
        )

    async def _histories(self) -> bytes:
        return await histories(self.direct_paths.prober.finders if self.direct_paths is not None else {})

    def _nudge(self) -> None:
        self.reconciler.nudge()

    def _on_message(self, key: bytes, payload: bytes, now: float) -> None:
        self.proxy.initiations.again(key, self.poller.now)
        if self.direct_paths is not None:
            self.direct_paths.prober.on_relayed(key, payload, now)

    def _on_gone(self, gone: PeerGone) -> None:
        self.settings.relay_sets.look_soon()
        self.proxy.peer_gone(gone.key, gone.reason, trio.current_time())
        if self.relays.several:  # its frames go to the next relay now
            self.proxy.initiations.again(gone.key.raw, self.poller.now)

    def _deliver(self, buffer: bytearray, runs: list[Run], now: float) -> None:
        self.proxy.deliver(buffer, runs, now)
