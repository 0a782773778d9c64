"""Files that are read again when they change, or when SIGHUP says so.

a look a second -> changed, and the same again SETTLE_S later -> read it (in a thread) -> use it, whole
                                              -> what is in it is wrong: say so, and keep what there was
                                              -> it can't be read: likewise, and try again at the next look
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import trio

from relayd.errors import ConfigError, HostError
from relayd.observe import log

LOOK_S = 1.0
"""Between two looks at a file's name, size and times: a system call each. (inotify sees neither what a
Kubernetes volume swaps by symlink nor what an NFS server changes.)"""

SETTLE_S = 0.2
"""A file that somebody is writing changes again within this; what is read of it in the middle may be half a
list."""

T = TypeVar("T")

_Look = tuple[tuple[int, ...] | None, ...]


class Reloader(Generic[T]):
    """One set of files that belong together."""

    def __init__(
        self, what: str, paths: Sequence[Path], read: Callable[[], T], use: Callable[[T], None]
    ) -> None:
        """`what` is the noun of its events. `read` may block, and raises ConfigError or HostError for what
        can't be used; `use` gets what it returned. What stands in the files now counts as known."""
        self.what, self._paths = what, tuple(paths)
        self._read, self._use = read, use
        self._known = self._look()
        self._unread = ""
        """Why they couldn't be read when they were to be, if so. That is the host's doing, and may pass
        without a change of theirs: no descriptors left, a server that is away."""
        self._asked = trio.Event()

    def ask(self) -> None:
        """Read them again, if there are any, though nothing seems to have changed (SIGHUP)."""
        if self._paths:
            self._asked.set()

    def turn_to(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Other files, from now on."""
        self._paths, self._read = tuple(paths), read
        self._asked.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, for ever."""
        task_status.started()
        while True:
            with trio.move_on_after(LOOK_S):
                await self._asked.wait()
            if self._asked.is_set() or self._unread or self._look() != self._known:
                await self._reload()

    async def _reload(self) -> None:
        told = "" if self._asked.is_set() else self._unread
        self._asked = trio.Event()
        seen = self._look()
        await trio.sleep(SETTLE_S)
        while (again := self._look()) != seen:
            seen = again
            await trio.sleep(SETTLE_S)
        self._known = seen
        try:
            found = await trio.to_thread.run_sync(self._read)
        except (ConfigError, HostError) as error:
            self._unread = str(error) if isinstance(error, HostError) else ""
            if str(error) != told:
                log.get().error(
                    f"{self.what}.kept", reason=str(error), meaning="what was there before is in force"
                )
            return
        self._unread = ""
        self._use(found)
        log.get().info(f"{self.what}.reloaded")

    def _look(self) -> _Look:
        return tuple(map(_stat, self._paths))


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    # The time of the last change to the inode, too: a file that others could read is mended by chmod alone.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
