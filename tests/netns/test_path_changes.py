"""A ping every 10 ms through everything that can happen to a path: promotion, cuts, returns, a new
address."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from relayd.endpoints import Endpoint
from relayd.marks import PROXY_NETWORK
from tests.helpers.natlab import Ipv6, Nat
from tests.helpers.netns import wait_until
from tests.helpers.one_way import OneWay
from tests.helpers.path_mesh import PING_S, PORTS, TUNNEL, PathMesh, Pings

BACK_ON_RELAY_S = 4.0
MOVED_S = 3.0
RETURN_S = 60.0
"""For a path that is back: the wait after its failure is 5 s, and rounds of checks get rarer."""

TROUBLE_S = 10.0

NATS = ((Nat.PORT_RESTRICTED,), (Nat.FULL_CONE,))


@pytest.fixture
def mesh() -> Iterator[PathMesh]:
    with PathMesh(*NATS, ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents()
        mesh.wait_up()
        mesh.wait_path("direct")
        yield mesh


def test_a_cut_path_is_left_within_4_s_and_taken_again_without_a_loss(mesh: PathMesh) -> None:
    pings = Pings(mesh)
    time.sleep(2.0)
    mesh.internet.cut("a", "b")
    cut_at = time.time()
    mesh.wait_path("relay")
    wait_until(lambda: (pings.last_at() or 0.0) > cut_at + 1.0, "pings are answered by the relay")
    time.sleep(1.0)
    mesh.internet.mend("a", "b")
    back_at = time.time()
    mesh.wait_path("direct", timeout_s=RETURN_S)
    time.sleep(2.0)
    result = pings.stop()
    ((began_at, silent_s),) = result.silences()  # one, and no other
    assert began_at - cut_at < 0.5
    assert silent_s < BACK_ON_RELAY_S
    assert not [at for at in result.lost_at() if at > back_at]
    assert result.most_copies() <= 2


def test_a_path_that_dies_one_way_is_left_by_both_ends(mesh: PathMesh) -> None:
    pings = Pings(mesh)
    time.sleep(2.0)
    mesh.internet.cut("a", "b", both=False)
    cut_at = time.time()
    mesh.wait_path("relay")
    wait_until(lambda: (pings.last_at() or 0.0) > cut_at + 1.0, "pings are answered by the relay")
    result = pings.stop()
    assert max(silent_s for _, silent_s in result.silences()) < BACK_ON_RELAY_S


def test_traffic_in_one_direction_alone_goes_on_by_the_relay_within_4_s_of_a_cut(mesh: PathMesh) -> None:
    """Nothing comes back in the tunnel whose absence could tell; WireGuard is silent for 10 s at a time."""
    with OneWay(mesh.nodes["a"], mesh.nodes["b"], TUNNEL["b"].ip) as traffic:
        time.sleep(2.0)
        mesh.internet.cut("a", "b")
        cut_at = time.time()
        mesh.wait_path("relay")
        wait_until(lambda: traffic.arrived[-1][1] > cut_at + 1.0, "it arrives by the relay")
        time.sleep(1.0)
        mesh.internet.mend("a", "b")
        back_at = time.time()
        mesh.wait_path("direct", timeout_s=RETURN_S)
        time.sleep(1.0)
    ((began_at, silent_s),) = traffic.silences()
    assert began_at - cut_at < 0.5
    assert silent_s < BACK_ON_RELAY_S
    assert traffic.lost(back_at) == []


def test_g19_a_third_of_all_packets_lost_moves_no_path(mesh: PathMesh) -> None:
    """What five minutes of it come to is for tests/simulation, which has delay and duplication too: these
    want netem, which not every kernel has."""
    pings = Pings(mesh), Pings(mesh, "b")
    before = changes(mesh)
    trouble = {"delay_ms": 100.0, "duplicate_percent": 30.0} if mesh.internet.netem() else {}
    mesh.internet.impair("b", loss_percent=30.0, **trouble)
    time.sleep(TROUBLE_S)
    mesh.internet.impair("b")
    assert all(after - was <= 2 for was, after in zip(before, changes(mesh), strict=True))
    answered = [len(one.stop().answers) for one in pings]
    assert min(answered) > 0.2 * TROUBLE_S / PING_S  # half of the round trips get through


def changes(mesh: PathMesh) -> list[int]:
    """How often each end has changed its path."""
    found = [mesh.status(name) for name in ("a", "b")]
    return [one["paths"]["changes"] for one in found if one is not None]


def test_the_endpoint_in_wireguard_is_the_one_that_was_decided_on(mesh: PathMesh) -> None:
    """G20, at 10 Hz, with traffic both ways: not even for a moment another one."""
    pings = Pings(mesh), Pings(mesh, "b")
    decided = {name: mesh.endpoint(name) for name in ("a", "b")}
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        assert {name: mesh.endpoint(name) for name in ("a", "b")} == decided
        time.sleep(0.1)
    assert all(one.stop().lost() == [] for one in pings)
    assert all(found is not None and found.address not in PROXY_NETWORK for found in decided.values())


def test_a_new_address_of_one_end_is_direct_again_in_under_3_s() -> None:
    with PathMesh((), (), ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents()
        mesh.wait_up()
        mesh.wait_path("direct")
        pings = Pings(mesh)
        time.sleep(2.0)
        address = mesh.internet.renumber("a")
        moved_at = time.time()
        wait_until(
            lambda: mesh.endpoint("b") == Endpoint(address, PORTS["a"]) and mesh.path("b") == "direct",
            "b sends to the new address",
        )
        assert time.time() - moved_at < MOVED_S
        time.sleep(4.0)
        result = pings.stop()
        late = [(at, silent_s) for at, silent_s in result.silences() if at + silent_s > moved_at + MOVED_S]
        assert not late
        assert (mesh.path("a"), mesh.path("b")) == ("direct", "direct")


def test_an_agent_that_is_killed_takes_nothing_of_a_direct_path_along(mesh: PathMesh) -> None:
    before = {name: mesh.endpoint(name) for name in ("a", "b")}
    pings = Pings(mesh)
    time.sleep(1.0)
    mesh.agents["a"].kill()
    mesh.agents["a"].wait()
    time.sleep(6.0)
    assert mesh.path("b") == "direct"
    mesh.start_agents("a")
    mesh.wait_up()
    mesh.wait_path("direct")
    time.sleep(4.0)
    assert mesh.path("a") == mesh.path("b") == "direct"
    assert {name: mesh.endpoint(name) for name in ("a", "b")} == before
    assert pings.stop().lost() == []


def test_turned_off_nothing_is_looked_for() -> None:
    with PathMesh((), (), agent="direct_paths = false", ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents()
        mesh.wait_up()
        pings = Pings(mesh)
        wait_until(pings.first_at, "a ping is answered")
        time.sleep(3.0)
        assert pings.stop().lost() == []
        assert (mesh.path("a"), mesh.path("b")) == ("relay", "relay")


def test_with_one_end_that_does_not_look_the_other_leaves_its_endpoint_alone() -> None:
    with PathMesh((), (), ipv6=Ipv6.NONE) as mesh:
        mesh.write_config("b", "direct_paths = false")
        mesh.start_agents()
        mesh.wait_up()
        pings = Pings(mesh)
        wait_until(pings.first_at, "a ping is answered")
        time.sleep(5.0)
        assert pings.stop().lost() == []
        assert (mesh.path("a"), mesh.path("b")) == ("relay", "relay")


def test_a_peer_without_relayd_keeps_its_endpoint_also_through_a_cut() -> None:
    with PathMesh((), (), ipv6=Ipv6.NONE) as mesh:
        for here, there in (("a", "b"), ("b", "a")):
            endpoint = Endpoint(mesh.internet.address(there), PORTS[there])
            key = str(mesh.tunnels[there].public_key)
            mesh.tunnels[here].wg("set", mesh.tunnels[here].name, "peer", key, "endpoint", str(endpoint))
        before = {name: mesh.endpoint(name) for name in ("a", "b")}
        mesh.start_agents("a")
        wait_until(lambda: mesh.path("a") == "direct", "a's agent has looked")
        pings = Pings(mesh)
        time.sleep(3.0)
        mesh.internet.cut("a", "b")
        time.sleep(5.0)  # a peer with an agent would be on the relay by now
        assert {name: mesh.endpoint(name) for name in ("a", "b")} == before
        mesh.internet.mend("a", "b")
        mended_at = time.time()
        time.sleep(3.0)
        assert {name: mesh.endpoint(name) for name in ("a", "b")} == before
        result = pings.stop()
        assert not [at for at in result.lost_at() if at > mended_at]
        status = mesh.status("a")
        assert status is not None
        assert status["paths"]["state"] == "left alone"
