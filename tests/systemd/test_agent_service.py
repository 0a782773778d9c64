"""relayd-agent@wg0.service under systemd: restarted and killed under a ping through the relay."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.secret_file import RELAY_TOKEN
from tests.helpers.wireguard_contract import new_key
from tests.systemd.host import PROGRAM, START_S, STATE, Host, sh, soon

KEY_A, KEY_B = new_key(), new_key()
AGENT = "relayd-agent@wg0.service"
EVERY_S = 0.1

WIRES = f"""
mkdir -p /run/wireguard
ip netns add b
ip link add wire-b type veth peer name wire-a netns b
ip link set wire-b addrgenmode none; ip -n b link set wire-a addrgenmode none
ip address add 192.0.2.1/24 dev wire-b; ip link set wire-b up
ip -n b address add 192.0.2.2/24 dev wire-a; ip -n b link set wire-a up; ip -n b link set lo up
ip link add wg0 type wireguard 2>/dev/null || wireguard-go wg0
ip address add 10.8.0.1/24 dev wg0; ip link set wg0 up
ip -n b link add wgb type wireguard 2>/dev/null || ip netns exec b wireguard-go wgb
ip -n b address add 10.8.0.2/24 dev wgb; ip -n b link set wgb up
wg set wg0 private-key key-a listen-port 51820 peer {KEY_B.public()} allowed-ips 10.8.0.2/32
ip netns exec b wg set wgb private-key key-b listen-port 51820 peer {KEY_A.public()} allowed-ips 10.8.0.1/32
iptables -A INPUT -i wire-b -p udp --dport 51820 -j DROP
ip netns exec b iptables -A INPUT -i wire-a -p udp --dport 51820 -j DROP
"""
"""No way between the two but through the relay."""


SHOWN = "wg show wg0 dump | cut -f 1-4; ip -o address show dev wg0; ip rule; ip route"


@pytest.fixture(scope="module")
def running(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The relay and an agent as services, another agent as a process in a namespace."""
    directory = tmp_path_factory.mktemp("agent")
    for name, key in (("key-a", KEY_A), ("key-b", KEY_B)):
        (directory / name).write_text(key.to_base64())
    sh("sh", "-ec", f"cd {directory}; {WIRES}")
    host.systemctl("enable", "--now", "relayd.socket", "relayd.service")
    shown = sh(str(PROGRAM), "serve", "--show-join", "--state", str(STATE))
    assert (STATE / RELAY_TOKEN).read_text().strip() in shown
    join = re.sub(r"//[^/?]*:3478", "//192.0.2.1:3478", shown.strip())
    config = Path("/etc/relayd/agent-wg0.toml")
    config.write_text(f'[relay]\naddress = "{join}"\n')
    config.chmod(0o600)
    with (directory / "far.log").open("wb") as log:
        far = subprocess.Popen(
            ["ip", "netns", "exec", "b", sys.executable, "-m", "relayd", "agent", "--relay", join,
             "--interface", "wgb", "--state", str(directory / "b"), "--control", str(directory / "b.sock"),
             "--http", "off"],
            stdout=log,
            stderr=log,
        )  # fmt: skip
    try:
        host.systemctl("enable", "--now", AGENT)
        soon(reached, "the tunnel carries")
        yield host
    finally:
        host.systemctl("disable", "--now", AGENT, "relayd.socket", "relayd.service")
        far.send_signal(signal.SIGTERM)
        far.wait(START_S)
        sh("sh", "-c", "ip netns del b; ip link del wg0; iptables -F INPUT")


def reached() -> bool:
    return (
        subprocess.run(["ping", "-c1", "-W1", "10.8.0.2"], capture_output=True, check=False).returncode == 0
    )


class Ping:
    """One that counts what never came back."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open("wb") as output:
            self._process = subprocess.Popen(["ping", "-n", "-i", str(EVERY_S), "10.8.0.2"], stdout=output)

    def answered(self) -> list[tuple[int, float]]:
        """(number, round trip in ms) of each."""
        found = re.findall(r"icmp_seq=(\d+) ttl.*time=([\d.]+) ms", self._file.read_text())
        return [(int(number), float(time_ms)) for number, time_ms in found]

    def stop(self) -> tuple[list[int], float]:
        """-> numbers of those that were lost, and the longest round trip in seconds"""
        time.sleep(3)
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=10)
        answered = self.answered()
        got = {number for number, _ in answered}
        lost = [number for number in range(1, max(got)) if number not in got]
        return lost, max(time_ms for _, time_ms in answered) / 1e3


def test_it_has_two_rights_and_no_others(running: Host) -> None:
    pid = running.show(AGENT, "MainPID")
    status = Path(f"/proc/{pid}/status").read_text()
    effective = re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)
    assert effective is not None
    assert int(effective[1], 16) == 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW: linux/capability.h


@pytest.mark.machine
def test_g11_restarts_lose_at_most_one_packet_of_a_relayed_ping(running: Host, tmp_path: Path) -> None:
    before = sh("sh", "-c", SHOWN)
    ping = Ping(tmp_path / "ping")
    for _ in range(2):
        time.sleep(1)
        running.systemctl("restart", AGENT)
        since(ping, 3)
    lost, longest_s = ping.stop()
    print(f"2 restarts: {len(lost)} lost, longest round trip {longest_s:.1f} s")
    assert len(lost) <= 1, (lost, running.journal(AGENT))
    assert sh("sh", "-c", SHOWN) == before
    assert len(running.events(f"_SYSTEMD_UNIT={AGENT}", "RELAYD_EVENT=link.resumed")) == 2


def since(ping: Ping, more: int) -> None:
    """Wait for so many more answers."""
    count = len(ping.answered())
    soon(lambda: len(ping.answered()) >= count + more, "more answers")


def test_after_a_kill_the_relayed_ping_goes_on(running: Host, tmp_path: Path) -> None:
    ping = Ping(tmp_path / "ping")
    time.sleep(1)
    before = running.show(AGENT, "MainPID")
    os.kill(int(before), signal.SIGKILL)
    soon(lambda: running.show(AGENT, "MainPID") not in ("0", before), "the manager starts it anew")
    soon(lambda: running.show(AGENT, "ActiveState") == "active", "it is ready")
    since(ping, 10)
    lost, longest_s = ping.stop()
    print(f"killed: {len(lost)} lost, longest round trip {longest_s:.1f} s")
    assert len(lost) <= 3, (lost, running.journal(AGENT))
