"""`relayd status`: asks the processes on this host, and prints what they say."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from relayd.config import RUN_DIR
from relayd.errors import HostError, RelaydError
from relayd.observe import control
from relayd.observe.output import printing

SAMPLE_S = 0.5
"""Between two looks at a relay, for rates."""


@dataclass(slots=True)
class Found:
    """What was found out about one process."""

    path: str
    first: dict[str, Any] = field(default_factory=dict)
    later: dict[str, Any] = field(default_factory=dict)
    """A second answer of a relay, `SAMPLE_S` after the first; empty when it wasn't asked again."""
    error: RelaydError | None = None


def show_status(path: str | None, *, as_json: bool, directory: str = RUN_DIR) -> int:
    """Print the status of the process at the socket `path`, or of all in `directory`; the exit status.

    It is 0 when all that was asked answered. Raises RelaydError when there is nothing to ask, or when what
    was found can't be printed.
    """
    paths = [path] if path is not None else sockets(directory)
    found = trio.run(_ask_all, paths, 0.0 if as_json else SAMPLE_S)
    answered = [one for one in found if one.error is None]
    with printing():
        if as_json:
            for one in answered:
                print(json.dumps(one.first, ensure_ascii=False))
        elif answered:
            from relayd.status_view import print_status

            print_status([(one.first, one.later) for one in answered])
    for one in found:
        if one.error is not None:
            print(f"relayd: {one.error}", file=sys.stderr)
    return max((one.error.exit_status for one in found if one.error is not None), default=0)


def sockets(directory: str) -> list[str]:
    """The control sockets of this host's processes. Raises RelaydError when there is none, HostError for who
    may not look."""
    try:
        os.listdir(directory)  # glob takes what it may not list for empty
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(
            f"{directory}: {error.strerror} (ask as root, or as the process's own user)"
        ) from error
    # A relay under systemd has a directory of its own in there: it runs as another user.
    found = [one for pattern in ("*.sock", "*/*.sock") for one in Path(directory).glob(pattern)]
    if not found:
        raise RelaydError(
            f"no relay or agent runs here: there is no socket in {directory} (relayd serve and relayd agent "
            "make one; --control PATH asks at another place)"
        )
    return sorted(map(str, found))


def show_peer(path: str | None, peer: str, *, why: bool, as_json: bool, directory: str = RUN_DIR) -> int:
    """Print all that the agents at `path`, or in `directory`, know of the peers that are called `peer`, or
    whose keys begin with it.

    -> the exit status. Raises RelaydError when there is no such peer, or nobody to ask.
    """
    paths = [path] if path is not None else sockets(directory)
    found = trio.run(_ask_for_peer, paths, peer, why)
    if not found:
        raise RelaydError(
            f"no agent here has a peer of that name, or whose key begins with {peer!r} (relayd status lists "
            "them)"
        )
    with printing():
        if as_json:
            for one in found:
                print(json.dumps(one, ensure_ascii=False))
        else:
            from relayd.peer_view import print_peers

            print_peers(found, why=why)
    return 0


async def _ask_for_peer(paths: Sequence[str], peer: str, why: bool) -> list[dict[str, Any]]:
    """The peers' parts of the agents' answers, with "history" if asked `why`. Raises RelaydError when nobody
    answers."""
    found: list[dict[str, Any]] = []
    errors: list[RelaydError] = []
    for path in paths:
        try:
            status = await control.ask(path, "status")
            if status.get("role") != "agent":
                continue
            histories = (await control.ask(path, "why"))["histories"] if why else {}
        except RelaydError as error:
            errors.append(error)
            continue
        for one in status.get("peers") or ():
            if str(one.get("key")).startswith(peer) or peer == one.get("name"):
                found.append(one | ({"history": histories.get(one["key"], [])} if why else {}))
    if errors and not found:
        raise errors[0]
    return found


async def _ask_all(paths: Sequence[str], sample_s: float) -> list[Found]:
    """Ask all of `paths` at once; relays once more after `sample_s` (0: not)."""
    found = [Found(path) for path in paths]
    async with trio.open_nursery() as nursery:
        for one in found:
            nursery.start_soon(_ask_one, one, sample_s)
    return found


async def _ask_one(one: Found, sample_s: float) -> None:
    try:
        one.first = await control.ask(one.path, "status")
        if sample_s and one.first.get("role") == "relay":
            await trio.sleep(sample_s)
            one.later = await control.ask(one.path, "status")
    except RelaydError as error:
        one.error = error
