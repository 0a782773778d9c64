"""WireGuard on this host: one interface, read and written alike whether the kernel or a process runs it.

    await ensure_interface("wire_kube", mtu=1420, addresses=[ip_interface("10.99.0.1/24")])
    wireguard = await open_wireguard("wire_kube")
    interface = await wireguard.read()

`netlink` speaks to the kernel, `uapi` to a userspace WireGuard; nothing outside this package need know which.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from relayd.kernel import discover, hints, links, uapi
from relayd.kernel.device import NO_KEY, Interface, Network, Peer, PeerSettings, WireGuard
from relayd.kernel.netlink import NetlinkWireGuard
from relayd.kernel.uapi import UserspaceWireGuard
from relayd.observe import log

__all__ = [
    "NO_KEY",
    "Interface",
    "NetlinkWireGuard",
    "Network",
    "Peer",
    "PeerSettings",
    "UserspaceWireGuard",
    "WireGuard",
    "ensure_interface",
    "open_wireguard",
]


async def open_wireguard(name: str) -> WireGuard:
    """The WireGuard interface `name`, of the kernel or of a userspace process.

    It has been read once, so that what is missing is told here and now; it may have no private key yet.
    Raises HostError: no such interface (naming those that there are), one of another kind, a userspace
    process that doesn't answer, no permission.
    """
    link = await links.find(name)
    if link is not None and link.kind == "wireguard":
        by_netlink = NetlinkWireGuard(name)
        await by_netlink.dump()
        return by_netlink
    path = uapi.socket_path(name)
    if link is None and not path.exists():
        raise hints.no_interface(name, await discover.wireguard_names())
    if link is not None and link.kind != "tun":
        raise hints.other_kind(name, link.kind, await discover.wireguard_names())
    if not path.exists():
        raise hints.tun_without_process(name, path)
    by_socket = UserspaceWireGuard(name, path)
    await by_socket.dump()
    return by_socket


async def ensure_interface(name: str, *, mtu: int, addresses: Sequence[links.Address]) -> bool:
    """Have an interface `name` that is up, with this MTU and exactly these addresses. -> was it made now?

    One that is missing is made in the kernel. One that a userspace WireGuard runs is taken as it is. Without
    `addresses` those that it has stay. What is right already is not written again. Raises HostError: it is
    of another kind (and is left alone), the kernel has no WireGuard, no CAP_NET_ADMIN. An interface that was
    made here goes again when the rest fails.
    """
    logger = log.get(interface=name)
    link = await links.find(name)
    made = link is None
    if link is None:
        await links.make_wireguard(name)
        logger.info("interface.created")
    elif link.kind != "wireguard":
        (await open_wireguard(name)).close()  # raises unless a userspace WireGuard runs it
    try:
        change = await links.bring_up(name, mtu=mtu, addresses=addresses)
    except BaseException:
        if made:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * uapi.DEADLINE_S):
                await links.remove(name)
        raise
    for address in change.removed:
        logger.info("interface.address_removed", address=address)
    for address in change.added:
        logger.info("interface.address_added", address=address)
    return made
