"""relayd.service under systemd: started, restarted, killed and hung while its agents talk through it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.marks import RELAY_PORT
from relayd.secret_file import RELAY_TOKEN
from tests.helpers.frame_traffic import Traffic
from tests.systemd.host import START_S, STATE, Host, soon

RESTARTS = int(os.environ.get("RELAYD_RESTARTS", "4"))
"""Twenty are promised, and were run (docs/systemd.md); what the fifth does no other does."""

BACK_S = 2.0
"""As promised: from the end of a connection until the agent is let in again."""

AGENTS = 200
RELAY = "relayd.service"

ADDRESS = ("127.0.0.1", RELAY_PORT)


@pytest.fixture(scope="module")
def running(host: Host) -> Iterator[Host]:
    host.systemctl("enable", "--now", "relayd.socket", RELAY)
    yield host
    host.systemctl("disable", "--now", "relayd.socket", RELAY)


def traffic(*, torn: bool = False) -> Traffic:
    """A thousand frames a second in all, or (`torn`) half of that."""
    token = (STATE / RELAY_TOKEN).read_text().strip()
    return Traffic(ADDRESS, token, count=AGENTS, every_s=0.2, torn=torn)


def wait_kept(host: Host) -> None:
    """Until the manager has all connections, and the ledger."""
    soon(lambda: host.kept(RELAY) == AGENTS + 1, "the connections are kept")


def test_it_runs_as_a_user_of_its_own_without_any_right(running: Host) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{running.main_pid(RELAY)}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split()[0] != "0"
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert "relayd://" not in running.journal(RELAY)


def test_g10_restarts_under_traffic_lose_no_connection_and_no_frame(running: Host) -> None:
    took: list[float] = []
    with traffic() as flow:
        wait_kept(running)
        for _ in range(RESTARTS):
            before = running.main_pid(RELAY)
            began = time.monotonic()
            running.systemctl("restart", RELAY)
            took.append(time.monotonic() - began)
            assert running.main_pid(RELAY) != before
            flow.check()
            time.sleep(1)
        seen = flow.stop(START_S)
    print(f"{RESTARTS} restarts, each {min(took):.1f} to {max(took):.1f} s; {seen}")
    assert (seen.lost, seen.garbled, seen.closed) == (0, 0, 0), running.journal(RELAY)
    assert seen.received == seen.sent
    entry = running.events("RELAYD_EVENT=relay.resumed")[-1]
    assert entry["RELAYD_CONNECTIONS"] == str(AGENTS)
    assert entry["RELAYD_AFTER"] == "stop"
    assert entry["PRIORITY"] == "6"


@pytest.mark.parametrize("torn", [False, True])
def test_g10_a_kill_under_traffic_loses_only_connections_in_mid_frame(running: Host, torn: bool) -> None:
    """`torn`: at any time half of the agents are in the middle of a frame."""
    with traffic(torn=torn) as flow:
        wait_kept(running)
        running.killed(RELAY)
        time.sleep(2)
        seen = flow.stop(START_S)
    print(seen)
    assert seen.garbled == 0
    if torn:
        assert 0 < seen.closed < AGENTS, running.journal(RELAY)
    else:
        # Each frame is one write: a connection is in mid-frame only where the kill cut the relay's own short.
        assert seen.closed <= 2, running.journal(RELAY)
    assert len(seen.back_s) == seen.closed
    assert max(seen.back_s, default=0.0) < BACK_S
    entry = running.events("RELAYD_EVENT=relay.resumed")[-1]
    # One that was killed before it had noted that it was within a frame ends at the next header.
    assert int(entry["RELAYD_CONNECTIONS"]) >= AGENTS - seen.closed
    assert entry["RELAYD_AFTER"] == "kill"
    status = running.relay()
    assert status is not None
    assert set(status["not_resumed"]) <= {"mid_frame"}


def test_a_reload_is_applied_and_what_takes_a_restart_is_named(running: Host) -> None:
    config = Path("/etc/relayd/relay.toml")
    before, pid = config.read_text(), running.main_pid(RELAY)
    config.write_text(before + "max_connections = 5000\nstun_port = 3490\n")
    try:
        running.systemctl("reload", RELAY)
        soon(lambda: running.events("RELAYD_EVENT=relay.restart_needed") != [], "it says what it can't do")
        reloaded = running.events("RELAYD_EVENT=relay.reloaded")[-1]
        needed = running.events("RELAYD_EVENT=relay.restart_needed")[-1]
        assert "max_connections" in reloaded["RELAYD_CHANGED"]
        assert "stun_port" in needed["RELAYD_SETTINGS"]
        assert (running.main_pid(RELAY), running.show(RELAY, "ActiveState")) == (pid, "active")
    finally:
        config.write_text(before)
        running.systemctl("reload", RELAY)


def test_a_relay_that_hangs_is_killed_and_started_anew_and_its_connections_live_on(running: Host) -> None:
    with traffic() as flow:
        wait_kept(running)
        before = running.main_pid(RELAY)
        restarts = int(running.show(RELAY, "NRestarts"))
        os.kill(before, signal.SIGSTOP)
        soon(lambda: running.main_pid(RELAY) not in (0, before), "the watchdog finds out", 2 * START_S)
        soon(lambda: running.show(RELAY, "ActiveState") == "active", "it is ready")
        seen = flow.stop(START_S)
    assert (seen.garbled, seen.closed) == (0, 0)
    assert int(running.show(RELAY, "NRestarts")) > restarts


def test_stopping_it_ends_the_connections(running: Host) -> None:
    with traffic() as flow:
        wait_kept(running)
        flow.rest()
        running.systemctl("stop", "relayd.socket", RELAY)
        assert flow.ended() == AGENTS
    running.systemctl("start", "relayd.socket", RELAY)
    soon(lambda: running.relay() is not None, "it answers")
    assert running.kept(RELAY) == 1
