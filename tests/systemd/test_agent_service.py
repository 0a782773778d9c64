"""relayd-agent@wg0.service under systemd: restarted and killed under a ping through the relay."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.agents import Agents
from tests.systemd.host import Host
from tests.systemd.tunnel import AGENT, Ping, Tunnel, relayed_tunnel


@pytest.fixture(scope="module")
def tunnel(host: Host, agents: Agents, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """The relay and an agent as services, another agent as a process in a namespace."""
    with relayed_tunnel(host, agents, tmp_path_factory.mktemp("agent")) as tunnel:
        yield tunnel


@pytest.fixture
def running(tunnel: Tunnel) -> Host:
    return tunnel.host


def test_it_has_two_rights_and_no_others(running: Host) -> None:
    status = Path(f"/proc/{running.main_pid(AGENT)}/status").read_text()
    effective = re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)
    assert effective is not None
    assert int(effective[1], 16) == 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW: linux/capability.h


def test_g11_restarts_lose_at_most_one_packet_of_a_relayed_ping(tunnel: Tunnel, tmp_path: Path) -> None:
    running = tunnel.host
    before, endpoint, resumed = tunnel.shown(), tunnel.endpoint(), tunnel.resumed()
    ping = Ping(tmp_path / "ping")
    for _ in range(2):
        time.sleep(1)
        running.systemctl("restart", AGENT)
        ping.more(3)
    lost, longest_s = ping.stop()
    print(f"2 restarts: {len(lost)} lost, longest round trip {longest_s:.1f} s")
    assert len(lost) <= 1, (lost, running.journal(AGENT))
    assert (tunnel.shown(), tunnel.endpoint()) == (before, endpoint)
    assert tunnel.resumed() == resumed + 2


def test_after_a_kill_the_relayed_ping_goes_on(running: Host, tmp_path: Path) -> None:
    ping = Ping(tmp_path / "ping")
    time.sleep(1)
    running.killed(AGENT)
    ping.more(10)
    lost, longest_s = ping.stop()
    print(f"killed: {len(lost)} lost, longest round trip {longest_s:.1f} s")
    assert len(lost) <= 3, (lost, running.journal(AGENT))
