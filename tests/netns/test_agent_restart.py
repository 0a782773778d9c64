"""Restarts of an agent that its peers don't notice: real processes, and a manager that keeps its sockets."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from relayd.agent.relay_choice import order
from relayd.demo.lab import RELAYD, Lab
from relayd.demo.stage import CONTROL_AGENT, INTERFACE, STATE_DIR
from relayd.demo.traffic import Answer, parse_ping_line
from relayd.join import JoinString
from relayd.keys import PublicKey
from tests.helpers.fake_manager import FakeManager
from tests.helpers.netns import Mesh, agent_status, is_connected, wait_until

EVERY_S = 0.02


@pytest.fixture(scope="module")
def mesh(lab: Lab) -> Mesh:
    return Mesh(lab)


@pytest.fixture
def agent(mesh: Mesh, tmp_path: Path) -> Iterator[FakeManager]:
    """The agent on node a, as a service."""
    old = mesh.agents["a"]
    old.kill()
    old.wait()
    relay = replace(mesh.theatre.join, host=str(mesh.relay_host.addresses["a"])).format()
    argv = mesh.a.argv(
        *RELAYD, "agent", "--relay", relay, "--interface", INTERFACE, "--state", STATE_DIR,
        "--control", CONTROL_AGENT, "--http", "off",
    )  # fmt: skip
    with FakeManager(argv, tmp_path) as manager:
        manager.start()
        wait_until(lambda: is_connected(mesh.a), "the agent is connected")
        # Ledger, socket on lo, connection.
        manager.store.wait(lambda: len(manager.store.kept) == 3, "all is kept")
        yield manager
        manager.stop(signal.SIGKILL)
    mesh.restart_agent(mesh.a)


class Ping:
    """One that counts what never came back."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        to = str(mesh.theatre.tunnel_b.address.ip)
        self._process = mesh.a.start("ping", "-n", "-D", "-i", str(EVERY_S), to)
        wait_until(self.answered, "the first answer")

    def answered(self) -> list[Answer]:
        lines = map(parse_ping_line, self._process.output().splitlines())
        return [one for one in lines if isinstance(one, Answer)]

    def stop(self) -> list[int]:
        """-> the numbers of those that were lost"""
        time.sleep(1)
        self._process.kill()
        self._process.wait()
        got = {one.seq for one in self.answered()}
        self._mesh.lab.discard(self._process)
        return [number for number in range(1, max(got)) if number not in got]


def test_g11_a_relayed_peer_loses_nothing_over_restarts(mesh: Mesh, agent: FakeManager) -> None:
    before = mesh.endpoint_strings()
    ping = Ping(mesh)
    dials = agent_status(mesh.a)["relay"]["dials"]
    for _ in range(3):
        time.sleep(0.3)
        assert agent.restart(signal.SIGTERM) == 0
    lost = ping.stop()
    assert len(lost) <= 1, (lost, agent.output())
    assert agent.output().count("link.resumed") == 3
    assert agent.output().count("link.connected") == dials
    assert mesh.endpoint_strings() == before


def test_g11_after_a_kill_the_connection_goes_on_too(mesh: Mesh, agent: FakeManager) -> None:
    ping = Ping(mesh)
    time.sleep(0.3)
    assert agent.restart(signal.SIGKILL) == -signal.SIGKILL
    back_at = time.time()
    wait_until(lambda: any(one.sent_at > back_at for one in ping.answered()), "pings are answered")
    lost = ping.stop()
    # What was on its way through the process at that moment is gone, and nothing else.
    assert len(lost) <= 3, (lost, agent.output())
    assert '"after": "kill"' in agent.output()


def test_a_connection_to_another_relay_or_of_another_key_is_closed(mesh: Mesh, agent: FakeManager) -> None:
    agent.stop(signal.SIGTERM)
    argv = agent.argv
    try:
        at = argv.index("--relay") + 1
        agent.argv = [*argv[:at], argv[at].replace("3478", "3479"), *argv[at + 1 :]]
        agent.start()
        wait_until(lambda: agent_status(mesh.a)["relay"]["reason"], "nobody listens there")
        agent.store.wait(lambda: len(agent.store.kept) == 2, "it is closed")
        assert "link.resumed" not in agent.output()
    finally:
        agent.argv = argv
    agent.restart(signal.SIGTERM)
    wait_until(lambda: is_connected(mesh.a), "the agent is connected")


def test_g11_connections_to_two_relays_go_on(mesh: Mesh, agent: FakeManager) -> None:
    """The node is at home at one, and reaches its peer, which knows the other alone, by that."""
    at = agent.argv.index("--relay") + 1
    first = JoinString.parse(agent.argv[at])
    own_key = PublicKey.from_base64(agent_status(mesh.a)["public_key"])
    candidates = (replace(first, port=port) for port in range(3500, 60_000, 2))
    second = next(one for one in candidates if order(own_key, (first.address, one.address))[0] == one.address)
    places = ("--listen", f"0.0.0.0:{second.port}", "--control", "/run/second.sock", "--http", "off")
    # The same key and token as the first one's: what a join string has but for the address.
    other = mesh.relay_host.relayd("serve", *places, "--state", STATE_DIR, "--stun-port", "off")
    agent.stop(signal.SIGTERM)
    agent.argv.insert(at + 1, second.format())
    agent.start()
    agent.store.wait(lambda: len(agent.store.kept) == 4, "ledger, socket on lo, two connections", within_s=60)
    ping = Ping(mesh)
    for quiet in (False, True):
        if quiet:  # then nothing is sent that would ask for the second connection
            lost = ping.stop()
            assert len(lost) <= 1, (lost, agent.output())
        resumed, dialled = (agent.output().count(event) for event in ("link.resumed", "link.connected"))
        assert agent.restart(signal.SIGTERM) == 0
        wait_until(partial(said, agent, "link.resumed", resumed + 2), "both go on")
        time.sleep(1.0)
        assert agent.output().count("link.connected") == dialled
    other.kill()
    other.wait()
    mesh.lab.discard(other)


def said(agent: FakeManager, event: str, times: int) -> bool:
    return agent.output().count(event) == times
