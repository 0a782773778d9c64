"""Builds the control plane of the kube tier (`cluster/`): etcd, kube-apiserver and kubectl, from Go modules.

    python -m tests.kube.build --cache DIR      prints the program's path; minutes at first, then nothing

Built once for each content of its sources, and kept in the cache; what older sources gave is removed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "cluster"
LIMIT_S = 1800.0
"""Two and a half minutes on two idle cores, with the modules to be downloaded first."""

_MODULE = re.compile(r"^\tk8s\.io/kubernetes (v(\d+)\.(\d+)\S*)$", re.MULTILINE)
_STAMP = "k8s.io/component-base/version"
GCFLAGS = "all=-l -dwarf=false"
"""No inlining, no debugging information: a third less to compile, and a start takes hardly longer."""


def default_cache() -> Path:
    """Where `.ci/setup` keeps things too."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "relayd/kube"


def find_go(cache: Path) -> str:
    """A Go that is new enough: the host's, or the one that `.ci/setup test` put beside `cache`."""
    needed = _version(re.search(r"^go (\S+)$", (SOURCE / "go.mod").read_text(), re.MULTILINE))
    for candidate in (shutil.which("go"), cache.parent / "go/bin/go"):
        if candidate is None or not Path(candidate).exists():
            continue
        said = subprocess.run(
            [candidate, "env", "GOVERSION"],
            cwd="/", env={**os.environ, "GOTOOLCHAIN": "local"}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        if _version(re.match(r"go([0-9.]+)", said)) >= needed:
            return str(candidate)
    raise SystemExit(f"no Go {'.'.join(map(str, needed))} or newer: run `sh .ci/setup test`")


def _version(match: re.Match[str] | None) -> tuple[int, ...]:
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def build(cache: Path) -> Path:
    """The program, compiled if need be. Raises CalledProcessError, and SystemExit without a Go."""
    go = find_go(cache)
    module = _MODULE.search((SOURCE / "go.mod").read_text())
    assert module is not None
    version, major, minor = module.groups()
    stamp = " ".join(
        f"-X {_STAMP}.{name}={value}"
        for name, value in {"gitVersion": version, "gitMajor": major, "gitMinor": minor}.items()
    )
    digest = hashlib.sha256(f"{GCFLAGS} {stamp}".encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes())
    program = cache / f"cluster-{version}-{digest.hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            print(f"building {program.name} (takes minutes the first time)", file=sys.stderr, flush=True)
            unfinished = cache / "unfinished"
            subprocess.run(
                [
                    go,
                    "build",
                    "-trimpath",
                    "-gcflags",
                    GCFLAGS,
                    "-ldflags",
                    f"-s -w {stamp}",
                    "-o",
                    unfinished,
                ],
                cwd=SOURCE,
                env={
                    **os.environ,
                    "CGO_ENABLED": "0",
                    "GOFLAGS": "-mod=readonly -buildvcs=false",
                    "GOTOOLCHAIN": "local",
                    "GOGC": "800",
                },
                timeout=LIMIT_S,
                check=True,
            )
            for old in cache.glob("cluster-*"):
                old.unlink()
            unfinished.rename(program)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kube.build", description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR", help="%(default)s")
    print(build(parser.parse_args().cache))


if __name__ == "__main__":
    main()
