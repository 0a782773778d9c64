"""`relayd cleanup` and `relayd agent --release`: undoing on a host what an agent did there."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import trio

from relayd.config import HostConfig
from relayd.errors import HostError
from relayd.kernel import state_dir
from relayd.kernel.cleanup import Cleanup, Item, Outcome, items_as_json
from relayd.kernel.firewall import Iptables
from relayd.kernel.routing import NetlinkRouting
from relayd.kernel.sysctls import Sysctls
from relayd.observe.control import NobodyAnswersError, ask

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
            print(f"{'would remove' if dry_run else 'removed'}: {item}", flush=True)

    directory = Path(config.state_dir)
    work = Cleanup(
        config.interface,
        directory,
        routing=NetlinkRouting(),
        sysctls=Sysctls(directory),
        firewall=Iptables(),
        control=Path(config.control_path),
    )
    if dry_run or force:
        outcome = await work.run(dry_run=dry_run, told=told)
    else:
        await _refuse_beside_an_agent(config)
        try:
            with state_dir.held(directory, alone=True):
                outcome = await work.run(told=told)
        except state_dir.InUseError as error:
            raise HostError(
                f"{error}: stop it first, or it puts back what goes; --force doesn't ask"
            ) from error
    if as_json:
        print(json.dumps(_as_json(outcome, dry_run=dry_run)))
    else:
        _tell(outcome, dry_run=dry_run)
    return 0 if outcome.is_clean else LEFT


async def _refuse_beside_an_agent(config: HostConfig) -> None:
    try:
        await ask(config.control_path, "status", timeout_s=ASK_S)
    except NobodyAnswersError:
        return
    raise HostError(
        f"an agent runs for {config.interface} (it answers at {config.control_path}): stop it first, or it "
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

    released = trio.run(partial(run, config, told=print))
    for line in released.not_done:
        print(f"relayd: {line}", file=sys.stderr)
    if not released.done and not released.not_done:
        print(f"no peer of {config.interface} was on the relay: nothing to put back")
    return LEFT if released.not_done else 0
