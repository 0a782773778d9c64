"""A tunnel that only a relay carries: wg0 of this host, made by wg-quick, and wgb in the namespace `b`.

With the relay of this host as a service, an agent beside wg0 as another, and one beside wgb as a process.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relayd.secret_file import RELAY_TOKEN
from tests.helpers.wireguard_contract import new_key
from tests.kernel.agents import Agents, Running
from tests.kernel.shell import host as host_as_it_is
from tests.systemd.host import STATE, Host, sh, soon

KEY_A, KEY_B, PRESHARED = new_key(), new_key(), new_key()
AGENT = "relayd-agent@wg0.service"
QUICK = "wg-quick@wg0.service"
RELAY = ("relayd.socket", "relayd.service")
FAR, FAR_ENDPOINT = "10.8.0.2", "192.0.2.2:51820"

CONFIG = Path("/etc/wireguard/wg0.conf")
WG_QUICK = f"""\
[Interface]
PrivateKey = {KEY_A.to_base64()}
Address = 10.8.0.1/24
ListenPort = 51820

[Peer]
PublicKey = {KEY_B.public()}
PresharedKey = {PRESHARED.to_base64()}
AllowedIPs = {FAR}/32, 172.20.0.0/16
Endpoint = {FAR_ENDPOINT}
"""

WIRES = f"""
mkdir -p /run/wireguard
ip netns add b
ip link add wire-b type veth peer name wire-a netns b
ip link set wire-b addrgenmode none; ip -n b link set wire-a addrgenmode none
ip address add 192.0.2.1/24 dev wire-b; ip link set wire-b up
ip -n b address add 192.0.2.2/24 dev wire-a; ip -n b link set wire-a up; ip -n b link set lo up
ip -n b link add wgb type wireguard 2>/dev/null || ip netns exec b wireguard-go wgb
ip -n b address add {FAR}/24 dev wgb; ip -n b link set wgb up
ip netns exec b wg set wgb private-key key-b listen-port 51820 peer {KEY_A.public()} preshared-key preshared \
    allowed-ips 10.8.0.1/32
"""

BLOCK = """
iptables -A INPUT -i wire-b -p udp --dport 51820 -j DROP
ip netns exec b iptables -A INPUT -i wire-a -p udp --dport 51820 -j DROP
"""
"""No way between the two but through the relay."""

SHOWN = """
wg show wg0 listen-port
wg show wg0 dump | cut -f 1-2,4,8
ip -o address show dev wg0
"""
"""Fields: private and public key, mark; of a peer its key, the preshared one, allowed IPs, keepalive."""

OPEN = "iptables -F INPUT; ip netns exec b iptables -F INPUT"


class Tunnel:
    """What there is, while it is."""

    def __init__(self, host: Host, agents: Agents, directory: Path) -> None:
        self.host, self._agents, self._directory = host, agents, directory
        self.made = ""
        """`shown` before relayd came."""

    def lay(self) -> None:
        """The wires, wgb, and wg0 by wg-quick's own unit."""
        for name, key in (("key-b", KEY_B), ("preshared", PRESHARED)):
            (self._directory / name).write_text(key.to_base64())
        CONFIG.parent.mkdir(parents=True, exist_ok=True)
        CONFIG.touch(0o600)
        CONFIG.write_text(WG_QUICK)
        sh("sh", "-ec", f"cd {self._directory}; {WIRES}{BLOCK}")
        self.host.systemctl("start", QUICK)
        self.made = self.shown()

    def join(self) -> str:
        """The join string of this host's relay, by an address that `b` has too."""
        shown = self._agents.start_beside(os.getpid(), "serve", "--show-join", "--state", str(STATE))
        assert shown.wait() == 0, shown.output()
        assert (STATE / RELAY_TOKEN).read_text().strip() in shown.output()
        return re.sub(r"//[^/?]*:3478", "//192.0.2.1:3478", shown.output().strip())

    def far_agent(self, join: str) -> Running:
        """The one beside wgb, begun."""
        places = ("--state", str(self._directory / "b"), "--control", str(self._directory / "b.sock"))
        return self._agents.start(
            "b", "agent", "--relay", join, "--interface", "wgb", *places, "--http", "off"
        )

    def shown(self) -> str:
        """wg0 and all else of this host that relayd could change, but for the peer's endpoint."""
        return (
            sh("sh", "-ec", "wg show wg0 dump | cut -f 1-2,4,8; ip -o address show dev wg0") + host_as_it_is()
        )

    def endpoint(self) -> str:
        """wgb's, for wg0."""
        return sh("wg", "show", "wg0", "endpoints").split()[1]

    def resumed(self) -> int:
        """How often wg0's agent has gone on with a connection that an earlier process had left."""
        return len(self.host.events(f"_SYSTEMD_UNIT={AGENT}", "RELAYD_EVENT=link.resumed"))

    def carries(self) -> bool:
        """Whether one ping comes back within a second."""
        ping = subprocess.run(["ping", "-c1", "-W1", FAR], capture_output=True, check=False)
        return ping.returncode == 0


@contextmanager
def relayed_tunnel(host: Host, agents: Agents, directory: Path) -> Iterator[Tunnel]:
    """All of it, begun by `systemctl` as docs/systemd.md says; it carries."""
    tunnel = Tunnel(host, agents, directory)
    try:
        tunnel.lay()
        host.systemctl("enable", "--now", *RELAY)
        join = tunnel.join()
        config = Path("/etc/relayd/agent-wg0.toml")
        config.touch(0o600)
        config.write_text(f'[relay]\naddress = "{join}"\n')
        far = tunnel.far_agent(join)
        host.systemctl("enable", "--now", AGENT)
        soon(tunnel.carries, "the tunnel carries")
        yield tunnel
        far.kill(signal.SIGTERM)
    finally:
        host.systemctl("disable", "--now", AGENT, *RELAY)
        host.systemctl("stop", QUICK)
        sh("sh", "-c", f"{OPEN}; ip -n b link del wgb; ip link del wire-b; ip netns del b")


class Ping:
    """One through the tunnel that counts what never came back."""

    EVERY_S = 0.1

    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open("wb") as output:
            self._process = subprocess.Popen(["ping", "-n", "-i", str(self.EVERY_S), FAR], stdout=output)

    def answered(self) -> list[tuple[int, float]]:
        """(number, round trip in ms) of each."""
        found = re.findall(r"icmp_seq=(\d+) ttl.*time=([\d.]+) ms", self._file.read_text())
        return [(int(number), float(time_ms)) for number, time_ms in found]

    def sent(self) -> int:
        """After `stop`."""
        found = re.search(r"^(\d+) packets transmitted", self._file.read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1])

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        before = len(self.answered())
        soon(lambda: len(self.answered()) >= before + count, "more answers")

    def stop(self) -> tuple[list[int], float]:
        """-> numbers of those that were lost, and the longest round trip in seconds"""
        time.sleep(3)
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=10)
        answered = self.answered()
        got = {number for number, _ in answered}
        lost = [number for number in range(1, max(got)) if number not in got]
        return lost, max(time_ms for _, time_ms in answered) / 1e3
