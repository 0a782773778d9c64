"""Programs in a directory tree as in a container: with a root, mounts and an environment of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TRUST = "/run/trust.crt"
"""Where this host's certificates are in the tree, if PIP_CERT names some: those of its package mirror."""

_MOUNTS = """
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for file in /etc/resolv.conf /etc/hosts; do touch "$root$file"; mount --bind "$file" "$root$file"; done
if [ -n "${PIP_CERT:-}" ]; then touch "$root$1"; mount --bind "$PIP_CERT" "$root$1"; fi
shift
exec chroot "$@"
"""
"""As an engine makes them; they end with the program."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One root file system, and with what environment and as whom programs run in it."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = "0:0"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line for it, on this host."""
        mounted = ["unshare", "--mount", "--fork", "--kill-child", "sh", "-c", _MOUNTS, "sh"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        chroot = [f"--userspec={self.user}", str(self.root), "/usr/bin/env", "-i", *variables]
        return [*mounted, str(self.root), TRUST, *chroot, *argv]

    def run(self, argv: Sequence[str], *, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Until it ends. Standard error goes where standard output goes."""
        return subprocess.run(
            self.command(argv),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def output(self, argv: Sequence[str]) -> str:
        """Of one that must not fail."""
        done = self.run(argv)
        assert done.returncode == 0, f"{argv}: {done.stdout}"
        return done.stdout

    @contextmanager
    def started(self, argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        """One that goes on. It ends on the way out."""
        process = subprocess.Popen(self.command(argv), stdout=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def children(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def trusts() -> dict[str, str]:
    """What pip needs in a tree to trust what this host trusts."""
    return {"PIP_CERT": TRUST} if os.environ.get("PIP_CERT") else {}
