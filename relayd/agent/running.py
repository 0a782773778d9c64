"""`relayd agent`: what it is told of and begins with, and the agent that runs then, until it is cancelled."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from relayd.agent.agent import Agent
from relayd.agent.beginning import (
    clean_state,
    hold_state,
    host_rules,
    keeper_of,
    open_interface,
    refuse_second,
)
from relayd.agent.handover import AgentHandover
from relayd.agent.node_key import with_key
from relayd.config import AgentConfig
from relayd.coordination.model import Mesh
from relayd.coordination.source import Source
from relayd.coordination.static_file import StaticFile
from relayd.kernel import state_dir
from relayd.manager.manager import Manager
from relayd.manager.status_line import status_services
from relayd.manager.watchdog import watchdog_services
from relayd.netio.names import Names
from relayd.observe import log
from relayd.observe.http_place import HttpPlace
from relayd.services import supervise
from relayd.signals import Signals

if TYPE_CHECKING:
    from relayd.agent.cluster import Cluster


async def run_agent(
    config: AgentConfig,
    manager: Manager | None = None,
    signals: Signals | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run an agent until cancelled; `task_status.started()` when every peer has been looked at and set.

    `manager` is the service manager that started this process, if one did; `signals` what a signal asks for.

    The relay may be away by then, and at any time: the agent waits for it. Raises HostError when the
    interface, a capability or the proxy's port is missing, when an agent runs for this interface already, or
    when the relay would be reached through the tunnel.
    """
    trio.socket.set_custom_hostname_resolver(Names())
    manager = manager if manager is not None else Manager.none()
    signals = signals if signals is not None else Signals()
    if not config.kubernetes:
        await refuse_second(config.control_path)
        config = with_key(config)
        source = StaticFile(config)
        signals.on_config.append(source.use)
        mesh = await source.snapshot()
        await _run(config, source, mesh, manager, signals, None, task_status=task_status)
        return
    with ExitStack() as stack:
        stack.enter_context(state_dir.held(Path(config.state_dir), alone=False))
        from relayd.agent.cluster import Cluster  # 50 modules, for those who use it

        cluster = Cluster(config)
        signals.on_config.append(cluster.use)
        async with trio.open_nursery() as nursery:
            await nursery.start(cluster.source.run)
            mesh = await cluster.source.snapshot()
            config = cluster.configured(mesh)
            await refuse_second(config.control_path)
            await _run(config, cluster.source, mesh, manager, signals, cluster, task_status=task_status)


async def _run(
    config: AgentConfig,
    source: Source,
    mesh: Mesh,
    manager: Manager,
    signals: Signals,
    cluster: Cluster | None,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """`run_agent` once it is known what for: `mesh` is `source`'s at first."""
    with ExitStack() as stack:
        rules = host_rules(config)
        if config.owned is not None:
            hold_state(config, stack)
            await clean_state(config, rules)
        opened = await open_interface(mesh, Path(config.state_dir))
        try:
            if config.owned is None:  # not before: where there is no such interface, nothing is made
                hold_state(config, stack)
            interface = await opened.wireguard.read()
            keeper = keeper_of(mesh, rules, Path(config.state_dir))
            await keeper.begin()
            http = HttpPlace(config.http, config.http_names)
            stack.callback(http.close)
            handover = AgentHandover(manager)
            stack.callback(handover.close)
            agent = Agent(
                config,
                source,
                mesh,
                opened.wireguard,
                interface,
                keeper,
                stack,
                handover,
                http=http,
                cluster=cluster,
            )
        except BaseException:
            await opened.undo()
            raise
        stack.push(agent.hand_over)
        signals.on_config.append(agent.use)
        trio.lowlevel.add_instrument(agent.loop_lag)
        stack.callback(trio.lowlevel.remove_instrument, agent.loop_lag)
        async with trio.open_nursery() as nursery:
            told = [
                *watchdog_services(manager, agent.poller, stack),
                *status_services(manager, agent.status_line),
            ]
            await nursery.start(supervise, [*agent.services(), *told])
            handover.refuse_rest()
            log.get(interface=interface.name).info(
                "agent.started",
                public_key=interface.public_key,
                peers=len(interface.peers),
                relay=", ".join(relay.address for relay in agent.settings.relay_sets.relays),
                proxy_port=agent.proxy.port,
                control=config.control_path,
                http=http.address,
            )
            task_status.started()
