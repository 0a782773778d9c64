"""The mesh as the configuration file says: read at the start, and again when a reload asks for that."""

from __future__ import annotations

import trio
from msgspec import structs

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
                name=peer.name,
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
    """A `Source` that somebody else tells of changes."""

    def __init__(self, config: AgentConfig) -> None:
        self._mesh = mesh_of(config)
        self._news = trio.Event()

    def use(self, config: AgentConfig) -> None:
        """This is the configuration from now on. A key that it doesn't have stays what it was."""
        interface, owned = self._mesh.interface, config.owned
        if owned is not None and owned.private_key is None and isinstance(interface, OwnedInterface):
            owned = structs.replace(owned, private_key=interface.private_key)
            config = structs.replace(config, owned=owned)
        self._mesh = mesh_of(config)
        self._news.set()
        self._news = trio.Event()

    async def snapshot(self) -> Mesh:
        """The file's mesh."""
        await trio.lowlevel.checkpoint()
        return self._mesh

    async def changed(self, seen: Mesh) -> Mesh:
        """See Source."""
        while seen == self._mesh:
            await self._news.wait()
        return await self.snapshot()
