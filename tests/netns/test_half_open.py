"""The relay connection dies without a word: packets vanish, or the relay stands still."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from relayd.demo.lab import Lab
from relayd.demo.stage import CONTROL_AGENT
from relayd.endpoints import Endpoint
from tests.helpers.netns import (
    Mesh,
    agent_status,
    drop_packets,
    relay_status,
    status_of,
    wait_connected,
    wait_until,
)

LOOP_LAG_MS = 50.0
"""What the agent may keep its loop busy for in one go, whatever the relay does."""
ATTEMPTS = 3

FLOOD = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for _ in range(60):
            sock.sendto(bytes(1300), (sys.argv[1], 9))
        time.sleep(0.005)
"""
"""Some 12,000 datagrams a second to a port where nobody listens: 15 MB/s, for half a minute at most."""


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    return Mesh(lab, agent_config="echo_s = 1.0\ndial_timeout_s = 1.0")


@pytest.fixture
def drop(mesh: Mesh) -> Iterator[Callable[..., None]]:
    """drop(MATCH): the relay's host loses what matches, both ways, until drop() or the test's end."""
    yield partial(drop_packets, mesh.relay_host)
    drop_packets(mesh.relay_host)


def connections_of(mesh: Mesh, key: str) -> list[Endpoint]:
    """Where the connections that the relay has under a key come from."""
    peers = relay_status(mesh.relay_host)["peers"]
    return [Endpoint.parse(peer["address"]) for peer in peers if peer["key"] == key]


def test_a_silent_connection_is_noticed_and_its_successor_displaces_it(
    mesh: Mesh, drop: Callable[..., None]
) -> None:
    key = str(mesh.theatre.tunnel_a.public_key)
    pings = mesh.pings()
    pings.wait_back()
    (old,) = connections_of(mesh, key)
    dropped_at = time.time()
    # This one connection falls silent; a new one from another port is let through. The relay hears nothing
    # of the old one's end, and has no reason to doubt it but the newcomer.
    drop(f"tcp sport {old.port}")
    pings.wait_silent()
    pings.wait_back(dropped_at + 0.5)
    pings.stop()
    # What the old one may still have sent is read, for a while.
    wait_until(lambda: len(connections_of(mesh, key)) == 1, "the old connection is closed")
    assert connections_of(mesh, key) != [old]
    assert "agent.displaced" in mesh.relay.output()
    assert "pings unanswered" in mesh.agents["a"].output()


def test_a_cut_link_is_noticed_by_the_echo_and_traffic_returns_with_the_packets(
    mesh: Mesh, drop: Callable[..., None]
) -> None:
    wait_connected(mesh.a)
    pings = mesh.pings()
    pings.wait_back()
    drop(f"ip saddr {mesh.a.addresses['relay']}")
    lost = wait_until(
        lambda: (status := agent_status(mesh.a))["relay"]["state"] != "connected" and status,
        "the agent gives its connection up",
    )
    assert lost["peers"][0]["path"] == "none"
    assert lost["relay"]["reason"]
    flowing_at = time.time()
    drop()
    pings.wait_back(flowing_at)
    pings.stop()
    assert len(connections_of(mesh, str(mesh.theatre.tunnel_a.public_key))) == 1


def test_a_stopped_relay_does_not_hold_up_the_agents_loop(mesh: Mesh) -> None:
    # A machine that runs something else for 50 ms looks the same from inside the agent. A loop that waits for
    # its relay does so every time.
    lags_ms: list[float] = []
    while not lags_ms or (lags_ms[-1] >= LOOP_LAG_MS and len(lags_ms) < ATTEMPTS):
        mesh.agents["a"].terminate()
        mesh.agents["a"].wait(10)
        mesh.restart_agent(mesh.a)
        for node in (mesh.a, mesh.b):
            wait_connected(node)
        lags_ms.append(_loop_lag_ms_with_a_stopped_relay(mesh))
        pings = mesh.pings()
        pings.wait_back()
        pings.stop()
    assert lags_ms[-1] < LOOP_LAG_MS, lags_ms


def _loop_lag_ms_with_a_stopped_relay(mesh: Mesh) -> float:
    # Enough to fill the sockets and the agent's outbox while nobody reads.
    flood = mesh.a.start(sys.executable, "-c", FLOOD, str(mesh.theatre.tunnel_b.address.ip))
    try:
        before = wait_until(
            lambda: (status := agent_status(mesh.a))["peers"][0]["relay_tx_frames"] > 5000 and status,
            "the flood runs",
        )
        mesh.relay.send_signal(signal.SIGSTOP)
        lost = wait_until(
            lambda: (status := agent_status(mesh.a))["relay"]["state"] != "connected" and status,
            "the agent gives its connection up",
        )
        # What the relay did not read waited in the bounded outbox, which was full.
        assert "queue_full" not in before["drops"]
        assert lost["drops"]["queue_full"] > 0
        time.sleep(2.0)  # and its dials: accepted by the kernel, answered by nobody
        # It answered all along, and says itself how long its loop was ever busy.
        after = status_of(mesh.a, CONTROL_AGENT)
        assert after is not None
        return float(after["loop_lag_ms_max"])
    finally:
        mesh.relay.send_signal(signal.SIGCONT)
        mesh.lab.discard(flood)
