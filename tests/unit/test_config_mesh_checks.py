"""Allowed IPs between peers: every clash is found, and nothing else."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config import PeerConfig
from relayd.config.mesh_checks import overlaps
from relayd.keys import PublicKey
from tests.helpers.config_files import agent_error, change, with_private_key


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where AGENT finds its private key."""
    return with_private_key(tmp_path)


# Few addresses, so that they meet.
NETWORKS = st.builds(
    lambda bits, prefix: IPv4Network((bits << 29 >> (32 - prefix) << (32 - prefix) if prefix else 0, prefix)),
    st.integers(0, 7),
    st.integers(0, 4),
) | st.builds(
    lambda bits, prefix: IPv6Network(
        (bits << 125 >> (128 - prefix) << (128 - prefix) if prefix else 0, prefix)
    ),
    st.integers(0, 7),
    st.integers(0, 4),
)


@given(st.lists(st.lists(NETWORKS, min_size=1, max_size=4, unique=True), max_size=4))
def test_a_clash_is_found_exactly_when_there_is_one(peers: list[list[IPv4Network | IPv6Network]]) -> None:
    def clash(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
        default_routes = (one.prefixlen == 0) + (other.prefixlen == 0)
        if isinstance(one, IPv4Network):
            return isinstance(other, IPv4Network) and one.overlaps(other) and default_routes != 1
        return isinstance(other, IPv6Network) and one.overlaps(other) and default_routes != 1

    expected = {
        (j, b, i, a)
        for (i, first), (j, second) in combinations(enumerate(peers), 2)
        for a, one in enumerate(first)
        for b, other in enumerate(second)
        if clash(one, other)
    }
    configs = [
        PeerConfig(public_key=PublicKey(bytes([index + 1] * 32)), allowed_ips=tuple(networks))
        for index, networks in enumerate(peers)
    ]
    found = {
        (later.peer, later.element, sooner.peer, sooner.element)
        for later, sooner in overlaps(dict(enumerate(configs)))
    }
    assert found <= expected
    assert bool(found) == bool(expected)


def test_two_default_routes_clash(directory: Path) -> None:
    text = change("192.168.7.0/24", "0.0.0.0/0").replace("10.9.0.0/16", "0.0.0.0/0")
    assert "0.0.0.0/0 overlaps 0.0.0.0/0 of peer[1]" in agent_error(directory, text).problem


def test_an_overlap_is_found_past_a_default_route_and_past_the_peers_own(directory: Path) -> None:
    text = change('"192.168.7.0/24"]', '"192.168.0.0/16"]').replace(
        "10.9.0.0/16", "0.0.0.0/0, 192.168.0.0/17, 192.168.1.0/24"
    )
    error = agent_error(directory, text)
    assert "192.168.0.0/17 overlaps 192.168.0.0/16 of peer[1], line 11" in error.problem
