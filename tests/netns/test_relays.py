"""Two relays: a node has its home at one; when that dies it moves to the other, and back when it returns."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from relayd.config import RelayConfig
from relayd.demo.lab import Lab, Node
from relayd.demo.process import Process
from relayd.demo.stage import CONTROL_AGENT, INTERFACE, STATE_DIR, Theatre
from relayd.relay.credentials import join_string, load_credentials
from tests.helpers.netns import BACK_S, Pings, agent_status, is_connected, wait_until

PORTS = (3500, 3600)
DRAIN_S = 8
"""Time enough on a machine that is busy with other things."""


class TwoRelays:
    """The theatre with two relays on one host, which all agents name alike."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.theatre = lab, Theatre(lab)
        self.host = self.theatre.relay_host
        self.relays = {port: self.start(port) for port in PORTS}
        joins = [self._join(port) for port in PORTS]
        self.nodes = (self.theatre.a, self.theatre.b)
        for node in self.nodes:
            places = ["--interface", INTERFACE, "--state", STATE_DIR, "--control", CONTROL_AGENT]
            node.relayd("agent", "--relay", *joins, *places)
        for node in self.nodes:
            wait_until(lambda node=node: is_connected(node), f"the agent on {node.name} carries")  # type: ignore[misc]

    def start(self, port: int) -> Process:
        return self.host.relayd(
            *(
                "serve",
                "--listen",
                f"0.0.0.0:{port}",
                "--control",
                f"/run/relay-{port}.sock",
                "--http",
                "off",
            ),
            *("--state", self._state(port), "--drain-s", str(DRAIN_S)),
        )

    def _state(self, port: int) -> str:
        return f"/run/relay-{port}"

    def _join(self, port: int) -> str:
        config = RelayConfig(state_dir=str(self.host.path(self._state(port))), host="relay.invalid")
        wait_until(
            lambda: self.host.path(self._state(port)).joinpath("relay.token").exists(), "a relay's token"
        )
        join = join_string(config, load_credentials(config), port)
        return replace(join, host=str(self.host.addresses["a"])).format()

    def homes(self) -> dict[str, int]:
        """Node -> the port of its home relay."""
        return {node.name: home_of(node) for node in self.nodes}


def home_of(node: Node) -> int:
    (home,) = [one for one in relays_of(node) if one["home"]]
    return int(str(home["address"]).rpartition(":")[2])


def relays_of(node: Node) -> list[dict[str, Any]]:
    return list(agent_status(node)["relays"])


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> TwoRelays:
    return TwoRelays(lab)


def test_a_relay_that_dies_moves_its_nodes_and_its_return_moves_them_back(lab: Lab, mesh: TwoRelays) -> None:
    a, b = mesh.nodes
    before = mesh.homes()
    pings = Pings(lab, a, mesh.theatre.tunnel_b.address.ip)
    pings.wait_back()
    dying = before["b"]
    mesh.relays[dying].kill()
    mesh.relays[dying].wait()
    killed_at = time.time()
    pings.wait_silent()
    pings.wait_back(killed_at + 0.5)
    (other,) = [port for port in PORTS if port != dying]
    wait_until(lambda: set(mesh.homes().values()) == {other}, "both are at home at the relay that is left")
    lab.discard(mesh.relays[dying])
    mesh.relays[dying] = mesh.start(dying)
    wait_until(lambda: mesh.homes() == before, "both are back where they were", BACK_S)
    returned_at = time.time()
    time.sleep(3.0)
    timeline = pings.stop()
    # The way back costs nothing: the spare connections stay for those who still use them.
    assert [gap for gap in timeline.gaps() if gap.start_s > returned_at - pings.started_at] == []
    assert all(one["state"] == "connected" for one in relays_of(b))


def test_a_relay_that_drains_has_its_nodes_move_to_the_other_and_costs_no_frame(
    lab: Lab, mesh: TwoRelays
) -> None:
    """As a replica that is shut down: nobody takes its place at its address."""
    a, _ = mesh.nodes
    pings = Pings(lab, a, mesh.theatre.tunnel_b.address.ip)
    pings.wait_back()
    leaving = mesh.homes()["b"]
    (other,) = [port for port in PORTS if port != leaving]
    told_at = time.time()
    mesh.relays[leaving].terminate()
    wait_until(lambda: set(mesh.homes().values()) == {other}, "both are at home at the other")
    assert mesh.relays[leaving].wait(DRAIN_S + 5) == 0
    time.sleep(1.0)
    timeline = pings.stop()
    lost = [gap for gap in timeline.gaps() if gap.end_s is None or gap.end_s > told_at - pings.started_at]
    assert lost == []
