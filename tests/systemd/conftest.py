"""The systemd tier: inside a virtual machine of which systemd is process 1.

    python -m tests.kernel.vm --systemd -- python -m pytest tests/systemd

Elsewhere its tests are not collected: they install units by their real names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kernel.vm import INSIDE, SYSTEMD
from tests.systemd.host import Host

inside = os.environ.get(INSIDE) == SYSTEMD

collect_ignore_glob = [] if inside else ["test_*.py"]


def pytest_report_header() -> str:
    """Said wherever this directory is asked for."""
    if inside:
        return f"systemd tier: {os.uname().release}"
    return "systemd tier: not here, run python -m tests.kernel.vm --systemd -- python -m pytest tests/systemd"


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """The machine, with relayd's units installed."""
    host = Host()
    host.install()
    yield host
    host.uninstall()
