"""The systemd tier: where systemd is process 1.

    sh tests/systemd/boot.sh 400 python -m pytest tests/systemd                  in namespaces, at full speed
    python -m tests.kernel.vm --systemd -- python -m pytest tests/systemd        in the kernel tier's machine

`make test` does the first. Under emulation 200 agents take minutes to prove their keys alone.
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
    return "systemd tier: not here, run sh tests/systemd/boot.sh 400 python -m pytest tests/systemd"


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """The machine, with relayd's units installed."""
    host = Host()
    host.install()
    yield host
    host.uninstall()
