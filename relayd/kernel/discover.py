"""Which WireGuard interfaces this host has: what an error about a missing one offers instead."""

from __future__ import annotations

from relayd.errors import HostError
from relayd.kernel import links, uapi


async def wireguard_names() -> list[str]:
    """The kernel's WireGuard interfaces, and the TUN ones with a WireGuard socket; sorted.

    Empty also where the kernel refuses to list interfaces: this is asked while an error is being told, and
    that one matters more.
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
