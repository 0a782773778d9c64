"""Peers with an endpoint of their own: a live one is nobody's business, a dead one goes to the relay."""

from __future__ import annotations

from functools import partial

import pytest

from relayd.demo.lab import Lab, Node
from relayd.demo.tunnel import Tunnel
from relayd.marks import PROXY_NETWORK
from tests.helpers.netns import BACK_S, DIRECT_NETWORK, Mesh, agent_status, drop_packets, wait_until

FRESH_S = 2.0
"""Instead of three minutes: a session without a new handshake for so long is as good as dead here."""


def takes(path: str, node: Node) -> bool:
    """Whether the node's agent sees its one peer on that path."""
    return bool(agent_status(node)["peers"][0]["path"] == path)


def is_relayed(tunnel: Tunnel) -> bool:
    """Whether WireGuard has the proxy as its peer's endpoint."""
    return all(found is not None and found.address in PROXY_NETWORK for found in tunnel.endpoints().values())


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    return Mesh(lab, direct=True)


def test_a_live_direct_endpoint_is_left_alone(mesh: Mesh) -> None:
    before = mesh.endpoint_strings()
    pings = mesh.pings()
    pings.wait_back()
    for node in (mesh.a, mesh.b):
        wait_until(partial(takes, "direct", node), f"the agent on {node.name} sees it")
    pings.wait_back()
    pings.stop()
    assert mesh.endpoint_strings() == before
    assert all(endpoint.startswith("203.0.113.") for endpoint in before.values())
    assert agent_status(mesh.a)["peers"][0]["relay_tx_frames"] == 0


def test_a_direct_tunnel_does_not_notice_the_agents_death(mesh: Mesh) -> None:
    before = mesh.endpoint_strings()
    pings = mesh.pings()
    pings.wait_back()
    for name in ("a", "b"):
        mesh.agents[name].kill()
        mesh.agents[name].wait()
    pings.wait_back()
    mesh.relay.kill()
    mesh.relay.wait()
    pings.wait_back()
    for node in (mesh.a, mesh.b):
        mesh.restart_agent(node)
    mesh.restart_relay()
    for node in (mesh.a, mesh.b):
        agent_status(node)
    pings.wait_back()
    timeline = pings.stop()
    assert timeline.gaps() == []
    assert mesh.endpoint_strings() == before


@pytest.mark.usefixtures("lab")  # skips where none can be made
def test_a_dead_direct_endpoint_is_replaced_by_the_relay() -> None:
    with Lab() as own:
        short = Mesh(own, direct=True, agent_config=f"direct_paths = false\nfresh_handshake_s = {FRESH_S}")
        pings = short.pings()
        pings.wait_back()
        drop_packets(short.a, f"ip saddr {DIRECT_NETWORK}")
        pings.wait_silent()
        for tunnel in (short.theatre.tunnel_a, short.theatre.tunnel_b):
            wait_until(partial(is_relayed, tunnel), f"{tunnel.node.name} is pointed at the relay", BACK_S)
        pings.wait_back()
        pings.stop()
        for node in (short.a, short.b):
            # Where the other was faster, WireGuard roamed before its own agent told it to.
            wait_until(partial(takes, "relay", node), f"the agent on {node.name} sees it")
        reasons = {agent_status(node)["peers"][0]["reason"] for node in (short.a, short.b)}
        assert f"no handshake for {FRESH_S:g} s" in reasons
        assert reasons <= {f"no handshake for {FRESH_S:g} s", "roamed"}
