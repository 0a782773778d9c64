"""Writes, updates and removes systemd's units on this host, and says each thing that it does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from relayd.errors import HostError
from relayd.install.bytecode import compile_services
from relayd.install.plan import (
    CONFIG_DIRECTORY,
    CONFIGS,
    UNIT_DIRECTORY,
    UNITS,
    Do,
    Step,
    plan_install,
    plan_uninstall,
    rendered,
)
from relayd.observe.output import at_work

EXAMPLE = ".example"
"""Ends the name of a file to be copied. It is its owner's alone, and so are copies: an agent's has a token.
(The relay, which isn't root, reads its own.)"""

OLDEST = 250
"""systemd of Debian 12's and RHEL 9's generation: older ones don't know all of what the units ask for."""

SYSTEMCTL_S = 120.0
"""For `systemctl`: stopping a unit takes up to its TimeoutStopSec=."""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]

SAID = {Do.WRITE: "written", Do.UPDATE: "updated", Do.REMOVE: "removed"}
WOULD = {Do.WRITE: "would write", Do.UPDATE: "would update", Do.REMOVE: "would remove"}


def install(
    *,
    root: Path | None = None,
    program: str | None = None,
    uninstall: bool = False,
    dry_run: bool = False,
    tell: Callable[[str], None] = print,
    run: Run | None = None,
    compile_modules: Callable[[], int] = compile_services,
) -> int:
    """Bring the units into the state that is asked for. -> the exit status: 0, all is as it should be.

    `root`: below this directory and not on the running host, as for a package; systemctl isn't called then.
    `program`: how units start relayd (found out if None, and then its modules are compiled). Raises HostError
    for what the host lacks; nothing was changed then.
    """
    run = run if run is not None else _run
    base = root if root is not None else Path("/")
    version = _version(run) if root is None else None
    try:
        units = {
            f"{UNIT_DIRECTORY}/{name}": rendered(
                shipped(name), program=program or _program(), version=version or OLDEST
            )
            for name in UNITS
        }
    except ValueError as error:
        raise HostError(str(error)) from error
    configs = {f"{CONFIG_DIRECTORY}/{name}": shipped(name) for name in CONFIGS}
    found = {path: _text_of(base / path.lstrip("/")) for path in (*units, *configs)}
    steps = (plan_uninstall if uninstall else plan_install)(units, configs, found)
    refused = [step for step in steps if step.do is Do.REFUSE]
    if refused:
        named = ", ".join(step.path for step in refused)
        raise HostError(f"{named}: {refused[0].reason}; move it away first, nothing was changed")
    changes = [step for step in steps if step.do in SAID]
    live = root is None and not dry_run
    if live and uninstall and changes:
        with at_work("stopping"):
            _stop(run, tell)
    for step in steps:
        if step.do is Do.KEEP:
            tell(f"kept: {step.path} ({step.reason})")
        else:
            if not dry_run:
                _do(step, base)
            tell(f"{(WOULD if dry_run else SAID)[step.do]}: {step.path}")
    if live and changes:
        _systemctl(run, "daemon-reload")
    if live and not uninstall and program is None:
        with at_work("compiling"):
            count = compile_modules()
        if count:
            tell(f"compiled: {count} Python modules, so that services start sooner")
    _tell_what_next(tell, changes, uninstall=uninstall, dry_run=dry_run, root=root)
    return 0


def shipped(name: str) -> str:
    """A file as relayd comes with it. Raises HostError when the installation is not whole."""
    package = Path(__file__).parents[1]
    for directory in (package / "systemd", package.parent / "systemd"):  # installed; from a source tree
        if (directory / name).is_file():
            return (directory / name).read_text()
    raise HostError(f"{name} is missing from this installation of relayd ({package / 'systemd'})")


def _tell_what_next(
    tell: Callable[[str], None], changes: Sequence[Step], *, uninstall: bool, dry_run: bool, root: Path | None
) -> None:
    if not changes:
        tell("nothing to do")
    if dry_run or root is not None or uninstall:
        return
    tell("start the relay:  systemctl enable --now relayd.socket relayd.service")
    tell(f"start an agent:   write {CONFIG_DIRECTORY}/agent-wg0.toml (there is an example), then")
    tell("                  systemctl enable --now relayd-agent@wg0")


def _stop(run: Run, tell: Callable[[str], None]) -> None:
    """Stop and disable what is about to lose its unit file."""
    listed = run(["systemctl", "list-units", "--plain", "--no-legend", "--all", "relayd-agent@*.service"])
    agents = [line.split()[0] for line in listed.stdout.splitlines() if line.split()]
    for unit in ("relayd.socket", "relayd.service", *agents):
        if run(["systemctl", "is-active", "--quiet", unit]).returncode == 0:
            tell(f"stopping: {unit}")
        _systemctl(run, "disable", "--now", unit)


def _do(step: Step, base: Path) -> None:
    path = base / step.path.lstrip("/")
    try:
        if step.do is Do.REMOVE:
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(step.text)
        beside.chmod(0o600 if step.path.endswith(EXAMPLE) else 0o644)
        beside.replace(path)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror} (run as root)") from error


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error


def _program() -> str:
    """How to start the relayd that runs now: its script, or this interpreter."""
    script = Path(sys.argv[0])
    if script.name == "relayd" and script.is_file() and os.access(script, os.X_OK):
        return str(script.absolute())
    return found if (found := shutil.which("relayd")) else f"{sys.executable} -m relayd"


def _version(run: Run) -> int:
    done = run(["systemctl", "--version"])
    match = re.match(r"systemd (\d+)", done.stdout)
    if done.returncode or match is None:
        raise HostError("this host has no systemd (systemctl --version says nothing)")
    if (version := int(match[1])) < OLDEST:
        raise HostError(f"systemd {version} is too old for these units: {OLDEST} or newer")
    return version


def _systemctl(run: Run, *arguments: str) -> None:
    done = run(["systemctl", *arguments])
    if done.returncode:
        raise HostError(f"systemctl {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_S)
    except FileNotFoundError:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]} is not installed")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"no answer within {SYSTEMCTL_S:g} s")
