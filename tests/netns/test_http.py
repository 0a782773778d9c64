"""HTTP of real processes: each role has its own, two on one host get on, and figures tell of the traffic."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relayd.demo.lab import Lab, Node
from relayd.demo.stage import CONTROL_RELAY
from relayd.errors import HostError
from tests.helpers.netns import Mesh, status_of, wait_until
from tests.helpers.promtool import promtool

FETCH = """
import sys, urllib.request, urllib.error
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=10)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status)
sys.stdout.write(answer.read().decode())
"""


def get(node: Node, path: str, address: str = "127.0.0.1:9478") -> tuple[int, str]:
    """What an HTTP client on the node gets. -> status, body. Raises HostError when nobody answers."""
    status, _, body = node.run(sys.executable, "-c", FETCH, f"http://{address}{path}").partition("\n")
    return int(status), body


def samples(node: Node) -> dict[str, float]:
    """The metrics of the process there, labels left out (the last value counts)."""
    status, text = get(node, "/metrics")
    assert status == 200
    assert promtool("check", "metrics", stdin=text)[0] in (0, 3)  # 3: names that are WireKube's
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    made = Mesh(lab)
    pings = made.pings()
    pings.wait_back()
    pings.stop()
    return made


def test_metrics_tell_of_the_traffic(mesh: Mesh) -> None:
    relay, agent = samples(mesh.relay_host), samples(mesh.a)
    assert relay["relayd_connections"] == 2
    assert relay["relayd_received_frames_total"] > 0
    assert relay["relayd_ready"] == agent["relayd_ready"] == 1
    assert agent["wirekube_relayed_peers_total"] == 1
    assert agent["relayd_peer_relay_sent_frames_total"] > 0
    assert agent["relayd_link_round_trip_seconds"] > 0


def test_metrics_tell_how_far_a_peer_is(mesh: Mesh) -> None:
    """The two agents ping each other, through the relay here."""
    wait_until(lambda: samples(mesh.a).get("wirekube_peer_latency_seconds"), "a round trip was measured")
    assert samples(mesh.a)["wirekube_peer_ice_state"] in (0, 1, 2, 5)


def test_health_status_and_page_are_there_on_both(mesh: Mesh) -> None:
    for node, role in ((mesh.relay_host, "relay"), (mesh.a, "agent")):
        assert get(node, "/healthz") == (200, "ok\n")
        assert get(node, "/readyz") == (200, "ok\n")
        status: dict[str, Any] = json.loads(get(node, "/status")[1])
        assert (status["role"], status["http"]) == (role, "127.0.0.1:9478")
        assert "<title>relayd</title>" in get(node, "/")[1]


def test_a_relay_beside_an_agent_takes_the_next_port(mesh: Mesh) -> None:
    second = mesh.a.relayd("serve", "--listen", "127.0.0.1:0", "--open", "--state", "/run/second")
    try:
        status = wait_until(lambda: status_of(mesh.a, CONTROL_RELAY), "the relay on a answers")
        assert status["http"] == "127.0.0.1:9479"
        assert json.loads(get(mesh.a, "/status")[1])["role"] == "agent"
        assert json.loads(get(mesh.a, "/status", "127.0.0.1:9479")[1])["role"] == "relay"
    finally:
        second.kill()
        second.wait()
        mesh.lab.discard(second)


def test_it_is_not_to_be_had_from_elsewhere(mesh: Mesh) -> None:
    with pytest.raises(HostError):
        get(mesh.a, "/status", f"{mesh.a.addresses['relay']}:9478")


def test_an_agent_whose_peers_lost_their_relay_is_not_ready(mesh: Mesh) -> None:
    """Last: the relay ends here."""
    mesh.relay.kill()
    mesh.relay.wait()
    _, body = wait_until(
        lambda: answer if (answer := get(mesh.a, "/readyz"))[0] == 503 else None, "/readyz says so"
    )
    assert "no way to 1 peer: " in body
    assert samples(mesh.a)["relayd_unreachable_peers"] == 1
