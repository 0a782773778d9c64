"""The units, as systemd's own tools judge them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from relayd.install.plan import UNIT_DIRECTORY, UNITS
from relayd.install.service import install

LEAST_EXPOSED = {"relayd.service": 2.0, "relayd-agent@.service": 4.0}
"""systemd-analyze security: 0 is nothing, 10 is everything."""

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt-get install systemd"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the units are, naming a program that is there."""
    root = tmp_path_factory.mktemp("units")
    install(root=root, program="/usr/bin/env", tell=lambda line: None)
    return root / UNIT_DIRECTORY.lstrip("/")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_units_have_no_mistakes(directory: Path) -> None:
    done = analyze("verify", "--man=no", *(str(directory / name) for name in UNITS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", LEAST_EXPOSED)
def test_units_leave_little_exposed(unit: str, directory: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(directory / unit))
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) <= LEAST_EXPOSED[unit]
    assert (
        analyze(
            "security", "--offline=true", f"--threshold={LEAST_EXPOSED[unit] * 10:.0f}", str(directory / unit)
        ).returncode
        == 0
    )
