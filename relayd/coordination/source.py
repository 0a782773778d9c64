"""Where the mesh is described: a file, an interface that exists, later a cluster. One shape for all."""

from __future__ import annotations

from typing import Protocol

from relayd.coordination.model import Mesh


class Source(Protocol):
    """Gives whole snapshots, never differences: who missed one has lost nothing."""

    async def snapshot(self) -> Mesh:
        """The mesh as it is now. Raises ConfigError or HostError with what to do about it."""
        ...

    async def changed(self, seen: Mesh) -> Mesh:
        """The first snapshot that differs from `seen`: at once if there is one, else when there is.

        A wait that is meant to last; it ends by cancellation. What fails in between (a server that is
        away) is the source's to retry: the last snapshot stays true until there is another.
        """
        ...
