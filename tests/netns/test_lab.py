"""The laboratory itself: nodes are apart, commands fail loudly, and nothing outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from relayd.demo.lab import MARK, Lab, start_time, sweep
from relayd.errors import HostError
from tests.helpers.netns import wait_until


def marked(pid: int) -> list[int]:
    """The processes of laboratories that `pid` made."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{MARK}={pid}:".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it ended
            continue
    return found


def test_wired_nodes_reach_each_other_and_unwired_ones_do_not(lab: Lab) -> None:
    one, two, three = (lab.node(name) for name in ("one", "two", "three"))
    lab.wire(one, two, IPv4Network("192.0.2.0/30"))
    lab.wire(two, three, IPv4Network("192.0.2.4/30"))
    one.run("ping", "-c", "1", "-W", "2", str(two.addresses["one"]))
    one.ip(f"route add default via {two.addresses['one']}")
    three.ip(f"route add default via {two.addresses['three']}")
    with pytest.raises(HostError, match="100% packet loss"):
        one.run("ping", "-c", "1", "-W", "0.3", str(three.addresses["two"]))


def test_a_command_that_fails_says_what_it_said(lab: Lab) -> None:
    node = lab.nodes.get("one") or lab.node("one")
    with pytest.raises(HostError, match=r"ip -batch -` failed: .*nosuch"):
        node.ip("link set nosuch up")


def test_a_command_that_hangs_is_ended(lab: Lab) -> None:
    node = lab.nodes.get("one") or lab.node("one")
    with pytest.raises(HostError, match=r"did not end in 0\.2 s"):
        node.run("sleep", "60", timeout_s=0.2)


def test_what_a_node_writes_below_run_is_its_own(lab: Lab) -> None:
    node = lab.nodes.get("one") or lab.node("one")
    node.run("sh", "-c", "echo hello > /run/relayd-lab-test")
    assert node.path("/run/relayd-lab-test").read_text() == "hello\n"
    assert not Path("/run/relayd-lab-test").exists()
    assert node.run("stat", "-f", "-c", "%T", "/var/run/wireguard").strip() == "tmpfs"


def test_closing_takes_all_processes_and_namespaces(lab: Lab) -> None:
    with Lab() as other:
        node = other.node("gone")
        namespace = os.readlink(f"/proc/{node.pid}/ns/net")
        started = node.start("sh", "-c", "sleep 60 & sleep 60 & wait")
        wait_until(lambda: len(children(started.pid)) == 2, "both children run")
        own = [node.pid, started.pid, *children(started.pid)]
    assert not [pid for pid in own if start_time(pid)]
    assert namespace not in namespaces()


def children(pid: int) -> list[int]:
    """The children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def namespaces() -> set[str]:
    """The network namespaces that some process is in."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            found.add(os.readlink(entry / "ns/net"))
        except OSError:  # not a process, or it ended
            continue
    return found


ORPHANS = """
import sys, time
from relayd.demo.lab import Lab
lab = Lab()
node = lab.node("left")
node.start("sleep", "60")
# As ping does, which has file capabilities: it loses the death signal.
node.start("setpriv", "--pdeathsig", "clear", "sleep", "60")
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_owner_takes_its_laboratory_along_and_the_rest_is_swept() -> None:
    owner = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        # A process that was just forked has its parent's environment yet, without the mark.
        wait_until(lambda: len(marked(owner.pid)) == 3, "all are there")
        time.sleep(0.2)  # for the last of them to become `sleep`
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate(timeout=10)
    # At most: another laboratory that begins just now, of a test beside this one, sweeps too.
    wait_until(lambda: len(marked(owner.pid)) <= 1, "the kernel has killed those that heed it")
    sweep()
    assert marked(owner.pid) == []


def test_neither_a_sweep_nor_another_laboratorys_end_touches_this_one(lab: Lab) -> None:
    node = lab.nodes.get("one") or lab.node("one")
    sweep()
    with Lab() as other:
        other.node("brief")
    assert node.run("echo", "still here") == "still here\n"
