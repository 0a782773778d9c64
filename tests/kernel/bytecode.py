"""The tree's bytecode, for the virtual machine: what isn't compiled here is compiled there, and takes longer.

And in each process anew: what one writes there goes with the machine. Here it goes into the cache, to a
directory that the machine lays over its root, so that there it is beside the sources.
"""

from __future__ import annotations

import os
import py_compile
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path

from tests.kernel.image import VmError, locked

COLLECT_S = 120.0


def layer(tree: Path, cache: Path, command: Sequence[str], environment: Mapping[str, str]) -> Path:
    """The directory: below it, at the same paths as those of the tree's sources, their `__pycache__`.

    Of a `command` that is pytest, also what that makes of tests and plugins, with `environment`.
    """
    top = cache / "bytecode"
    top.mkdir(exist_ok=True)
    with locked(cache):
        for source in _sources(tree):
            compiled = _place(top, Path(cache_from_source(str(source))))
            if not _is_fresh(compiled, source):
                # What can't be compiled says so when it is imported.
                py_compile.compile(str(source), str(compiled), quiet=2)
        if "pytest" in command[:3]:
            _collect(command, environment, top, cache / "collected")
    return top


def _place(top: Path, path: Path) -> Path:
    return top / path.relative_to("/")


def _sources(tree: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(tree):
        names[:] = [name for name in names if not name.startswith((".", "__"))]
        yield from (Path(directory, name) for name in files if name.endswith(".py"))


def _is_fresh(compiled: Path, source: Path) -> bool:
    """As the import system judges: by the version, and by time and size of the source (PEP 3147, PEP 552)."""
    try:
        with compiled.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        return False
    seen = source.stat()
    flags, time_s, size = (int.from_bytes(head[at : at + 4], "little") for at in (4, 8, 12))
    return head[:4] == MAGIC_NUMBER and (flags, time_s, size) == (
        0,
        int(seen.st_mtime) & 0xFFFFFFFF,
        seen.st_size & 0xFFFFFFFF,
    )


def _collect(command: Sequence[str], environment: Mapping[str, str], top: Path, prefix: Path) -> None:
    """pytest compiles modules with assertions that explain themselves: let it, without running any."""
    try:
        # If it fails, it does so in the machine too, where its words are heard.
        subprocess.run(
            [*command, "--collect-only", "-q"],
            env={**environment, "PYTHONPYCACHEPREFIX": str(prefix)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=COLLECT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise VmError(f"`{shlex.join(error.cmd)}` has not ended after {COLLECT_S:g} s") from error
    for made in prefix.rglob("*-pytest-*.pyc"):
        directory = _place(top, Path("/") / made.parent.relative_to(prefix)) / "__pycache__"
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, directory)
