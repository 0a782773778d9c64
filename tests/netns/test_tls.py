"""TLS end to end: the relay makes its certificate, and the line that it prints is all that agents need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relayd.demo.lab import Lab, Node
from relayd.demo.process import Process
from relayd.demo.stage import CONTROL_AGENT, INTERFACE, STATE_DIR, Theatre
from relayd.errors import HostError
from relayd.join import JoinString
from relayd.relay.tls import CERTIFICATE, KEY
from tests.helpers.netns import Pings, agent_status, relay_status, shown_status, wait_connected, wait_until


class TlsMesh:
    """The theatre with a relay that speaks TLS, and agents that know what it printed."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.theatre = lab, Theatre(lab)
        self.nodes = (self.theatre.a, self.theatre.b)
        self.relay, self.join = self.start_relay()
        self.agents = {node.name: self.start_agent(node) for node in self.nodes}
        for node in self.nodes:
            wait_connected(node)

    def start_relay(self) -> tuple[Process, JoinString]:
        """The relay, and the line that it prints: it names the address by which node a reaches it."""
        host = str(self.theatre.relay_host.addresses["a"])
        relay = self.theatre.start_relay("--tls-self-signed", "--host", host)
        relay_status(self.theatre.relay_host)
        (line,) = [line for line in relay.output().splitlines() if line.startswith("relayd")]
        assert line.startswith(f"relayds://{host}:")
        assert "&pin=" in line
        return relay, JoinString.parse(line)

    def start_agent(self, node: Node) -> Process:
        join = replace(self.join, host=str(self.theatre.relay_host.addresses[node.name])).format()
        places = ["--interface", INTERFACE, "--state", STATE_DIR, "--control", CONTROL_AGENT]
        return node.relayd("agent", "--relay", join, *places)

    def pings(self) -> Pings:
        return Pings(self.lab, self.theatre.a, self.theatre.tunnel_b.address.ip)


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> TlsMesh:
    return TlsMesh(lab)


def test_a_tunnel_runs_over_tls_by_what_the_relay_printed(mesh: TlsMesh) -> None:
    pings = mesh.pings()
    pings.wait_back()
    pings.stop()
    # Data that fills records, both ways.
    ping = ["ping", "-n", "-c", "20", "-i", "0.01", "-W", "5", "-M", "do", "-s", "1392"]
    mesh.theatre.a.run(*ping, str(mesh.theatre.tunnel_b.address.ip))
    for node in mesh.nodes:
        assert agent_status(node)["relay"]["trust"] == "pinned"
    assert relay_status(mesh.theatre.relay_host)["connections"] == 2


def test_a_relay_with_another_certificate_is_refused_and_told_by_its_pin(mesh: TlsMesh) -> None:
    mesh.relay.kill()
    mesh.relay.wait()
    mesh.lab.discard(mesh.relay)
    for name in (KEY, CERTIFICATE):
        mesh.theatre.relay_host.path(f"{STATE_DIR}/{name}").unlink()
    before = mesh.join
    mesh.relay, now = mesh.start_relay()
    assert (now.key, now.token) == (before.key, before.token)
    assert now.pin != before.pin
    for node in mesh.nodes:
        reason = wait_until(
            lambda node=node: (  # type: ignore[misc]
                "pin" in (why := agent_status(node)["relay"]["reason"]) and why
            ),
            "the agent says that the pin doesn't fit",
        )
        assert str(reason).startswith("TLS: the relay's certificate has the key pin=")
        assert before.shown_pin in reason
        assert now.shown_pin in reason
        assert reason in mesh.agents[node.name].output()
        assert reason in shown_status(node)
    with pytest.raises(HostError):
        mesh.theatre.a.run("ping", "-n", "-c", "3", "-W", "0.5", str(mesh.theatre.tunnel_b.address.ip))
    assert relay_status(mesh.theatre.relay_host)["connections"] == 0
    # With the new line they are back.
    mesh.join = now
    for node in mesh.nodes:
        mesh.agents[node.name].terminate()
        mesh.agents[node.name].wait()
        mesh.agents[node.name] = mesh.start_agent(node)
    for node in mesh.nodes:
        wait_connected(node)
    pings = mesh.pings()
    pings.wait_back()
    pings.stop()
