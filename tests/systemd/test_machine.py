"""Relay and agent as services on a whole machine: its own kernel, its WireGuard, systemd as process 1.

A story, in this order: each test goes on where the one before it stopped. Under emulation a service takes
seconds to start, so each thing is done once, with few agents; what numbers and times show is shown in
namespaces, at full speed (test_relay_service, test_agent_service).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.marks import RELAY_PORT
from relayd.secret_file import RELAY_TOKEN
from tests.helpers.frame_traffic import Traffic
from tests.kernel.agents import Agents
from tests.systemd.host import START_S, STATE, Host, sh, soon
from tests.systemd.tunnel import AGENT, FAR_ENDPOINT, OPEN, QUICK, RELAY, Ping, Tunnel, relayed_tunnel

pytestmark = pytest.mark.machine

AGENTS = 6
"""Beside the two of the tunnel."""

LEDGER = 1
"""In the relay's store, beside the connections."""


@pytest.fixture(scope="module")
def tunnel(host: Host, agents: Agents, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with relayed_tunnel(host, agents, tmp_path_factory.mktemp("tunnel")) as tunnel:
        yield tunnel


def traffic(*, torn: bool = False) -> Traffic:
    """Frames of 200 bytes, thirty a second in all; `torn`: six, each in two parts a second apart."""
    token = (STATE / RELAY_TOKEN).read_text().strip()
    every_s = 1.0 if torn else 0.2
    return Traffic(("127.0.0.1", RELAY_PORT), token, count=AGENTS, every_s=every_s, torn=torn)


def wait_kept(host: Host) -> None:
    """Until the manager has the connections of all, and the ledger."""
    soon(lambda: host.kept(RELAY[1]) == AGENTS + 2 + LEDGER, "all connections are kept")


def test_units_are_ready_and_what_wg_quick_made_is_adopted_as_it_is(tunnel: Tunnel) -> None:
    host = tunnel.host
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    for unit in (RELAY[1], AGENT):
        assert host.show(unit, "Type").startswith("notify")
        assert (host.show(unit, "ActiveState"), host.show(unit, "SubState")) == ("active", "running")
        assert host.show(unit, "NRestarts") == "0"
    assert host.show(QUICK, "ActiveState") == "active"
    assert tunnel.endpoint().startswith("127.")
    assert tunnel.shown() == tunnel.made
    this_start = f"_SYSTEMD_INVOCATION_ID={host.show(AGENT, 'InvocationID')}"  # others' tests started it, too
    assert len(host.events(this_start, "RELAYD_EVENT=agent.started")) == 1


def test_g11_a_restart_of_the_agent_loses_at_most_one_packet_of_a_relayed_ping(
    tunnel: Tunnel, tmp_path: Path
) -> None:
    host, endpoint, resumed = tunnel.host, tunnel.endpoint(), tunnel.resumed()
    ping = Ping(tmp_path / "ping")
    ping.more(5)
    before = host.main_pid(AGENT)
    host.systemctl("restart", AGENT)
    ping.more(10)
    lost, longest_s = ping.stop()
    print(f"{ping.sent()} sent, {len(lost)} lost, longest round trip {longest_s:.1f} s")
    assert host.main_pid(AGENT) != before
    assert len(lost) <= 1, (lost, host.journal(AGENT))
    # Else nothing was under way while there was no process.
    assert longest_s > 2 * Ping.EVERY_S
    assert (tunnel.shown(), tunnel.endpoint()) == (tunnel.made, endpoint)
    assert tunnel.resumed() == resumed + 1


def test_g10_a_restart_of_the_relay_under_traffic_loses_no_connection_and_no_frame(
    tunnel: Tunnel, tmp_path: Path
) -> None:
    host, relay = tunnel.host, RELAY[1]
    ping = Ping(tmp_path / "ping")
    with traffic() as flow:
        wait_kept(host)
        before = host.main_pid(relay)
        host.systemctl("restart", relay)
        ping.more(10)
        seen = flow.stop(START_S)
    lost, longest_s = ping.stop()
    print(f"{seen}; of {ping.sent()} pings {len(lost)} lost, longest round trip {longest_s:.1f} s")
    assert host.main_pid(relay) != before
    assert (seen.lost, seen.garbled, seen.closed) == (0, 0, 0), host.journal(relay)
    assert seen.received == seen.sent
    entry = host.events("RELAYD_EVENT=relay.resumed")[-1]
    assert entry["RELAYD_CONNECTIONS"] == str(AGENTS + 2)
    assert entry["RELAYD_AFTER"] == "stop"
    assert len(lost) == 0, (lost, host.journal(AGENT))


def test_g10_a_kill_of_the_relay_under_traffic_ends_only_connections_in_mid_frame(tunnel: Tunnel) -> None:
    host, relay = tunnel.host, RELAY[1]
    with traffic(torn=True) as flow:
        wait_kept(host)
        host.killed(relay, when=lambda: 2 <= flow.halfway() <= 4)
        time.sleep(2)  # two frames of each
        seen = flow.stop(START_S)
    print(seen)
    assert seen.garbled == 0
    assert 0 < seen.closed < AGENTS, host.journal(relay)
    assert len(seen.back_s) == seen.closed
    entry = host.events("RELAYD_EVENT=relay.resumed")[-1]
    assert int(entry["RELAYD_CONNECTIONS"]) >= AGENTS + 2 - seen.closed
    assert entry["RELAYD_AFTER"] == "kill"
    status = host.relay()
    assert status is not None
    assert set(status["not_resumed"]) <= {"mid_frame"}
    soon(tunnel.carries, "the tunnel carries")


def test_stopping_all_leaves_the_interface_a_working_tunnel(tunnel: Tunnel) -> None:
    host = tunnel.host
    host.systemctl("stop", AGENT, *RELAY)
    for unit in (AGENT, *RELAY):
        assert (host.show(unit, "ActiveState"), host.show(unit, "Result")) == ("inactive", "success")
    assert host.show(QUICK, "ActiveState") == "active"
    assert tunnel.shown() == tunnel.made
    assert not tunnel.carries()
    sh("sh", "-ec", f"{OPEN}; wg set wg0 peer $(wg show wg0 peers) endpoint {FAR_ENDPOINT}")
    soon(tunnel.carries, "WireGuard alone carries, once it has a way")
