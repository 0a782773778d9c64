"""Direct paths with the kernel's WireGuard, whose roaming is what a change of path has to stand up to.

The whole table of pairings is tests/netns/test_paths.py's, with wireguard-go; these are the main ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from relayd.demo.lab import Node
from relayd.marks import PROXY_NETWORK
from tests.helpers.natlab import Ipv6, Nat
from tests.helpers.netns import wait_until
from tests.helpers.path_mesh import PathMesh, Pings
from tests.kernel.agents import Agents, Running

SLOW_S = 60.0
"""For what takes seconds elsewhere: here an interpreter runs some fifteen times slower."""

HELD_S = 2.0
"""So long a path is watched after a change: what is late comes within the relay's round trip."""

CONE, HARD, DRAWN = (Nat.FULL_CONE,), (Nat.PORT_RESTRICTED,), (Nat.SYMMETRIC,)


class KernelMesh(PathMesh):
    """With processes that have nothing left to import."""

    def __init__(self, agents: Agents, a: tuple[Nat, ...], b: tuple[Nat, ...], **more: Any) -> None:
        self._agents_of = agents
        super().__init__(a, b, **more)
        assert {tunnel.kind for tunnel in self.tunnels.values()} == {"kernel"}

    def run_relayd(self, node: Node, *arguments: str) -> Running:
        """See PathMesh."""
        return self._agents_of.start_beside(node.pid, *arguments)


@pytest.fixture
def tidy(agents: Agents) -> Iterator[Agents]:
    """Nothing that was started outlives the test."""
    yield agents
    for running in agents.running():
        running.kill()


@pytest.mark.parametrize(
    ("a", "b"), [((), ()), (CONE, CONE), (HARD, HARD), (CONE, DRAWN)],
    ids=["none-none", "cone-cone", "restricted-restricted", "cone-symmetric"],
)  # fmt: skip
def test_g19_a_pair_goes_direct_under_a_ping_and_nothing_is_lost(
    tidy: Agents, a: tuple[Nat, ...], b: tuple[Nat, ...]
) -> None:
    with KernelMesh(tidy, a, b, ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents()
        mesh.wait_up(SLOW_S)
        pings = Pings(mesh)
        wait_until(pings.first_at, "a ping is answered", SLOW_S)
        mesh.wait_path("direct", timeout_s=SLOW_S)
        decided = {name: mesh.endpoint(name) for name in ("a", "b")}
        assert all(found is not None and found.address not in PROXY_NETWORK for found in decided.values())
        time.sleep(HELD_S)
        assert {name: mesh.endpoint(name) for name in ("a", "b")} == decided
        result = pings.stop()
        assert result.lost() == []
        assert result.most_copies() <= 2


def test_g19_a_pair_of_symmetric_nats_stays_on_the_relay(tidy: Agents) -> None:
    with KernelMesh(tidy, DRAWN, DRAWN, ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents()
        mesh.wait_up(SLOW_S)
        pings = Pings(mesh)
        wait_until(pings.first_at, "a ping is answered", SLOW_S)
        for going_on in (True, False):
            for name in ("a", "b"):
                wait_until(partial(is_checking, mesh, name, going_on), f"{name}'s round of checks", SLOW_S)
        assert (mesh.path("a"), mesh.path("b")) == ("relay", "relay")
        assert pings.stop().lost() == []


def is_checking(mesh: PathMesh, name: str, going_on: bool) -> bool:
    """Whether a round of checks is going on there, or (False) there were pairs in one that all failed."""
    peer = mesh.status(name)
    states = [] if peer is None else [one["state"] for one in peer["paths"]["candidates"]]
    if going_on:
        return "checking" in states
    return bool(states) and set(states) == {"failed"}


def test_g20_a_cut_path_is_left_for_the_relay_and_taken_again_without_a_loss(tidy: Agents) -> None:
    """50 ms of delay each way to the relay: packets are under way through it when the endpoint changes."""
    with KernelMesh(tidy, HARD, CONE, ipv6=Ipv6.NONE) as mesh:
        mesh.internet.impair("relay", delay_ms=50)
        mesh.start_agents()
        mesh.wait_up(SLOW_S)
        mesh.wait_path("direct", timeout_s=SLOW_S)
        pings = Pings(mesh)
        wait_until(pings.first_at, "a ping is answered", SLOW_S)
        mesh.internet.cut("a", "b")
        mesh.wait_path("relay", timeout_s=SLOW_S)
        relayed_at = time.time()
        wait_until(lambda: (pings.last_at() or 0.0) > relayed_at, "the relay carries", SLOW_S)
        mesh.internet.mend("a", "b")
        back_at = time.time()
        late = late_packets(mesh)
        mesh.wait_path("direct", timeout_s=SLOW_S)
        decided = {name: mesh.endpoint(name) for name in ("a", "b")}
        until = time.time() + HELD_S
        while time.time() < until:
            assert {name: mesh.endpoint(name) for name in ("a", "b")} == decided
            time.sleep(0.2)
        assert late_packets(mesh) > late  # else nothing was put to the test
        result = pings.stop()
        assert [at for at in result.lost_at() if at > back_at] == []
        assert result.most_copies() <= 2


def late_packets(mesh: PathMesh) -> int:
    """Of both ends."""
    return sum(mesh.late_packets(name) for name in ("a", "b"))
