"""How much memory this process may have: the host's, or that of a control group that it is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")


def memory_limit(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes. The least of what the host has and what each control group around the process allows, of either
    version (memory.max: Documentation/admin-guide/cgroup-v2.rst; memory.limit_in_bytes:
    cgroup-v1/memory.rst)."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _limit_files(cgroups, _text(own)):
        said = _text(path).strip()
        if said.isdigit():
            limit = min(limit, int(said))
    return limit


def _limit_files(cgroups: Path, own: str) -> Iterator[Path]:
    """Where limits may stand, from what /proc/self/cgroup says (cgroups(7)): hierarchy:controllers:path."""
    for line in own.splitlines():
        hierarchy, controllers, path = (*line.split(":", 2), "", "")[:3]
        if hierarchy == "0" and not controllers:
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path)
        for one in (group, *group.parents):
            yield root / str(one).lstrip("/") / name


def _text(path: Path) -> str:
    """What is in it; "" when it can't be had: then it limits nothing that we know of."""
    try:
        return path.read_text()
    except OSError:
        return ""
