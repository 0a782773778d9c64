"""A relay that is to end lets its agents move first, and another one takes them in: nothing is lost."""

from __future__ import annotations

import signal

from relayd.demo.lab import Lab
from relayd.demo.stage import STATE_DIR
from relayd.marks import RELAY_PORT
from tests.helpers.netns import Mesh, agent_status, relay_status, status_of, wait_until

DRAIN_S = 8
"""The next relay's interpreter starts in it, on a machine that is busy with other things."""
NEXT_PORT = 3500
SERVICE = f"""
add table ip service
add chain ip service in {{ type nat hook prerouting priority -100; }}
add rule ip service in tcp dport {RELAY_PORT} tcp flags & (syn | ack) == syn redirect to :{NEXT_PORT}
"""
"""For new connections alone: to connection tracking, which begins with this, the old ones are new too."""
NEXT = "/run/relayd/next-relay.sock"


def dials(mesh: Mesh) -> list[int]:
    """How often each agent has dialled its relay so far."""
    return [agent_status(node)["relay"]["dials"] for node in (mesh.a, mesh.b)]


def test_a_drained_and_replaced_relay_costs_no_frame(lab: Lab) -> None:
    mesh = Mesh(lab, relay_flags=("--drain-s", str(DRAIN_S)))
    # The tunnel first: a handshake that came before the other agent was there is repeated after 5 s.
    tunnel = mesh.pings()
    tunnel.wait_back()
    tunnel.stop()
    pings = mesh.pings()
    pings.wait_back()
    before = dials(mesh)
    mesh.relay.send_signal(signal.SIGTERM)
    wait_until(lambda: "relay.draining" in mesh.relay.output(), "the relay says that it drains")
    assert relay_status(mesh.relay_host)["draining"] is True
    # As a Service of Kubernetes does: who connects from now on gets the next one, who is connected stays.
    mesh.relay_host.run("nft", "-f", "-", stdin=SERVICE)
    following = mesh.relay_host.relayd(
        *(
            "serve",
            "--listen",
            f"0.0.0.0:{NEXT_PORT}",
            "--control",
            NEXT,
            "--http",
            "off",
            "--state",
            STATE_DIR,
        )
    )
    assert mesh.relay.wait(DRAIN_S + 5) == 0
    status = wait_until(lambda: status_of(mesh.relay_host, NEXT), "the next relay answers")
    assert status["connections"] == 2
    carried = wait_until(
        lambda: (now := agent_status(mesh.a))["peers"][0]["relay_rx_frames"] > 20 and now, "pings go on"
    )
    assert carried["relay"]["state"] == "connected"
    timeline = pings.stop()
    assert timeline.gaps() == []
    assert all(after > then for after, then in zip(dials(mesh), before, strict=True))
    assert "relay.drains" in mesh.agents["a"].output()
    lab.discard(following)
