"""The switches under /proc/sys that relayd sets, and what they were before.

The old value is on the disk before the new one is in the kernel: whatever happens in between, `restore`
knows what to go back to. It goes back only from our value: another one is somebody else's by now.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relayd.errors import HostError
from relayd.kernel.state_dir import SYSCTLS, read_json, write_json

PROC = (Path("/host/proc/sys"), Path("/proc/sys"))
"""A container often has its own /proc/sys read-only, and the host's, if at all, under /host."""


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A switch, by its path below /proc/sys, and the value that relayd needs."""

    path: str
    value: str

    def __str__(self) -> str:
        return f"sysctl {self.path.replace('/', '.')}={self.value}"


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    """The file's content. `old`: path -> (the value before, the value that was set)."""

    version: int = 1
    old: dict[str, tuple[str, str]] = {}  # msgspec gives each its own


class Sysctls:
    """The switches of this host, with the memory of what they were."""

    def __init__(self, state_dir: Path, root: Path | None = None) -> None:
        """`root` is /proc/sys or a directory like it; unless given, the first of PROC that there is."""
        self._memory_path = state_dir / SYSCTLS
        self._root = root or next((path for path in PROC if path.is_dir()), PROC[-1])

    def read(self, path: str) -> str | None:
        """The value now; None when there is no such switch. Raises HostError."""
        try:
            return (self._root / path).read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"cannot read {self._root / path}: {error.strerror}") from error

    def wrong(self, wanted: Sequence[Sysctl]) -> list[Sysctl]:
        """Those of `wanted` that exist and have another value. Raises HostError."""
        return [one for one in wanted if self.read(one.path) not in (one.value, None)]

    def set(self, wanted: Sysctl) -> None:
        """Set one, its old value remembered if it is the first time. Raises HostError."""
        before = self.read(wanted.path)
        if before is None or before == wanted.value:
            return
        memory = self._remembered()
        if wanted.path not in memory.old:
            write_json(self._memory_path, _Memory(old={**memory.old, wanted.path: (before, wanted.value)}))
        self._write(wanted)

    def changed(self) -> list[Sysctl]:
        """Those that still have the value that we gave them, each with the one that it had before.

        Raises HostError.
        """
        return [
            Sysctl(path, before)
            for path, (before, ours) in self._remembered().old.items()
            if self.read(path) == ours and before != ours
        ]

    def restore(self, old: Sysctl) -> None:
        """Give one of `changed()` its old value. Raises HostError."""
        self._write(old)

    def _remembered(self) -> _Memory:
        return read_json(self._memory_path, _Memory) or _Memory()

    def _write(self, sysctl: Sysctl) -> None:
        path = self._root / sysctl.path
        try:
            path.write_text(f"{sysctl.value}\n")
        except FileNotFoundError:  # with its interface
            return
        except OSError as error:
            hint = (
                "mount the host's /proc at /host/proc, or set it on the host: "
                f"sysctl -w {sysctl.path.replace('/', '.')}={sysctl.value}"
                if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
                else f"sysctl -w {sysctl.path.replace('/', '.')}={sysctl.value}"
            )
            raise HostError(f"cannot write {path}: {error.strerror} ({hint})") from error
