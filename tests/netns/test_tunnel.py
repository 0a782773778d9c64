"""Two nodes that can't reach each other, WireGuard without endpoints, a relay, two agents: a tunnel."""

from __future__ import annotations

import json
import sys
import time

import pytest

from relayd.demo.lab import Lab
from relayd.demo.stage import CONTROL_AGENT, CONTROL_RELAY
from relayd.demo.traffic import iperf_client_argv, iperf_server_argv, parse_iperf_line
from relayd.marks import PROXY_NETWORK, PROXY_PORT
from tests.helpers.netns import Mesh, agent_status, relay_status


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    return Mesh(lab)


def test_nothing_but_the_relay_leads_from_one_node_to_the_other(mesh: Mesh) -> None:
    assert not mesh.theatre.can_reach_directly()


def test_pings_pass_through_the_relay(mesh: Mesh) -> None:
    before = relay_status(mesh.relay_host)
    pings = mesh.pings()
    pings.wait_back()
    began = time.time()
    pings.wait_back(began)
    timeline = pings.stop()
    after = relay_status(mesh.relay_host)
    answered = sum(second.answered for second in timeline.seconds())
    assert answered >= 10
    # each answered ping went through it there and back
    assert after["frames_out"] - before["frames_out"] >= 2 * answered
    assert after["connections"] == 2


def test_wireguards_endpoints_are_loopback_addresses_of_the_proxy(mesh: Mesh) -> None:
    tunnel_a, tunnel_b = mesh.theatre.tunnel_a, mesh.theatre.tunnel_b
    for tunnel, peer in ((tunnel_a, tunnel_b), (tunnel_b, tunnel_a)):
        endpoints = tunnel.endpoints()
        assert set(endpoints) == {peer.public_key}
        endpoint = endpoints[peer.public_key]
        assert endpoint is not None
        assert endpoint.address in PROXY_NETWORK
        assert endpoint.port == PROXY_PORT


def test_iperf3_carries_data_through_the_tunnel(mesh: Mesh) -> None:
    to = mesh.theatre.tunnel_b.address.ip
    server = mesh.b.start(*iperf_server_argv(to))
    server.wait_for_output("listening", 10)
    said = mesh.a.run(*iperf_client_argv(to, seconds=2), timeout_s=20)
    server.wait(10)
    rates = [rate for line in said.splitlines() if (rate := parse_iperf_line(line))]
    (received,) = [rate for rate in rates if rate.summary == "receiver"]
    assert received.megabits_per_s > 1
    assert received.end_s >= 2


def test_large_pings_pass_in_both_directions(mesh: Mesh) -> None:
    for node, to in ((mesh.a, mesh.theatre.tunnel_b), (mesh.b, mesh.theatre.tunnel_a)):
        # 1392 bytes and headers of 28 are the tunnel's MTU of 1420: nothing of it may need fragments
        ping = ["ping", "-n", "-c", "5", "-i", "0.05", "-W", "5", "-M", "do", "-s", "1392"]
        node.run(*ping, str(to.address.ip))


def test_the_status_tells_of_both_peers_and_their_path(mesh: Mesh) -> None:
    mesh.a.run("ping", "-n", "-c", "1", "-W", "5", str(mesh.theatre.tunnel_b.address.ip))
    for node, own, other in (
        (mesh.a, mesh.theatre.tunnel_a, mesh.theatre.tunnel_b),
        (mesh.b, mesh.theatre.tunnel_b, mesh.theatre.tunnel_a),
    ):
        status = agent_status(node)
        assert status["role"] == "agent"
        assert status["interface"] == own.name
        assert status["public_key"] == str(own.public_key)
        assert status["listen_port"] == own.port
        assert status["relay"]["state"] == "connected"
        assert status["relay"]["round_trip_ms"] > 0
        (peer,) = status["peers"]
        assert peer["key"] == str(other.public_key)
        assert peer["path"] == "relay"
        assert peer["endpoint"] == str(own.endpoints()[other.public_key])
        assert peer["handshake_age_s"] is not None
        for count in ("rx_bytes", "tx_bytes", "relay_rx_frames", "relay_tx_frames"):
            assert peer[count] > 0, count
    keys = {peer["key"] for peer in relay_status(mesh.relay_host)["peers"]}
    assert keys == {str(tunnel.public_key) for tunnel in (mesh.theatre.tunnel_a, mesh.theatre.tunnel_b)}


def test_relayd_status_answers_for_relay_and_agent(mesh: Mesh) -> None:
    for node, path, role in ((mesh.a, CONTROL_AGENT, "agent"), (mesh.relay_host, CONTROL_RELAY, "relay")):
        command = [sys.executable, "-m", "relayd", "status", "--control", path]
        document = json.loads(node.run(*command, "--json", timeout_s=30))
        assert document["role"] == role
        assert document["uptime_s"] > 0
        text = node.run(*command, timeout_s=30)
        assert role in text
        assert mesh.theatre.tunnel_b.public_key.short() in text


def test_the_control_socket_is_roots_alone(mesh: Mesh) -> None:
    for node, path in ((mesh.a, CONTROL_AGENT), (mesh.relay_host, CONTROL_RELAY)):
        assert node.path(path).stat().st_mode & 0o777 == 0o600
