"""Whether all that relayd needs comes as wheels for the image's processors, so that it builds for each."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

PROCESSORS = ("x86_64", "aarch64")

PYTHON, GLIBC = "3.11", 36
"""Debian 12's: it takes wheels for glibc 2.17 (manylinux2014) to 2.36 (PEP 600)."""

RESOLVE_S = 300.0


def wheels(pyproject: Path, processor: str) -> list[str]:
    """The names of what pip would install there. Raises AssertionError where something has no wheel."""
    wanted = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    tags = [f"manylinux_2_{minor}_{processor}" for minor in range(GLIBC, 16, -1)] + [
        f"manylinux2014_{processor}"
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check"),
            *("--ignore-installed", "--report", "-", "--target", "/nonexistent", "--only-binary", ":all:"),
            *("--implementation", "cp", "--python-version", PYTHON),
            *(word for tag in tags for word in ("--platform", tag)),
            *wanted,
        ],
        capture_output=True,
        text=True,
        timeout=RESOLVE_S,
        check=False,
    )
    assert done.returncode == 0, f"not all of it has wheels for {processor}:\n{done.stderr}"
    found = (one["download_info"]["url"] for one in json.loads(done.stdout)["install"])
    return sorted(url.rpartition("/")[2] for url in found)
