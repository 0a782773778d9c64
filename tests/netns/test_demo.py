"""`relayd demo` as it is run: what it prints, its exit status, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.demo.lab import Lab
from relayd.demo.tunnel import add_kernel_link
from tests.netns.test_lab import marked

DEMO = [sys.executable, "-m", "relayd", "demo"]
LIMIT_S = 60.0
"""All of it, as promised."""


def host() -> dict[str, object]:
    """What a demonstration could leave behind on the host, besides its processes."""
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "links": sorted(os.listdir("/sys/class/net")),
        "namespaces": sorted(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else [],
        "run": sorted(name for name in os.listdir("/run") if "relayd" in name or "wire" in name),
        "state": os.path.exists("/var/lib/wirekube"),
    }


@pytest.fixture(autouse=True)
def _needs(lab: Lab) -> None:
    """Skips where no laboratory can be made."""


def test_the_demo_shows_the_traffic_coming_back_and_leaves_nothing() -> None:
    before = host()
    demo = subprocess.Popen([*DEMO, "--json", "--seconds", "16"], stdout=subprocess.PIPE, text=True)
    out, _ = demo.communicate(timeout=LIMIT_S)
    found = json.loads(out)
    assert demo.returncode == 0, found
    assert found["ok"] is True
    assert found["throughput"]["megabits_per_s"] > 1
    assert [fault["what"] for fault in found["faults"]] == ["relay", "agent on a"]
    for fault in found["faults"]:
        # what is dead for a second can't have answered meanwhile
        assert fault["lost"] > 5
        assert fault["back_s"] >= fault["restarted_s"]
    assert all(endpoint.startswith("127.") for endpoint in found["endpoints"])
    assert sum(second["sent"] for second in found["seconds"]) == found["pings"]["sent"]
    assert marked(demo.pid) == []
    assert host() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals) -> None:
    before = host()
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:  # until the tunnel works
            if "##" in line:
                break
        assert len(marked(demo.pid)) > 5
        demo.send_signal(number)
        demo.send_signal(number)  # an impatient one
        _, said = demo.communicate(timeout=20)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 128 + number
    assert f"stopped by {number.name}" in said
    assert "Traceback" not in said
    assert marked(demo.pid) == []
    assert host() == before


def test_a_reader_that_goes_away_ends_the_demo_and_leaves_nothing() -> None:
    before = host()
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        try:
            demo.stdout.readline()
            demo.stdout.close()
            demo.wait(timeout=30)
            said = demo.stderr.read()
        finally:
            demo.kill()
    assert demo.returncode == 141
    assert "Traceback" not in said
    assert marked(demo.pid) == []
    assert host() == before


MISSING = {
    "the right to make namespaces": (
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"],
        "it needs CAP_SYS_ADMIN",
    ),
    # a user that owns nothing, and can yet read what root may: the virtual environment is in root's home
    "root": (["unshare", "--user"], "run it again with sudo"),
    "a TUN device": (
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"],
        "/dev/net/tun is missing, which wireguard-go needs: modprobe tun",
    ),
    "wireguard-go": (
        # a program that is there and can't be run is not found
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            'mount --bind /dev/null "$(command -v wireguard-go)" && exec "$@"',
            "sh",
        ],
        "wireguard-go is missing: apt-get install wireguard-go",
    ),
    "iperf3": (
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            'mount --bind /dev/null "$(command -v iperf3)" && exec "$@"',
            "sh",
        ],
        "iperf3 is missing: apt-get install iperf3",
    ),
}


@pytest.mark.parametrize("missing", MISSING)
def test_what_the_host_lacks_is_named_with_its_remedy(lab: Lab, missing: str) -> None:
    if missing in ("a TUN device", "wireguard-go") and add_kernel_link(lab.node("probe"), "wg0"):
        return  # nobody misses them where the kernel has WireGuard
    wrapper, expected = MISSING[missing]
    before = host()
    done = subprocess.run([*wrapper, *DEMO], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert host() == before
