"""The keys that relays showed before, by address: trust on first use, for relays whose key isn't pinned.

The file is JSON in the state directory, mode 0600. It is a memory, not a secret, but who could write to it
could have us trust another relay without a warning.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
import trio

from relayd.errors import HostError
from relayd.kernel.state_dir import read_json, write_json
from relayd.keys import PublicKey
from relayd.observe import log


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    """The file's content: by HOST:PORT, the relay's key in base64."""

    relays: dict[str, str]
    version: int = 1


class KnownRelays:
    """What is remembered of relays."""

    def __init__(
        self, path: Path | None, *, in_thread: Callable[..., Awaitable[object]] = trio.to_thread.run_sync
    ) -> None:
        """`path` None: nothing outlives the process. A file that can't be understood is told of in the log,
        and counts as empty. `in_thread` runs a function that blocks."""
        self._path, self._in_thread = path, in_thread
        self._failed = False
        self._writing = trio.Lock()
        self._keys = _load(path) if path is not None else {}

    def key_of(self, address: str) -> PublicKey | None:
        """The key that the relay at `address` (HOST:PORT, as configured) showed last; None: it never did."""
        return self._keys.get(address)

    async def remember(self, address: str, key: PublicKey) -> None:
        """The relay at `address` has proved to hold `key`. When that can't be written down the log says so
        once, and it is known until the process ends."""
        self._keys[address] = key
        if self._path is None:
            return
        try:
            async with self._writing:  # two relays at a time: else the second one takes the first's place
                await self._in_thread(partial(_save, self._path, address, key))
        except HostError as error:
            if not self._failed:
                log.get(file=str(self._path)).warning("relays.unsaved", error=error)
            self._failed = True
        else:
            self._failed = False


def _load(path: Path) -> dict[str, PublicKey]:
    memory = read_json(path, _Memory)
    if memory is None:
        return {}
    try:
        return {address: PublicKey.from_base64(text) for address, text in memory.relays.items()}
    except ValueError as error:
        log.get(file=str(path)).warning("relays.malformed", error=error)
        return {}


def _save(path: Path, address: str, key: PublicKey) -> None:
    """Read again first: the agents of a node's other interfaces share the file. Raises HostError."""
    known = {**_load(path), address: key}
    write_json(path, _Memory(relays={address: str(key) for address, key in known.items()}))
