"""`relayd agent --release`: an adopted interface as it was before there was an agent.

Peers that are on the relay get back the direct endpoint that the relay took the place of. The kernel can't be
told to have none; of a peer that had none, that is said. The rules that an agent adds for the relay's
connection go too, unless another agent or an interface of relayd's own needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from relayd import marks
from relayd.agent.beginning import refuse_second
from relayd.agent.direct_endpoints import DirectEndpoints
from relayd.config import HostConfig
from relayd.errors import HostError
from relayd.kernel import links, state_dir
from relayd.kernel.firewall import Firewall, Iptables
from relayd.kernel.host_rules import is_mark_rule, is_table_rule
from relayd.kernel.routing import NetlinkRouting, Routing, RoutingChanges
from relayd.kernel.wireguard import WireGuard, open_wireguard


@dataclass(slots=True)
class Released:
    """What was done, and what couldn't be: a line each."""

    done: list[str] = field(default_factory=list)
    not_done: list[str] = field(default_factory=list)


async def release(
    config: HostConfig,
    *,
    routing: Routing | None = None,
    firewall: Firewall | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Released:
    """Put the interface's endpoints back; `told` is called with each line of `Released.done`.

    Raises HostError: an agent runs for the interface, it is one that relayd made, or it can't be written to.
    """
    await refuse_second(config.control_path)
    released = Released()

    def say(line: str) -> None:
        released.done.append(line)
        told(line)

    memory = DirectEndpoints(Path(config.state_dir), config.interface)
    link = await links.find(config.interface)
    if link is None:
        say(f"there is no interface {config.interface}: its endpoints went with it")
    elif link.alias == links.MADE_HERE:
        raise HostError(
            f"{link.name} was made by relayd: `relayd cleanup --interface {link.name}` removes it"
        )
    else:
        wireguard = await open_wireguard(config.interface)
        try:
            await _endpoints(wireguard, memory, released, say)
        finally:
            wireguard.close()
    try:
        with state_dir.held(Path(config.state_dir), alone=True):
            await _rules(routing or NetlinkRouting(), firewall or Iptables(), say)
    except state_dir.InUseError:
        say("rules for marked packets stay: an agent for another interface runs")
    if not released.not_done:
        await trio.to_thread.run_sync(lambda: memory.path.unlink(missing_ok=True))
    return released


async def _endpoints(
    wireguard: WireGuard, memory: DirectEndpoints, released: Released, say: Callable[[str], None]
) -> None:
    for key, peer in (await wireguard.read()).peers.items():
        if peer.endpoint is None or peer.endpoint.address not in marks.PROXY_NETWORK:
            continue
        if key not in memory.endpoints:
            released.not_done.append(
                f"peer {key}: nobody remembers its endpoint before {peer.endpoint} ({memory.path} has none); "
                f"set it: wg set {wireguard.name} peer {key} endpoint HOST:PORT"
            )
            continue
        before = memory.endpoints[key]
        if before is None:
            say(
                f"peer {key}: had no endpoint, and keeps {peer.endpoint} until it is heard from "
                "(WireGuard can't forget one)"
            )
        else:
            await wireguard.set_endpoint(key, before)
            say(f"peer {key}: endpoint {before} (was {peer.endpoint})")


async def _rules(routing: Routing, firewall: Firewall, say: Callable[[str], None]) -> None:
    state = await routing.read()
    if any(is_table_rule(rule) for rule in state.rules):
        return  # an interface of relayd's own, which goes on without its agent
    rules = tuple(rule for rule in state.rules if is_mark_rule(rule))
    await routing.write(RoutingChanges(remove_rules=rules))
    for rule in rules:
        say(f"removed {rule}")
    for chain in await firewall.chains():
        for _ in chain.ours:
            await firewall.delete(chain)
            say(f"removed {chain}")
