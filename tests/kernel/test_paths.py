"""Direct paths with the kernel's WireGuard, whose roaming is what a change of path has to stand up to."""

from __future__ import annotations

import time

import pytest

from relayd.endpoints import Endpoint
from relayd.marks import PROXY_NETWORK
from tests.helpers.natlab import Ipv6, Nat
from tests.helpers.netns import wait_until
from tests.helpers.path_mesh import PORTS, PathMesh, Pings

SLOW_S = 90.0
"""An emulated machine runs Python some fifteen times slower."""

pytestmark = pytest.mark.timeout(300)


def up(mesh: PathMesh) -> None:
    mesh.start_agents()
    mesh.wait_up(SLOW_S)


@pytest.mark.parametrize(
    ("a", "b", "ipv6"),
    [
        ((Nat.PORT_RESTRICTED,), (Nat.FULL_CONE,), Ipv6.NONE),
        ((Nat.SYMMETRIC,), (Nat.SYMMETRIC,), Ipv6.FIREWALL),
    ],
    ids=["v4", "v6"],
)
def test_a_promotion_over_a_slow_relay_loses_nothing_and_holds(
    a: tuple[Nat, ...], b: tuple[Nat, ...], ipv6: Ipv6
) -> None:
    """50 ms of delay each way to the relay: packets are under way through it when the endpoint changes."""
    with PathMesh(a, b, ipv6=ipv6) as mesh:
        assert {tunnel.kind for tunnel in mesh.tunnels.values()} == {"kernel"}
        mesh.internet.impair("relay", delay_ms=50)
        mesh.start_agents("a")
        wait_until(lambda: mesh.status("a"), "a's agent answers", SLOW_S)
        pings = Pings(mesh)
        mesh.start_agents("b")
        mesh.wait_path("direct", timeout_s=SLOW_S)
        begun = time.time()
        decided = {name: mesh.endpoint(name) for name in ("a", "b")}
        assert all(found is not None and found.address not in PROXY_NETWORK for found in decided.values())
        while time.time() < begun + 5.0:
            assert {name: mesh.endpoint(name) for name in ("a", "b")} == decided
            time.sleep(0.1)
        assert sum(mesh.late_packets(name) for name in ("a", "b")) > 0  # else nothing was put to the test
        result = pings.stop()
        first_number = min(number for number, _, _ in result.answers)
        assert [number for number in result.lost() if number > first_number] == []
        assert result.most_copies() <= 2


def test_a_cut_path_is_left_for_the_relay_and_taken_again_without_a_loss() -> None:
    with PathMesh((Nat.PORT_RESTRICTED,), (), ipv6=Ipv6.NONE) as mesh:
        up(mesh)
        mesh.wait_path("direct", timeout_s=SLOW_S)
        pings = Pings(mesh)
        wait_until(pings.first_at, "a ping is answered", SLOW_S)
        time.sleep(1.0)
        mesh.internet.cut("a", "b")
        mesh.wait_path("relay", timeout_s=SLOW_S)
        back_on_relay_at = time.time()
        wait_until(lambda: (pings.last_at() or 0.0) > back_on_relay_at, "the relay carries", SLOW_S)
        mesh.internet.mend("a", "b")
        back_at = time.time()
        mesh.wait_path("direct", timeout_s=SLOW_S)
        time.sleep(2.0)
        result = pings.stop()
        assert [at for at in result.lost_at() if at > back_at] == []


def test_a_new_address_of_one_end_is_followed() -> None:
    with PathMesh((), (), ipv6=Ipv6.NONE) as mesh:
        up(mesh)
        mesh.wait_path("direct", timeout_s=SLOW_S)
        address = mesh.internet.renumber("a")
        wait_until(
            lambda: mesh.endpoint("b") == Endpoint(address, PORTS["a"]) and mesh.path("b") == "direct",
            "b sends to the new address",
            SLOW_S,
        )
        pings = Pings(mesh)
        wait_until(pings.first_at, "a ping is answered", SLOW_S)
        time.sleep(2.0)
        assert pings.stop().lost() == []
