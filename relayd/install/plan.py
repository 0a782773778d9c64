"""Which files `relayd install-service` writes, and what becomes of those that are there. Pure.

Units are ours and are brought up to date; a person's changes belong into drop-ins (`systemctl edit`), which
are never touched. Configuration is the person's: an example is written where there is none, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

UNIT_DIRECTORY = "/etc/systemd/system"
CONFIG_DIRECTORY = "/etc/relayd"

UNITS = ("relayd.socket", "relayd.service", "relayd-agent@.service")
CONFIGS = ("relay.toml", "agent-wg0.toml.example")

MARK = "# Written by `relayd install-service`"
"""Begins every unit of ours: one that doesn't is somebody else's."""

PROGRAM = "/usr/bin/relayd"
"""What ExecStart= names in the files that are shipped."""

NOTIFY_RELOAD_SINCE = 253
"""systemd whose `systemctl reload` waits for the reload's end, and needs no ExecReload=."""

RESTART_STEPS_SINCE = 254
"""systemd that can wait longer after each failure in a row."""


class Do(Enum):
    """What becomes of one file."""

    WRITE = "write"
    UPDATE = "update"
    REMOVE = "remove"
    KEEP = "keep"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Step:
    """One file."""

    path: str
    do: Do
    text: str = ""
    """What to write."""
    reason: str = ""
    """Why it is kept, or refused."""


def rendered(unit: str, *, program: str, version: int) -> str:
    """A unit's text for this host. `program` is how relayd is started, `version` systemd's.

    Raises ValueError when `program` can't stand in a unit file.
    """
    if not program.startswith("/") or re.search(r"[\s%$\"'\\;]", program.split(" -m ")[0]):
        raise ValueError(
            f"{program!r} can't be named in a unit file: an absolute path without blanks or %$\"'\\;"
        )
    unit = unit.replace(f"ExecStart={PROGRAM} ", f"ExecStart={program} ")
    if version >= NOTIFY_RELOAD_SINCE and "ExecReload=" in unit:
        unit = re.sub(r"^ExecReload=.*\n", "", unit, flags=re.MULTILINE)
        unit = unit.replace("Type=notify\n", "Type=notify-reload\n")
    if version >= RESTART_STEPS_SINCE:
        unit = re.sub(
            r"^(RestartSec=.*\n)", r"\1RestartSteps=8\nRestartMaxDelaySec=30s\n", unit, flags=re.MULTILINE
        )
    return f"{MARK}, which overwrites it: changes go into `systemctl edit`.\n{unit}"


def plan_install(
    units: Mapping[str, str], configs: Mapping[str, str], found: Mapping[str, str | None]
) -> list[Step]:
    """What to do. `units` and `configs` map paths to what shall stand there, `found` to what does (or
    None)."""
    steps = []
    for path, text in units.items():
        there = found.get(path)
        if there is None:
            steps.append(Step(path, Do.WRITE, text))
        elif there == text:
            steps.append(Step(path, Do.KEEP, reason="as it should be"))
        elif there.startswith(MARK):
            steps.append(Step(path, Do.UPDATE, text))
        else:
            steps.append(Step(path, Do.REFUSE, reason="relayd install-service didn't write it"))
    for path, text in configs.items():
        if found.get(path) is None:
            steps.append(Step(path, Do.WRITE, text))
        else:
            steps.append(Step(path, Do.KEEP, reason="configuration is yours"))
    return steps


def plan_uninstall(
    units: Mapping[str, str], configs: Mapping[str, str], found: Mapping[str, str | None]
) -> list[Step]:
    """What to do to have no unit of ours; the arguments are those of `plan_install`."""
    steps = []
    for path in units:
        there = found.get(path)
        if there is None:
            continue
        if there.startswith(MARK):
            steps.append(Step(path, Do.REMOVE))
        else:
            steps.append(Step(path, Do.REFUSE, reason="relayd install-service didn't write it"))
    for path, text in configs.items():
        there = found.get(path)
        if there == text:
            steps.append(Step(path, Do.REMOVE))
        elif there is not None:
            steps.append(Step(path, Do.KEEP, reason="configuration is yours"))
    return steps
