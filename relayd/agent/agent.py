"""The agent, put together: the interface, the proxy beside it, the link to the relay, and who decides.

    kernel WireGuard -> wg_proxy -> relay_link -> relay       (and back, all within the poller's task)
    kernel WireGuard -> reconciler (reconcile.plan) -> endpoints

When it ends, connections and sockets go; interface, peers, endpoints and addresses stay as they are, so
that a direct tunnel doesn't notice, and a relayed one goes on when the agent is back: the proxy's port
and the peers' loopback addresses are the same then.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import trio

import relayd
from relayd import marks
from relayd.agent.agent_status import merge_drops, peer_status
from relayd.agent.loop_lag import LoopLag
from relayd.agent.loopback import FILE_NAME, LoopbackAddresses
from relayd.agent.reconciler import Reconciler
from relayd.agent.relay_link import LinkSettings, RelayLink
from relayd.agent.wg_proxy import WgProxy
from relayd.config import AgentConfig
from relayd.coordination.model import Mesh, OwnedInterface
from relayd.coordination.static_file import StaticFile
from relayd.kernel import links
from relayd.kernel.wireguard import Interface, PeerSettings, WireGuard, ensure_interface, open_wireguard
from relayd.netio.datagrams import DatagramSocket
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.observe.control import serve_control
from relayd.services import Service, supervise
from relayd.wire.runs import Run

UNDO_TIMEOUT_S = 10.0


async def run_agent(
    config: AgentConfig, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run an agent until cancelled; `task_status.started()` when every peer has been looked at and set.

    The relay may be away by then, and at any time: the agent waits for it. Raises HostError when the
    interface, a capability or the proxy's port is missing, or when an agent runs for this interface already.
    """
    mesh = await StaticFile(config).snapshot()
    with ExitStack() as stack:
        wireguard = await open_interface(mesh)
        stack.callback(wireguard.close)
        interface = await wireguard.read()
        agent = Agent(config, mesh, wireguard, interface, stack)
        trio.lowlevel.add_instrument(agent.loop_lag)
        stack.callback(trio.lowlevel.remove_instrument, agent.loop_lag)
        async with trio.open_nursery() as nursery:
            await nursery.start(supervise, agent.services())
            log.get(interface=interface.name).info(
                "agent.started",
                public_key=interface.public_key,
                peers=len(interface.peers),
                relay=mesh.relay,
                proxy_port=agent.proxy.port,
                control=config.control_path,
            )
            task_status.started()


async def open_interface(mesh: Mesh) -> WireGuard:
    """The interface that `mesh` speaks of: an existing one as it is, one of ours made and set as described.

    Raises HostError. An interface that was made here goes again when it can't be set up.
    """
    wanted = mesh.interface
    if not isinstance(wanted, OwnedInterface):
        return await open_wireguard(wanted.name)
    made = await ensure_interface(wanted.name, mtu=wanted.mtu, addresses=wanted.addresses)
    try:
        wireguard = await open_wireguard(wanted.name)
        try:
            await wireguard.configure(
                wanted.private_key,
                listen_port=wanted.listen_port,
                fwmark=marks.FWMARK,
                peers=[
                    PeerSettings(
                        key=peer.key,
                        allowed_ips=peer.allowed_ips,
                        endpoint=peer.endpoint,
                        keepalive_s=peer.keepalive_s,
                    )
                    for peer in mesh.peers
                ],
            )
        except BaseException:
            wireguard.close()
            raise
    except BaseException:
        if made:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + UNDO_TIMEOUT_S):
                await links.remove(wanted.name)
        raise
    return wireguard


class Agent:
    """The parts of one agent, each knowing what it needs of the others."""

    def __init__(
        self, config: AgentConfig, mesh: Mesh, wireguard: WireGuard, interface: Interface, stack: ExitStack
    ) -> None:
        """`interface` is what `wireguard` read. `stack` closes what is opened here. Raises HostError."""
        self._config = config
        self._started_at = time.monotonic()
        self.loop_lag = LoopLag()
        self.poller = Poller()
        stack.callback(self.poller.close)
        addresses = LoopbackAddresses(Path(config.state_dir) / FILE_NAME)
        # Link and proxy know each other by one function each; the link sends nothing before it runs.
        self.link = RelayLink(
            self.poller,
            mesh.relay,
            interface.public_key,
            self._deliver,
            LinkSettings(
                dial_timeout_s=config.dial_timeout_s,
                keepalive_s=config.keepalive_s,
                echo_s=config.echo_s,
                queue_bytes=config.queue_bytes,
                queue_age_s=config.queue_age_ms / 1e3,
            ),
        )
        self.proxy = WgProxy(
            self.poller,
            DatagramSocket(config.proxy_port),
            wireguard_port=interface.listen_port,
            peers={},
            send_frames=self.link.send,
            congested=self.link.congested,
        )
        stack.callback(self.proxy.close)
        self.reconciler = Reconciler(
            interface,
            wireguard,
            reopen=lambda: open_wireguard(interface.name),
            proxy=self.proxy,
            link=self.link,
            address_of=addresses.address_of,
            proxy_port=self.proxy.port,
            fresh_handshake_s=config.fresh_handshake_s,
            every_s=config.reconcile_s,
        )
        stack.callback(self.reconciler.close)

    def services(self) -> list[Service]:
        """What runs, in the order in which it starts."""
        return [
            Service(
                name="control socket",
                run=partial(serve_control, self._config.control_path, {"status": self.status}),
            ),
            Service(name="data path", run=self.poller.run),
            Service(name="relay link", run=self.link.run),
            Service(name="reconciler", run=self.reconciler.run),
        ]

    def status(self) -> dict[str, object]:
        """What `relayd status` shows."""
        interface = self.reconciler.interface
        now = trio.current_time()
        relayed = self.proxy.peers
        return {
            "role": "agent",
            "version": relayd.__version__,
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "interface": interface.name,
            "interface_problem": self.reconciler.problem,
            "public_key": str(interface.public_key),
            "listen_port": interface.listen_port,
            "proxy_port": self.proxy.port,
            "relay": self.link.status(),
            "peers": [
                peer_status(
                    path,
                    relayed.get(key),
                    relay_connected=self.link.connected,
                    now=now,
                )
                for key, path in self.reconciler.paths.items()
            ],
            "drops": merge_drops(self.link.drops(), self.proxy.drops()),
            "proxy": {"renewals": self.proxy.renewals, "last_error": self.proxy.last_error},
            "loop_lag_ms_max": round(self.loop_lag.max_s() * 1e3, 3),
        }

    def _deliver(self, buffer: bytearray, runs: list[Run], now: float) -> None:
        self.proxy.deliver(buffer, runs, now)
