"""The table of pairings of NATs, printed in the end by whichever process judges the session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

PAIRING = "pairing"
"""The property of a test's report: (title of the table, kind of a, kind of b, what path they found)."""

COLUMN = 20


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests found, a table for each title."""
    tables: dict[str, dict[tuple[str, str], str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == PAIRING and report.when == "call":
                title, a, b, path = value
                tables.setdefault(title, {})[a, b] = path
    for title, found in tables.items():
        terminalreporter.section(title)
        for line in lines(found):
            terminalreporter.line(line)


def lines(found: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """The table, a line for each kind."""
    names = list(dict.fromkeys(name for pair in found for name in pair))
    yield "".join(name.ljust(COLUMN) for name in ("", *names)).rstrip()
    for a in names:
        cells = (found.get((b, a)) or found.get((a, b), "") for b in names)
        yield "".join(cell.ljust(COLUMN) for cell in (a, *cells)).rstrip()
