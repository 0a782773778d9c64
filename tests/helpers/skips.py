"""Skips that nobody expected fail the session when CI=true.

A test that can't run on somebody's laptop is skipped there and says why; in CI, where everything has been
installed, the same skip means that something isn't tested any more. A test that may be skipped there
too says so with its reason:

    @pytest.mark.expected_skip("needs a kernel with io_uring")
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest

MARKER = "expected_skip"
_TRUE = ("true", "1", "yes")


@dataclass
class _Skips:
    unexpected: dict[str, str] = field(default_factory=dict)
    """Node id -> why it was skipped."""


_KEY = pytest.StashKey[_Skips]()
_current: list[pytest.Config] = []
"""The session's configuration, innermost last: the hooks for reports are not given it."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", f"{MARKER}(reason): a skip of this test does not fail the session in CI"
    )
    config.stash[_KEY] = _Skips()
    _current.append(config)
    config.add_cleanup(lambda: _current.remove(config))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that may be skipped. Raises UsageError for one that gives no reason."""
    for mark in item.iter_markers(MARKER):
        if not (mark.args and isinstance(mark.args[0], str) and mark.args[0]):
            raise pytest.UsageError(f"{item.nodeid}: {MARKER} needs a reason")
        # In its report too: that goes to the process which judges the session, when tests run in several.
        item.user_properties.append((MARKER, True))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a skipped test. (One that fails as expected, xfail, reports itself as skipped too: it did run.)"""
    expected = hasattr(report, "wasxfail") or any(name == MARKER for name, _ in report.user_properties)
    if report.skipped and not expected:
        _note(report.nodeid, report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a module that was skipped whole."""
    if report.skipped:
        _note(report.nodeid, report.longrepr)


def _note(nodeid: str, why: object) -> None:
    _current[-1].stash[_KEY].unexpected[nodeid] = str(why[-1]) if isinstance(why, tuple) else str(why)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session for its unexpected skips, in CI."""
    if _in_ci() and session.config.stash[_KEY].unexpected and session.exitstatus in (0, 5):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which they were."""
    unexpected = config.stash[_KEY].unexpected
    if _in_ci() and unexpected:
        terminalreporter.section("skipped in CI without an expected_skip marker: a failure", red=True)
        for nodeid, why in unexpected.items():
            terminalreporter.line(f"{nodeid}: {why}")


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in _TRUE
