"""Runs the Dockerfile's stages in a chroot, where there is no container engine: python -m tests.container

The base image is what debootstrap makes of the same release, kept in the cache; RUN and COPY do what they
say, as root in a mount namespace. Then the last stage is started as a container would be: the user, the entry
point, the health check and the stop signal that the file names. Needs root, debootstrap, a network.

At last pip is asked whether all that relayd needs comes as wheels for both processors.

What this can't show: the base image's own content and size (a minimal system stands for it), layers and how
they are cached, what runs on another processor, .dockerignore, an engine's limits and capabilities.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import relayd
from tests.container.build import Build, base_of, say
from tests.container.chroot import Tree, children
from tests.container.dockerfile import Stage, stages
from tests.container.wheels import PROCESSORS, wheels

ROOT = Path(__file__).parents[2]
START_S, STOP_S = 30.0, 15.0
WRITABLE = {"/var/lib/wirekube", "/run/relayd"}


def main() -> int:
    """Build, start, look, stop. The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.container",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/relayd/container"), metavar="DIR")
    cache: Path = parser.parse_args().cache.expanduser().resolve()
    cache.mkdir(parents=True, exist_ok=True)
    work, built = cache / f"build-{os.getpid()}", dict[str, Path]()
    arguments = {"VERSION": relayd.__version__, "REVISION": "none"}
    try:
        for number, stage in enumerate(stages(ROOT / "Dockerfile", arguments)):
            say(f"stage {stage.name or number}: {stage.base}")
            root = work / str(number)
            tree = Build(stage, base_of(stage.base, cache), root, arguments).run(ROOT, built)
            built[stage.name or str(number)] = root
        look(tree)
        start(stage, tree)
        for processor in PROCESSORS:
            found = wheels(ROOT / "pyproject.toml", processor)
            own = [name for name in found if not name.endswith("any.whl")]
            say(f"{processor}: {len(found)} wheels, {len(own)} of them its own")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say("built, started, healthy, stopped")
    return 0


def look(tree: Tree) -> None:
    """What is in the image, and what isn't."""
    for compiler in ("cc", "gcc", "g++", "clang", "make", "pip", "pip3"):
        found = tree.output(["sh", "-c", f"command -v {compiler} || echo none"])
        assert found.strip() == "none", f"{compiler} is in the image: {found}"
    for name in ("iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"):
        Tree(tree.root, tree.environment).output([name, "--version"])
    script = "find /opt /etc /usr /var/lib /run/relayd -writable ! -type l 2>/dev/null || true"
    found = tree.output(["sh", "-c", script])
    assert set(found.split()) == WRITABLE, f"writable for {tree.user}: {found}"
    everything, ours = (size_mib(path) for path in (tree.root, tree.root / "opt"))
    say(f"  {everything} MiB in all, {ours} of them relayd and what it needs")


def size_mib(path: Path) -> int:
    files = (one.lstat() for one in path.rglob("*") if one.is_file() and not one.is_symlink())
    return sum(one.st_size for one in files) >> 20


def start(stage: Stage, tree: Tree) -> None:
    """The last stage as a container: it starts, is healthy, and stops."""
    (entry,), (default,) = stage.all("ENTRYPOINT"), stage.all("CMD")
    (health,), (stop,) = stage.all("HEALTHCHECK"), stage.all("STOPSIGNAL")
    command: list[str] = json.loads(entry.rest)
    assert tree.output([*command, "--version"]) == f"relayd {relayd.__version__}\n"
    for words in (["agent", "--help"], ["cleanup", "--help"], ["check", "--help"]):
        tree.output([*command, *words])
    arguments = [*json.loads(default.rest), "--listen", "127.0.0.1:0", "--http", "off", "--stun-port", "off"]
    probe: list[str] = json.loads(health.rest[health.rest.index("CMD") + len("CMD") :])
    assert tree.run(probe).returncode != 0, "healthy before it runs"
    with tree.started([*command, *arguments]) as process:
        deadline = time.monotonic() + START_S
        while (done := tree.run(probe)).returncode:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, f"not healthy: {done.stdout}"
        (pid,) = children(process.pid)
        os.kill(pid, getattr(signal, stop.rest))
        status = process.wait(STOP_S)
        assert status == 0, f"it stops with status {status}"


if __name__ == "__main__":
    sys.exit(main())
