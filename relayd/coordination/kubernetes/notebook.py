"""Writes down on the node what it remembers of its cluster, and tries again when that couldn't be done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from relayd.coordination.kubernetes.memory import ClusterMemory
from relayd.errors import HostError
from relayd.observe import log

WRITE_EVERY_S = 10.0
"""Between two writes to the disk, but for what must not be forgotten."""

Remember = Callable[[ClusterMemory], Awaitable[None]]
"""Writes to the disk. Raises HostError."""


class Notebook:
    """One node's memory, and its copy on the disk."""

    def __init__(self, memory: ClusterMemory, write: Remember) -> None:
        """`memory` is what the disk has."""
        self.memory = memory
        self.problem = ""
        """Why the disk doesn't have what it should; empty: it does, or soon will."""
        self._written, self._write = memory, write
        self._unwritten = trio.Event()
        self._log = log.get(node=memory.node_name)

    def note(self, memory: ClusterMemory) -> None:
        """To be written down when it is time."""
        self.memory = memory
        if _content(memory) != _content(self._written):
            self._unwritten.set()

    async def note_now(self, memory: ClusterMemory) -> None:
        """To be written down before anything depends on it. Where that can't be done, it is tried again."""
        self.memory = memory
        await self._save()

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            await self._unwritten.wait()
            self._unwritten = trio.Event()
            await self._save()
            await trio.sleep(WRITE_EVERY_S)

    async def _save(self) -> None:
        memory = self.memory
        try:
            await self._write(memory)
        except HostError as error:
            if str(error) != self.problem:
                self._log.warning("kubernetes.unsaved", reason=str(error))
            self.problem = str(error)
            self._unwritten.set()
            return
        self._written, self.problem = memory, ""


def _content(memory: ClusterMemory) -> Sequence[object]:
    """What a start would need: not the versions that each heartbeat moves."""
    return [
        memory.identity,
        memory.removed,
        memory.mesh and memory.mesh.spec,
        memory.node and (memory.node.metadata.annotations, memory.node.status),
        [(peer.metadata.name, peer.metadata.uid, peer.spec) for peer in memory.peers],
    ]
