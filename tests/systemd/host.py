"""A machine with relayd's units, as `relayd install-service` leaves it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import trio

import relayd
from relayd.observe.control import NobodyAnswersError, ask

PROGRAM = Path(sys.executable).with_name("relayd")
CONTROL = "/run/relayd/relay/relay.sock"
STATE = Path("/var/lib/relayd")

START_S = 90.0
"""For a start under emulation, on a machine that has other things to do."""

HERE = f"""\
[Service]
# The interpreter and relayd may be in a home or below /tmp (which a dynamic user has for itself in any case),
# and nothing may be written there.
ProtectHome=no
PrivateTmp=no
BindReadOnlyPaths={sys.prefix} {Path(relayd.__file__).resolve().parents[1]}
Environment=PYTHONDONTWRITEBYTECODE=1
TimeoutStartSec=90
TimeoutStopSec=60
"""


def sh(*argv: str, status: int | None = 0, timeout_s: float = 2 * START_S) -> str:
    """What a command prints. `status`: how it must end; None: in any way."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert status is None or done.returncode == status, (
        f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def soon(true: Callable[[], bool], what: str, within_s: float = START_S) -> float:
    """Wait until it is true. -> seconds that it took"""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


class Host:
    """What tests do to it."""

    def install(self) -> None:
        """The units, with a drop-in for what is different here."""
        # A dynamic user must reach the interpreter and relayd, which may be in somebody's home.
        for place in (sys.prefix, sys.base_prefix, relayd.__file__):
            for directory in Path(place).resolve().parents:
                directory.chmod(directory.stat().st_mode | 0o055)
        # Without --program it looks for modules that have no bytecode, which takes seconds under emulation.
        made = cache_from_source(str(Path(relayd.__file__).with_name("relay") / "server.py"))
        sh(str(PROGRAM), "install-service", *(("--program", str(PROGRAM)) if Path(made).exists() else ()))
        for unit in ("relayd.service", "relayd-agent@.service"):
            drop_in = Path(f"/etc/systemd/system/{unit}.d/here.conf")
            drop_in.parent.mkdir(parents=True)
            drop_in.write_text(HERE)
        sh("systemctl", "daemon-reload")

    def uninstall(self) -> None:
        """All of it goes."""
        sh(str(PROGRAM), "install-service", "--uninstall")

    def systemctl(self, *arguments: str) -> str:
        """Must succeed."""
        done = subprocess.run(
            ["systemctl", *arguments], capture_output=True, text=True, timeout=2 * START_S, check=False
        )
        assert done.returncode == 0, f"systemctl {arguments}: {done.stderr}\n{self.lately()}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return sh("systemctl", "show", unit, "--property", name, "--value").strip()

    def main_pid(self, unit: str) -> int:
        """0: there is none."""
        return int(self.show(unit, "MainPID"))

    def kept(self, unit: str) -> int:
        """Descriptors in its store."""
        return int(self.show(unit, "NFileDescriptorStore"))

    def killed(self, unit: str, *, when: Callable[[], bool] = lambda: True) -> None:
        """SIGKILL, `when` that is true, and the manager has started it anew."""
        before = self.main_pid(unit)
        soon(when, "the moment for the kill")
        os.kill(before, signal.SIGKILL)
        soon(lambda: self.main_pid(unit) not in (0, before), "the manager starts it anew")
        soon(lambda: self.show(unit, "ActiveState") == "active", "it is ready")

    def journal(self, unit: str) -> str:
        """What a unit said, and what was said of it."""
        return sh("journalctl", "--no-pager", "-o", "cat", "-u", unit, status=None)

    def lately(self) -> str:
        """What anybody said last: why a process couldn't even be started isn't among its unit's words."""
        time.sleep(1)  # what is under way to the journal
        return sh("journalctl", "--no-pager", "-o", "short-monotonic", "-n", "60", status=None)

    def events(self, *matches: str) -> list[dict[str, str]]:
        """Entries of the journal that match, by their fields."""
        lines = sh("journalctl", "--no-pager", "-o", "json", *matches, status=None).splitlines()
        return [json.loads(line) for line in lines]

    def relay(self) -> dict[str, Any] | None:
        """What the relay says of itself; None: it doesn't."""
        try:
            return trio.run(ask, CONTROL, "status")
        except NobodyAnswersError:
            return None
