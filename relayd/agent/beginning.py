"""What an agent does on the host before it carries anything, in this order:

    is there another agent? -> hold the state directory -> clean state, if asked -> interface -> host rules

(An adopted interface comes before the state directory.)

A step that fails ends the start with its reason, and the interface that was there goes on as it was.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec
import trio

from relayd.agent.host_keeper import HostKeeper
from relayd.config import AgentConfig
from relayd.coordination.model import Mesh, OwnedInterface
from relayd.errors import HostError, RelaydError
from relayd.kernel import host_rules as inventory
from relayd.kernel import ownership, state_dir
from relayd.kernel.cleanup import Cleanup
from relayd.kernel.firewall import Iptables
from relayd.kernel.host_rules import HostRules
from relayd.kernel.ownership import Opened, Owned, open_owned
from relayd.kernel.routing import NetlinkRouting
from relayd.kernel.sysctls import Sysctls
from relayd.kernel.wireguard import PeerSettings, open_wireguard
from relayd.observe import log
from relayd.observe.control import NobodyAnswersError, ask

ASK_S = 2.0
"""For another agent to answer; one that is stopped is found later, by the socket that it holds."""


async def refuse_second(control: str) -> None:
    """Raise HostError when an agent answers at `control`: before anything of its interface is touched."""
    try:
        await ask(control, "status", timeout_s=ASK_S)
    except NobodyAnswersError:
        return
    except HostError:
        raise
    except RelaydError:  # it answers, if not to that
        pass
    raise HostError(f"another process answers at {control}: stop it, or name another path with --control")


def hold_state(config: AgentConfig, stack: ExitStack) -> None:
    """Take the shared lock on the state directory, made if need be, until `stack` is closed.

    Raises HostError, unless the interface is an adopted one: that needs no memory to work.
    """
    try:
        stack.enter_context(state_dir.held(Path(config.state_dir), alone=False))
    except state_dir.InUseError:
        raise
    except HostError as error:
        if config.owned is not None:
            raise
        log.get(interface=config.interface).warning("state.unavailable", reason=error)


def host_rules(config: AgentConfig) -> HostRules:
    """The rules of this host."""
    return HostRules(NetlinkRouting(), Sysctls(Path(config.state_dir)), Iptables())


class _CleanStateDone(msgspec.Struct, forbid_unknown_fields=True):
    """The content of the file that says that it was done."""

    version: int = 1


async def clean_state(config: AgentConfig, rules: HostRules) -> None:
    """Remove what an owned interface has on the host, but for the key, if the configuration asks for that.

    Raises HostError when something is left.
    """
    directory = Path(config.state_dir)
    done = directory / state_dir.CLEAN_STATE_DONE
    if config.owned is None:
        return
    logger = log.get(interface=config.interface)
    if not config.clean_state_once and await trio.Path(done).exists():
        try:
            await trio.Path(done).unlink()
        except OSError as error:  # a disk that has become read-only keeps no tunnel from its agent
            logger.warning("state.unwritable", reason=f"cannot remove {done}: {error.strerror}")
    done_before = state_dir.read_json(done, _CleanStateDone) is not None
    if not config.clean_state and (not config.clean_state_once or done_before):
        if config.clean_state_once:
            logger.info("clean_state.skipped", reason="done at an earlier start that was asked for it too")
        return
    logger.warning("clean_state.begun")
    outcome = await Cleanup(
        config.interface,
        directory,
        routing=rules.routing,
        sysctls=rules.sysctls,
        firewall=rules.firewall,
        with_files=False,
    ).run(told=lambda item: logger.info("host.removed", what=item))
    if not outcome.is_clean:
        raise HostError("; ".join(outcome.failed or [f"{item} is left" for item in outcome.left]))
    if config.clean_state_once:
        state_dir.write_json(done, _CleanStateDone())


def owned_of(wanted: OwnedInterface, mesh: Mesh) -> Owned:
    """The interface that `mesh` describes, in the kernel's terms."""
    return Owned(
        name=wanted.name,
        private_key=wanted.private_key,
        listen_port=wanted.listen_port,
        mtu=wanted.mtu,
        addresses=wanted.addresses,
        peers=tuple(
            PeerSettings(
                key=peer.key,
                allowed_ips=peer.allowed_ips,
                endpoint=peer.endpoint,
                keepalive_s=peer.keepalive_s,
            )
            for peer in mesh.peers
        ),
    )


async def open_interface(mesh: Mesh, directory: Path) -> Opened:
    """The interface that `mesh` speaks of: an existing one as it is, one of ours made or used as described.

    Raises HostError. An interface that was made here goes again when it can't be set up.
    """
    wanted = mesh.interface
    if isinstance(wanted, OwnedInterface):
        return await open_owned(owned_of(wanted, mesh), directory)
    return Opened(wireguard=await open_wireguard(wanted.name), made=False)


def keeper_of(mesh: Mesh, rules: HostRules, directory: Path) -> HostKeeper:
    """Who keeps the host as `mesh` wants it."""
    wanted = mesh.interface
    if not isinstance(wanted, OwnedInterface):
        return HostKeeper(rules, inventory.adopted(wanted.name, mark_rule=False), mesh.relays)
    routed = [network for peer in mesh.peers for network in peer.routed]
    return HostKeeper(
        rules,
        inventory.owned(wanted.name, wanted.addresses, routed),
        (*mesh.relays, *mesh.relay_sets),
        keep_interface=partial(ownership.keep_owned, owned_of(wanted, mesh), directory),
    )
