"""Does what a Dockerfile says, stage by stage, each in a tree of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.container.chroot import Tree, trusts
from tests.container.dockerfile import Stage, filled, pairs

RELEASES = {"12": "bookworm", "13": "trixie"}
RUN_S = 900.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def say(text: str) -> None:
    print(f"container: {text}", flush=True)


def base_of(image: str, cache: Path) -> Path:
    """An archive of the minimal system that stands for `image`, debian:VERSION-slim; made once."""
    release = RELEASES[image.removeprefix("debian:").partition(".")[0]]
    archive = cache / f"{release}.tar"
    if not archive.exists():
        say(f"debootstrap {release}, once")
        root = cache / f"debootstrap-{os.getpid()}"
        try:
            command = ["debootstrap", "--variant=minbase", release, str(root)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=RUN_S)
            partial = archive.with_suffix(".partial")
            subprocess.run(["tar", "-cf", str(partial), "-C", str(root), "."], check=True, timeout=RUN_S)
            partial.rename(archive)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return archive


class Build:
    """One stage, on top of its base."""

    def __init__(self, stage: Stage, base: Path, root: Path, arguments: Mapping[str, str]) -> None:
        """`base` is an archive, `root` a directory to be made; `arguments` are --build-arg's."""
        self._stage, self._root, self._arguments = stage, root, arguments
        self._known: dict[str, str] = {}
        self._environment = {"PATH": PATH}
        self._directory = "/"
        root.mkdir(parents=True)
        subprocess.run(["tar", "-xf", str(base), "-C", str(root)], check=True, timeout=RUN_S)

    def run(self, context: Path, built: Mapping[str, Path]) -> Tree:
        """All its instructions. `context` is what COPY takes from, `built` the stages before by name.

        Raises AssertionError for a RUN that fails."""
        user = "0:0"
        for step in self._stage.steps:
            match step.word:
                case "RUN":
                    self._run(step.rest)
                case "COPY":
                    self._copy(shlex.split(step.rest), context, built)
                case "WORKDIR":
                    self._directory = step.rest
                    self._inside(step.rest).mkdir(parents=True, exist_ok=True)
                case "ENV":
                    known = {**self._known, **self._environment}
                    self._environment |= {
                        name: filled(value, known) for name, value in pairs(step.rest).items()
                    }
                case "ARG":
                    name, _, default = step.rest.partition("=")
                    self._known[name] = self._arguments.get(name, default)
                case "USER":
                    user = step.rest
        return Tree(self._root, self._environment, user)

    def _inside(self, path: str) -> Path:
        return self._root / os.path.join(self._directory, path).lstrip("/")

    def _run(self, script: str) -> None:
        say(f"  RUN {script[:70]}...")
        environment = {**self._known, **self._environment, **trusts(), "DEBIAN_FRONTEND": "noninteractive"}
        tree = Tree(self._root, environment)
        done = tree.run(["sh", "-c", f"cd {shlex.quote(self._directory)} && {script}"], timeout_s=RUN_S)
        assert done.returncode == 0, f"RUN {script}\n{done.stdout[-4000:]}"

    def _copy(self, words: list[str], context: Path, built: Mapping[str, Path]) -> None:
        source_root, ignored = context, shutil.ignore_patterns("__pycache__")  # .dockerignore has it
        if words[0].startswith("--from="):
            source_root, ignored = built[words.pop(0).removeprefix("--from=")], lambda *_: set()
        *sources, target = words
        for path in (source_root / source.lstrip("/") for source in sources):
            if path.is_dir():  # its content: so the reference has it
                shutil.copytree(path, self._inside(target), symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                place = self._inside(target)
                place = place / path.name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
