"""How much memory this process may have: the host's, or that of a control group that it is in."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")


def memory_limit(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes. The least of what the host has and what each control group around the process allows (cgroup
    v2's memory.max; Documentation/admin-guide/cgroup-v2.rst)."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _text(own).splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy != "0":
            continue
        group = PurePosixPath(path)
        for one in (group, *group.parents):
            said = _text(cgroups / str(one).lstrip("/") / "memory.max").strip()
            if said.isdigit():
                limit = min(limit, int(said))
    return limit


def _text(path: Path) -> str:
    """What is in it; "" when it can't be had: then it limits nothing that we know of."""
    try:
        return path.read_text()
    except OSError:
        return ""
