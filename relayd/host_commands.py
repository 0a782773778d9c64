"""`relayd cleanup` and `relayd agent --release`: undoing on a host what an agent did there."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import trio

from relayd.config import HostConfig, agent_control
from relayd.errors import HostError
from relayd.kernel import links, state_dir
from relayd.kernel.cleanup import Cleanup, Item, Outcome, items_as_json
from relayd.kernel.firewall import Iptables
from relayd.kernel.routing import NetlinkRouting
from relayd.kernel.sysctls import Sysctls
from relayd.observe.control import NobodyAnswersError, ask
from relayd.observe.output import printing

ASK_S = 2.0
"""For an agent to answer."""

LEFT = 1
"""Exit status when something is left."""


def cleanup(config: HostConfig, *, dry_run: bool, as_json: bool, force: bool) -> int:
    """Remove what relayd added to this host. -> the exit status: 0 only if nothing is left.

    A dry run removes nothing, so it ends with 0 only on a host that has nothing of relayd's. Raises
    HostError: an agent runs (unless `force`), or a capability is missing.
    """
    return trio.run(partial(_cleanup, config, dry_run=dry_run, as_json=as_json, force=force))


async def _cleanup(config: HostConfig, *, dry_run: bool, as_json: bool, force: bool) -> int:
    def told(item: Item) -> None:
        if not as_json:
            with printing():
                print(f"{'would remove' if dry_run else 'removed'}: {item}")

    directory = Path(config.state_dir)
    interfaces = await _interfaces(config)
    controls = {name: config.control or agent_control(name) for name in interfaces}
    work = Cleanup(
        interfaces[0],
        directory,
        routing=NetlinkRouting(),
        sysctls=Sysctls(directory),
        firewall=Iptables(),
        others=interfaces[1:],
        controls=[Path(control) for control in controls.values()],
    )
    if dry_run or force:
        outcome = await work.run(dry_run=dry_run, told=told)
    else:
        for name, control in controls.items():
            await _refuse_beside_an_agent(name, control)
        try:
            with state_dir.held(directory, alone=True):
                outcome = await work.run(told=told)
        except state_dir.InUseError as error:
            raise HostError(
                f"{error}: stop it first, or it puts back what goes; --force doesn't ask"
            ) from error
    with printing():
        if as_json:
            print(json.dumps(_as_json(outcome, dry_run=dry_run)))
        else:
            _tell(outcome, dry_run=dry_run)
    return 0 if outcome.is_clean else LEFT


async def _interfaces(config: HostConfig) -> list[str]:
    """The one that is named. If none is: the usual one, and whichever has in the kernel that relayd made it.
    Raises HostError."""
    if config.interface_named:
        return [config.interface]
    made = [link.name for link in await links.all_links() if link.alias == links.MADE_HERE]
    return list(dict.fromkeys((config.interface, *made)))


async def _refuse_beside_an_agent(interface: str, control: str) -> None:
    try:
        await ask(control, "status", timeout_s=ASK_S)
    except NobodyAnswersError:
        return
    raise HostError(
        f"an agent runs for {interface} (it answers at {control}): stop it first, or it "
        f"puts back what goes; --force doesn't ask"
    )


def _as_json(outcome: Outcome, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "clean": outcome.is_clean,
        "removed": items_as_json(outcome.removed),
        "left": items_as_json(outcome.left),
        "failed": outcome.failed,
        "kept": outcome.kept,
    }


def _tell(outcome: Outcome, *, dry_run: bool) -> None:
    for line in outcome.kept:
        print(f"left alone: {line}")
    for line in outcome.failed:
        print(f"relayd: {line}", file=sys.stderr)
    if outcome.is_clean:
        print("clean: nothing of relayd's is on this host" + ("" if outcome.removed else ", and nothing was"))
    elif not dry_run:
        for item in outcome.left:
            print(f"relayd: still there: {item}", file=sys.stderr)


def release(config: HostConfig) -> int:
    """Give an adopted interface its endpoints back. -> exit status, 0 if all of them. Raises HostError."""
    from relayd.agent.release import release as run

    def told(line: str) -> None:
        with printing():
            print(line)

    released = trio.run(partial(run, config, told=told))
    for line in released.not_done:
        print(f"relayd: {line}", file=sys.stderr)
    if not released.done and not released.not_done:
        told(f"no peer of {config.interface} was on the relay: nothing to put back")
    return LEFT if released.not_done else 0
