"""The kernel tier runs inside the virtual machine only; elsewhere its tests are not collected.

python -m tests.kernel.vm -- python -m pytest tests/kernel -q
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import side_by_side
from tests.kernel.agents import Agents, Imported, be_patient
from tests.kernel.vm import INSIDE

inside = os.environ.get(INSIDE) == "1"

# These tests make interfaces by fixed names in the network namespace they run in: that must not be a host's.
collect_ignore_glob = [] if inside else ["test_*.py"]


TEST_S = 400
"""The longest that one test may take: in emulation all takes some fifteen times longer than elsewhere."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", f"{side_by_side.ALONE}: runs when no other test of the tier does")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file that is named on the command line is collected whatever is ignored: not here, though."""
    here = Path(__file__).parent
    ours = [item for item in items if item.path.is_relative_to(here)]
    for item in ours:
        item.add_marker(pytest.mark.timeout(TEST_S))
    if not inside and ours:
        raise pytest.UsageError("the kernel tier changes the host it runs on: python -m tests.kernel.vm")


def pytest_report_header() -> str:
    """Said wherever this directory is asked for."""
    if inside:
        return f"kernel tier: {os.uname().release}"
    return "kernel tier: not here, run python -m tests.kernel.vm -- python -m pytest tests/kernel"


_imported: list[Imported] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """What tests will ask for begins now, beside the collection."""
    if inside and not session.config.option.collectonly:
        be_patient()
        _imported.append(Imported())


def pytest_sessionfinish() -> None:
    """A plugin's hook."""
    while _imported:
        _imported.pop().close()


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """In the machine, as many tests at once as it has processors; RELAYD_ONE_BY_ONE=1 for one."""
    processes = 1 if os.environ.get("RELAYD_ONE_BY_ONE") == "1" else os.cpu_count() or 1
    if not inside or processes == 1 or session.config.option.collectonly or session.testsfailed:
        return None
    return side_by_side.run(session, processes)


@pytest.fixture(scope="session")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """Who starts relayd's commands."""
    with Agents(tmp_path_factory.mktemp("logs"), _imported[-1]) as running:
        yield running
