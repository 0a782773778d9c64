"""What the kube tier shares: a laboratory with a control plane in it. Tests leave it as they find it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from relayd.demo.lab import Lab
from relayd.errors import HostError
from tests.kube.control_plane import ControlPlane
from tests.kube.nodes import Nodes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the agents said goes with a test that failed."""
    report = yield
    nodes = item.funcargs.get("nodes") if isinstance(item, pytest.Function) else None
    if report.failed and isinstance(nodes, Nodes):
        for name, agent in nodes.agents.items():
            report.sections.append((f"agent {name}", agent.output()[-6000:]))
    return report


@contextmanager
def _laboratory() -> Iterator[Lab]:
    try:
        made = Lab()
    except HostError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with _laboratory() as made:
        yield made


@pytest.fixture(scope="session")
def cluster(lab: Lab) -> ControlPlane:
    """Empty but for what every cluster has."""
    return ControlPlane(lab)


@pytest.fixture(scope="session")
def installed(cluster: ControlPlane) -> ControlPlane:
    """With config/ in it."""
    cluster.install()
    return cluster


@pytest.fixture(scope="module")
def lab_of_module() -> Iterator[Lab]:
    """One of a module's own, for control planes that are killed and the like."""
    with _laboratory() as made:
        yield made
