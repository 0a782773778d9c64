"""What both kinds of WireGuard interface do alike: read, plan, write what differs, one writer at a time."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import trio

from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel import hints
from relayd.kernel.device import NO_KEY, Changes, Interface, PeerChange, PeerSettings, plan
from relayd.keys import PrivateKey, PublicKey


class PlannedWireGuard(ABC):
    """A `device.WireGuard` that holds nothing between calls: nothing to lose, nothing to close."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._turn = trio.Lock()  # a plan is made of what was just read: nobody writes in between

    @abstractmethod
    async def dump(self) -> Interface:
        """See relayd.kernel.device.WireGuard."""

    @abstractmethod
    async def _write(self, attempt: str, changes: Changes) -> None:
        """Write `changes`. Raises HostError, whose text says that `attempt` failed, and why."""

    async def read(self) -> Interface:
        """See relayd.kernel.device.WireGuard."""
        interface = await self.dump()
        if interface.public_key == NO_KEY or interface.private_key is None:
            raise hints.no_private_key(self.name)
        return interface

    async def set_endpoint(self, key: PublicKey, endpoint: Endpoint) -> None:
        """See relayd.kernel.device.WireGuard."""
        change = Changes(peers=(PeerChange(key=key, endpoint=endpoint),))
        async with self._turn:
            await self._write(f"set the endpoint of {key.short()} on {self.name}", change)

    async def set_endpoints(self, endpoints: Mapping[PublicKey, Endpoint]) -> Mapping[PublicKey, HostError]:
        """See relayd.kernel.device.WireGuard. In one go; only where something is refused, one by one."""
        changes = Changes(peers=tuple(PeerChange(key=key, endpoint=to) for key, to in endpoints.items()))
        if not endpoints:
            return {}
        try:
            async with self._turn:
                await self._write(f"set {len(endpoints)} endpoints on {self.name}", changes)
            return {}
        except HostError as error:
            if len(endpoints) == 1:
                return dict.fromkeys(endpoints, error)
        refused: dict[PublicKey, HostError] = {}
        try:
            await self.dump()
        except HostError as error:  # none of them, then
            return dict.fromkeys(endpoints, error)
        for key, to in endpoints.items():
            try:
                await self.set_endpoint(key, to)
            except HostError as error:
                refused[key] = error
        return refused

    async def configure(
        self, private_key: PrivateKey, *, listen_port: int, fwmark: int, peers: Sequence[PeerSettings]
    ) -> bool:
        """See relayd.kernel.device.WireGuard."""
        async with self._turn:
            current = await self.dump()
            changes = plan(
                current, private_key, listen_port=listen_port, fwmark=fwmark, peers=peers, now=time.time()
            )
            device, rest = (
                replace(changes, remove=(), peers=()),
                Changes(remove=changes.remove, peers=changes.peers),
            )
            refused: HostError | None = None
            for part in (device, rest):
                if part != Changes():
                    try:
                        await self._write(f"configure {self.name}", part)
                    except HostError as error:  # a port in use doesn't keep a peer that was deleted
                        refused = refused or error
            if refused is not None:
                raise refused
            return changes != Changes()

    def close(self) -> None:  # noqa: B027 - nothing is held
        """See relayd.kernel.device.WireGuard."""
