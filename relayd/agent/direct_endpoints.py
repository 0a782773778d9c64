"""The direct endpoints that the relay took the place of, remembered on the disk.

The kernel holds one endpoint a peer. When it becomes the proxy's, the old one would be known to nobody after
a restart: not to the agent, which tries it again when the relay fails too, nor to `relayd agent --release`,
which puts it back. So it is written down before the kernel is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

import msgspec
import trio

from relayd import marks
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.device import Peer
from relayd.kernel.state_dir import endpoints_file, read_json, write_json
from relayd.keys import PublicKey
from relayd.observe import log

MAX_GONE = 1000
"""Peers remembered that the interface doesn't have any more: they may come back. Where nodes with new keys
come and go all year, the file would grow for ever."""


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    """The file's content: by base64 key, the endpoint; null: the peer had none."""

    endpoints: dict[str, str | None]
    version: int = 1


class DirectEndpoints:
    """What is remembered for one interface."""

    def __init__(
        self,
        state_dir: Path,
        interface: str,
        *,
        in_thread: Callable[..., Awaitable[object]] = trio.to_thread.run_sync,
    ) -> None:
        """A file that can't be read or understood is told of in the log, and counts as none.

        `in_thread` runs a function that blocks, and its arguments.
        """
        self._in_thread = in_thread
        self.path = state_dir / endpoints_file(interface)
        self._log = log.get(interface=interface, file=str(self.path))
        self._known = self._load()
        self._unsaved = False
        self._failed = False

    @property
    def endpoints(self) -> Mapping[PublicKey, Endpoint | None]:
        """By peer. None: the relay was its first endpoint. A peer that isn't in here never lost one."""
        return self._known

    def note(self, peer: Peer, given_up: Endpoint | None) -> None:
        """The relay takes over for `peer`, as it was read, in place of the endpoint `given_up`."""
        before = given_up or peer.endpoint
        if before is not None and before.address in marks.PROXY_NETWORK:
            return  # it was on the relay already, and what it had before that is known or lost
        if before is None and peer.key in self._known:
            return
        if peer.key not in self._known or self._known[peer.key] != before:
            self._known[peer.key] = before
            self._unsaved = True

    async def save(self, peers: Collection[PublicKey]) -> None:
        """Write down what is new. When that fails the log says so once, and everything goes on.

        `peers` are those that there are; of others the last MAX_GONE are remembered.
        """
        if not self._unsaved:
            return
        gone = [key for key in self._known if key not in peers]
        for key in gone[:-MAX_GONE]:
            del self._known[key]
        memory = _Memory(
            endpoints={
                str(key): None if endpoint is None else str(endpoint) for key, endpoint in self._known.items()
            }
        )
        try:
            await self._in_thread(write_json, self.path, memory)
        except HostError as error:
            if not self._failed:
                self._log.warning("endpoints.unsaved", error=error)
            self._failed = True
        else:
            self._unsaved = self._failed = False

    def _load(self) -> dict[PublicKey, Endpoint | None]:
        memory = read_json(self.path, _Memory)
        if memory is None:
            return {}
        try:
            return {
                PublicKey.from_base64(key): None if text is None else Endpoint.parse(text)
                for key, text in memory.endpoints.items()
            }
        except ValueError as error:
            self._log.warning("endpoints.malformed", error=error)
            return {}
