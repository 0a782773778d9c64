"""What takes seconds says so on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

CHECK = [sys.executable, "-m", "relayd", "check", "--interface", "wg-none"]
TIMEOUT_S = 60.0


def test_check_tells_a_terminal_that_it_is_at_work() -> None:
    terminal, end = pty.openpty()
    environ = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(CHECK, stdout=subprocess.DEVNULL, stderr=end, env=environ)
    os.close(end)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # EIO: nobody has the other end any more
        pass
    process.wait(TIMEOUT_S)
    os.close(terminal)
    assert b"looking this host over" in shown


def test_check_tells_nobody_else() -> None:
    done = subprocess.run(CHECK, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert done.stderr == b""
