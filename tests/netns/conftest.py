"""What the namespace tier shares. One laboratory a module; its end takes everything with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relayd.demo.host import check_programs
from relayd.demo.lab import Lab
from relayd.errors import HostError
from tests.helpers.pairings import pytest_terminal_summary

__all__ = ["lab", "pytest_terminal_summary"]

PROGRAMS = ("iperf3", "nft", "ping", "wg", "wireguard-go")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        check_programs(PROGRAMS)
        made = Lab()
    except HostError as error:
        pytest.skip(str(error))
    with made:
        yield made
