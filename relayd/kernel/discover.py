"""Which WireGuard interfaces this host has, and which is meant where none is named."""

from __future__ import annotations

from pathlib import Path

from relayd import marks
from relayd.config import agent_control
from relayd.errors import HostError
from relayd.kernel import links, uapi


async def wireguard_names() -> list[str]:
    """The kernel's WireGuard interfaces, and the TUN ones with a WireGuard socket; sorted.

    Empty also where the kernel refuses to list interfaces: whoever needs one finds that out by itself.
    """
    try:
        found = await links.all_links()
    except HostError:
        return []
    # A socket alone is no interface: a process that was killed leaves its socket behind.
    return [
        link.name
        for link in found
        if link.kind == "wireguard" or (link.kind == "tun" and uapi.socket_path(link.name).exists())
    ]


async def usual_interface() -> str:
    """What is meant by who names none: the one that an agent of this host runs for, there or gone; the one
    that an agent would make; the only one. Of these the first that is not several, or `wire_kube`."""
    names = await wireguard_names()
    with_agents = _with_agents()
    for found in (
        with_agents,
        [name for name in names if name in with_agents],
        [name for name in names if name == marks.DEFAULT_INTERFACE],
        names,
    ):
        if len(found) == 1:
            return found[0]
    return marks.DEFAULT_INTERFACE


def _with_agents() -> list[str]:
    """The interfaces of those that have a control socket at the usual place."""
    before, after = agent_control("*").split("*")
    try:
        found = [path for path in Path(before).parent.glob(Path(agent_control("*")).name) if path.is_socket()]
    except PermissionError:  # the directory is root's
        return []
    return [str(path).removeprefix(before).removesuffix(after) for path in found]
