"""Relay and agents are killed and stopped: the tunnel stays configured, and traffic comes back."""

from __future__ import annotations

import signal
import time

import pytest

from relayd.demo.lab import Lab
from tests.helpers.netns import Mesh, agent_status, wait_connected


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    return Mesh(lab)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_traffic_is_back_after_the_relay_is_restarted(mesh: Mesh, number: signal.Signals) -> None:
    before = mesh.endpoint_strings()
    pings = mesh.pings()
    pings.wait_back()
    mesh.relay.send_signal(number)
    assert mesh.relay.wait(10) == (0 if number is signal.SIGTERM else -number)
    pings.wait_silent()
    # Nothing was told to WireGuard, and nothing will be: its endpoints are as true as before.
    assert mesh.endpoint_strings() == before
    restarted_at = time.time()
    mesh.restart_relay()
    pings.wait_back(restarted_at)
    pings.stop()
    assert mesh.endpoint_strings() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_traffic_is_back_after_an_agent_is_restarted(mesh: Mesh, number: signal.Signals) -> None:
    before = mesh.endpoint_strings()
    pings = mesh.pings()
    pings.wait_back()
    agent = mesh.agents["a"]
    agent.send_signal(number)
    assert agent.wait(15) == (0 if number is signal.SIGTERM else -number)
    pings.wait_silent()
    assert mesh.endpoint_strings() == before
    restarted_at = time.time()
    mesh.restart_agent(mesh.a)
    pings.wait_back(restarted_at)
    pings.stop()
    # The same address for the same key as in its life before: nobody had to tell WireGuard anything.
    assert mesh.endpoint_strings() == before
    (peer,) = agent_status(mesh.a)["peers"]
    assert peer["endpoint"] == before[mesh.theatre.tunnel_b.public_key]


def test_both_agents_and_the_relay_killed_at_once_come_back(mesh: Mesh) -> None:
    before = mesh.endpoint_strings()
    pings = mesh.pings()
    pings.wait_back()
    for process in (mesh.relay, *mesh.agents.values()):
        process.kill()
        process.wait()
    mesh.restart_agent(mesh.b)
    mesh.restart_agent(mesh.a)  # they come first: the relay is not there yet
    restarted_at = time.time()
    mesh.restart_relay()
    pings.wait_back(restarted_at)
    pings.stop()
    assert mesh.endpoint_strings() == before


def test_g13_one_fault_is_one_dial(mesh: Mesh) -> None:
    wait_connected(mesh.b)
    dials = agent_status(mesh.b)["relay"]["dials"]
    # The connection is reset under both, with the relay up: what is dialled next succeeds.
    mesh.relay_host.run("ss", "--kill", "state", "established", "dst", str(mesh.b.addresses["relay"]))
    deadline = time.monotonic() + 20
    while agent_status(mesh.b)["relay"]["dials"] == dials:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    wait_connected(mesh.b)
    assert agent_status(mesh.b)["relay"]["dials"] == dials + 1
