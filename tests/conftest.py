"""For all tiers: in CI a test that is skipped without having said so beforehand is a failure."""

from tests.helpers.skips import (
    pytest_collectreport,
    pytest_configure,
    pytest_itemcollected,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

__all__ = [
    "pytest_collectreport",
    "pytest_configure",
    "pytest_itemcollected",
    "pytest_runtest_logreport",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
]
