"""What `relayd check` shows a person: a line for each finding, what it means, what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from relayd.doctor.finding import Finding, Level
from relayd.observe.output import page
from relayd.observe.text import printable

_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "error": "bold red"}
_INDENT = 9
"""The level's column: "warning" and two blanks."""


def print_findings(
    findings: Sequence[Finding], *, file: TextIO | None = None, columns: int | None = None
) -> None:
    """Print them, and how many of each there are. `file` and `columns` stand for the terminal, for tests."""
    with page(file=file, columns=columns) as (console, _):
        for finding in findings:
            _print_one(console, finding)
        counts = {level: sum(one.level == level for one in findings) for level in _STYLES}
        console.print(
            f"{_several(counts['error'], 'error')}, {_several(counts['warning'], 'warning')}, "
            f"{counts['ok']} ok"
        )


def _print_one(console: Console, finding: Finding) -> None:
    level = Text(finding.level.ljust(_INDENT), _STYLES[finding.level])
    head = Text.assemble((f"{finding.check}: ", "bold"), printable(finding.text))
    # Wrapped under itself, so that the levels stand alone in their column.
    lines = head.wrap(console, max(20, console.width - _INDENT))
    for number, line in enumerate(lines):
        console.print(Text.assemble(level if number == 0 else " " * _INDENT, line))
    for words in finding.meaning.splitlines():
        console.print(Padding(Text(printable(words), "dim"), (0, 0, 0, _INDENT)))
    for words in finding.command.splitlines():
        # Never wrapped: it is to be copied.
        console.print(Text(f"{' ' * _INDENT}$ {printable(words)}", "cyan"), soft_wrap=True)


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
