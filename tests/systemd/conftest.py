"""The systemd tier: where systemd is process 1.

    sh tests/systemd/boot.sh 400 python -m pytest tests/systemd            in namespaces, at full speed
    python -m tests.kernel.vm --steady --systemd -- python -m pytest -m machine tests/systemd

`make test` does the first, `make machine-test` the second: the kernel tier's machine, where WireGuard is the
kernel's. There an interpreter takes seconds to start, and 200 agents would take minutes to prove their keys:
it is left to show what a kernel and a real process 1 have to be there for.
Elsewhere its tests are not collected: they install units by their real names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.agents import Agents, Imported
from tests.kernel.vm import INSIDE, SYSTEMD
from tests.systemd.host import Host

inside = os.environ.get(INSIDE) == SYSTEMD

collect_ignore_glob = [] if inside else ["test_*.py"]


TEST_S = 400
"""The longest that one test may take, its set-up included: under emulation a service takes long to start."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A plugin's hook."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(TEST_S))


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "machine: is run in the kernel tier's machine too")


def pytest_report_header() -> str:
    """Said wherever this directory is asked for."""
    if inside:
        return f"systemd tier: {os.uname().release}"
    return "systemd tier: not here, run sh tests/systemd/boot.sh 400 python -m pytest tests/systemd"


_imported: list[Imported] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """What tests will ask for begins now, beside the collection."""
    if inside and not session.config.option.collectonly:
        _imported.append(Imported())


def pytest_sessionfinish() -> None:
    """A plugin's hook."""
    while _imported:
        _imported.pop().close()


@pytest.fixture(scope="session")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """Who starts relayd's commands that aren't services."""
    with Agents(tmp_path_factory.mktemp("logs"), _imported[-1]) as running:
        yield running


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """The machine, with relayd's units installed."""
    host = Host()
    host.install()
    yield host
    host.uninstall()
