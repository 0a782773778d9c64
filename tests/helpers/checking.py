"""`relayd check` run in a node of the laboratory, and what it found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from relayd.demo.lab import RELAYD, Lab, Node
from tests.helpers.netns import snapshot, wait_until

RELAY = "192.0.2.1:3478"
CHECK_S = 30.0

Findings = list[dict[str, str]]


def check(
    lab: Lab, node: Node, *arguments: str, relay: str = RELAY, unable: bool = False
) -> tuple[int, Findings]:
    """(exit status, findings) of `relayd check` in the node; `unable`: without any capability."""
    command = [*RELAYD, "check", "--json", *arguments, *(["--relay", relay] if relay else [])]
    if unable:
        # (capsh runs a shell: a drop from the bounding set counts at the next execve.)
        command = [
            "setpriv",
            "--bounding-set",
            "-all",
            "--inh-caps",
            "-all",
            "--ambient-caps",
            "-all",
            *command,
        ]
    process = node.start(*command)
    status = process.wait(CHECK_S)
    answer: dict[str, Any] = json.loads(process.output())
    lab.discard(process)
    assert status == (1 if answer["errors"] else 0)
    return status, answer["findings"]


def faults(found: tuple[int, Findings], check: str = "") -> Findings:
    return [one for one in found[1] if one["level"] != "ok" and check in ("", one["check"])]


def only(found: tuple[int, Findings], check: str) -> dict[str, str]:
    (fault,) = faults(found, check)
    return fault


def run_command(node: Node, finding: dict[str, str]) -> None:
    """What the finding says mends it, as it stands there."""
    node.run("sh", "-ec", finding["command"])


@contextmanager
def unchanged(node: Node) -> Iterator[None]:
    seen = [snapshot(node)]

    def settled() -> bool:  # new links and their addresses take a moment
        seen.append(snapshot(node))
        return seen[-1] == seen[-2] and "tentative" not in seen[-1]["addresses"]

    wait_until(settled, "nothing changes by itself")
    yield
    assert snapshot(node) == seen[-1]
