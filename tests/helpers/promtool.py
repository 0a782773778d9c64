"""Prometheus' own tool: it judges what is exposed, and runs alert rules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 30.0
KEPT = Path(sys.prefix).parent / "promtool" / "promtool"
"""Where .ci/setup puts it: beside the virtual environment."""


def promtool(*arguments: str, stdin: str = "") -> tuple[int, str]:
    """Run it. -> exit status, and all that it says."""
    program = shutil.which("promtool") or (str(KEPT) if KEPT.exists() else None)
    if program is None:
        pytest.skip("promtool isn't there (sh .ci/setup test gets it)")
    done = subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return done.returncode, done.stdout + done.stderr
