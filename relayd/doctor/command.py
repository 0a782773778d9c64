"""`relayd check`: gather, judge, print; the exit status says whether there is an error."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import trio

from relayd.config import AgentConfig
from relayd.doctor.checks import judge
from relayd.doctor.finding import Finding
from relayd.doctor.survey import survey
from relayd.observe.output import at_work, printing
from relayd.observe.text import printable


def check(config: AgentConfig, *, as_json: bool) -> int:
    """Print what stands in the way of an agent with `config`, which may name no relay. 0: no error was found.

    Raises RelaydError when it can't be printed.
    """
    relay = (
        f", and trying to reach {', '.join(one.address for one in config.relays)}" if config.relays else ""
    )
    with at_work(f"looking this host over{relay}"):
        findings = judge(trio.run(survey, config))
    with printing():
        if as_json:
            print(json.dumps(as_answer(config, findings), ensure_ascii=False))
        else:
            from relayd.doctor.view import print_findings

            print_findings(findings)
    return 1 if any(finding.level == "error" for finding in findings) else 0


def as_answer(config: AgentConfig, findings: list[Finding]) -> dict[str, object]:
    """All of it, for --json: one line."""
    counts = Counter(finding.level for finding in findings)
    return {
        "interface": config.interface,
        "relay": config.relays[0].address if config.relays else None,
        "relays": [one.address for one in config.relays],
        "errors": counts["error"],
        "warnings": counts["warning"],
        "findings": [
            {name: _lines(value) for name, value in asdict(finding).items()} for finding in findings
        ],
    }


def _lines(text: str) -> str:
    """What a host says of itself may have anything in it but ends of lines."""
    return "\n".join(printable(line) for line in text.splitlines())
