"""The mesh as the configuration file says: read once, the same until the process starts again."""

from __future__ import annotations

import trio

from relayd.config import AgentConfig
from relayd.coordination.model import AdoptedInterface, Mesh, MeshPeer, OwnedInterface


def mesh_of(config: AgentConfig) -> Mesh:
    """The snapshot that `config` describes."""
    return Mesh(
        interface=_interface(config),
        peers=tuple(
            MeshPeer(
                key=peer.public_key,
                allowed_ips=peer.allowed_ips,
                endpoint=peer.endpoint,
                keepalive_s=peer.persistent_keepalive,
            )
            for peer in config.peers
        ),
        relays=config.relays,
    )


def _interface(config: AgentConfig) -> AdoptedInterface | OwnedInterface:
    owned = config.owned
    if owned is None:
        return AdoptedInterface(config.interface)
    if owned.private_key is None:
        raise ValueError("the interface's key is to be read or made first")
    return OwnedInterface(
        name=owned.name,
        private_key=owned.private_key,
        listen_port=owned.listen_port,
        addresses=owned.address,
        mtu=owned.mtu,
    )


class StaticFile:
    """A `Source` of one snapshot."""

    def __init__(self, config: AgentConfig) -> None:
        self._mesh = mesh_of(config)

    async def snapshot(self) -> Mesh:
        """The file's mesh."""
        await trio.lowlevel.checkpoint()
        return self._mesh

    async def changed(self, seen: Mesh) -> Mesh:
        """At once when `seen` is another source's; else it waits for ever."""
        if seen != self._mesh:
            return await self.snapshot()
        await trio.sleep_forever()
        raise AssertionError("sleep_forever returned")
