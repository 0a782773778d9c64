"""What takes seconds says so on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

RELAYD = [sys.executable, "-m", "relayd"]
TIMEOUT_S = 60.0

COMMANDS = {
    "looking this host over": [*RELAYD, "check", "--interface", "wg-none"],
    "asking 127.0.0.1:9": [*RELAYD, "stun", "127.0.0.1:9", "--interface", "wg-none"],
}
"""What is said -> by whom. Nobody is on the discard port."""


def on_a_terminal(said: str, **environ: str) -> bytes:
    """What a terminal gets on standard error."""
    terminal, end = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", **environ}
    process = subprocess.Popen(COMMANDS[said], stdout=subprocess.DEVNULL, stderr=end, env=environ)
    os.close(end)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # EIO: nobody has the other end any more
        pass
    process.wait(TIMEOUT_S)
    os.close(terminal)
    return shown


@pytest.mark.parametrize("said", COMMANDS)
def test_a_terminal_is_told_that_something_goes_on(said: str) -> None:
    assert said.encode() in on_a_terminal(said)


def test_one_without_unicode_gets_characters_that_it_has() -> None:
    shown = on_a_terminal("looking this host over", PYTHONIOENCODING="ascii")
    assert b"looking this host over" in shown
    assert b"\\u" not in shown


@pytest.mark.parametrize("said", COMMANDS)
def test_nobody_else_is_told(said: str) -> None:
    done = subprocess.run(COMMANDS[said], capture_output=True, timeout=TIMEOUT_S, check=False)
    assert said.encode() not in done.stderr
