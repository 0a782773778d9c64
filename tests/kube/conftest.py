"""What the kube tier shares: a laboratory with a control plane in it. Tests leave it as they find it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relayd.demo.lab import Lab
from relayd.errors import HostError
from tests.kube.control_plane import ControlPlane


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    try:
        made = Lab()
    except HostError as error:
        pytest.skip(str(error))
    with made:
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
