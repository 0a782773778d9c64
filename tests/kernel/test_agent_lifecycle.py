"""The agent is started, stopped, killed, misconfigured, cut off: the kernel's tunnel doesn't notice.

Two network namespaces with a wire between them. `a` runs relayd agent with an interface of its own, `b` plain
WireGuard by `ip` and `wg`; the relay is in `b` too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.wireguard_contract import new_key
from tests.kernel.agents import Agents, Running
from tests.kernel.shell import sh

KEY_A, KEY_B = new_key(), new_key()
WITHIN_S = 2.0

CONFIG = f"""\
[relay]
address = "192.0.2.2:3478"

[interface]
address = ["10.8.0.1/24", "fd08::1/64"]

[[peer]]
public_key = "{KEY_B.public()}"
allowed_ips = ["10.8.0.2/32", "fd08::2/128"]
endpoint = "192.0.2.2:51820"
"""

WIRES = """
printf 'netns add a\nnetns add b\n' | ip -batch -
ip -n a -batch - <<END
link set lo up
link add wire-b type veth peer name wire-a netns b
link set wire-b addrgenmode none up
address add 192.0.2.1/24 dev wire-b
END
ip -n b -batch - <<END
link set lo up
link set wire-a addrgenmode none up
address add 192.0.2.2/24 dev wire-a
link add wgb type wireguard
address add 10.8.0.2/24 dev wgb
address add fd08::2/64 dev wgb
link set wgb up
END
ip netns exec a sh -ec '
echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 1 >/proc/sys/net/ipv4/conf/default/rp_filter
iptables-nft-restore --noflush' <<END
*filter
:KUBE-FIREWALL - [0:0]
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
COMMIT
*nat
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
END
"""
"""Few processes: each costs a tenth of a second under emulation."""

STATE_OF_A = """
ip netns exec a sh -ec '
wg show all dump | cut -f 1-5,9
for version in 4 6; do printf "rule\nroute show table all\n" | ip -$version -batch -; done | grep -v ff00
printf "address\nlink show wire_kube\n" | ip -o -d -batch -
iptables-nft-save | grep -v "^#"
cd /proc/sys/net/ipv4/conf; cat lo/accept_local wire_kube/rp_filter'
"""

BARE_STATE_OF_A = STATE_OF_A.replace(" wire_kube\n", "\n").replace(" wire_kube/rp_filter", "")
"""Without the interface."""


class Node:
    """The namespace `a`, and how to run relayd in it."""

    def __init__(self, directory: Path, agents: Agents) -> None:
        self.agents, self.state = agents, directory / "state"
        self.config = directory / "agent.toml"
        self.config.write_text(CONFIG)
        self.control = directory / "agent.sock"
        self.relay_control = directory / "relay.sock"

    def places(self) -> tuple[str, ...]:
        return ("--state", str(self.state), "--control", str(self.control))

    def agent(self, *more: str, service: str = "") -> Running:
        arguments = ("agent", "--config", str(self.config), *self.places(), *more)
        return self.agents.start("a", *arguments, service=service)

    def relay(self) -> Running:
        return self.agents.start(
            *("b", "serve", "--listen", "192.0.2.2:3478", "--control", str(self.relay_control)),
            *("--open", "--state", f"{self.relay_control}-state"),
        )

    def ready(self) -> Running:
        agent = self.agent()
        agent.wait_for("agent.started")
        return agent

    def shown(self) -> str:
        return sh(STATE_OF_A)


@pytest.fixture
def node(tmp_path: Path, agents: Agents) -> Iterator[Node]:
    sh(WIRES)
    node = Node(tmp_path, agents)
    node.state.mkdir(mode=0o700)
    (node.state / "privatekey").touch(0o600)
    (node.state / "privatekey").write_text(KEY_A.to_base64())
    sh(
        f"ip netns exec b wg set wgb private-key /dev/stdin listen-port 51820 peer {KEY_A.public()} "
        "allowed-ips 10.8.0.1/32,fd08::1/128",
        stdin=KEY_B.to_base64(),
    )
    try:
        yield node
    finally:
        for running in agents.running():
            running.kill(signal.SIGKILL)
        sh("ip netns del a; ip netns del b")


class Ping:
    """A ping every 10 ms from `a` into the tunnel."""

    def __init__(self, directory: Path, *, interval_s: float = 0.01) -> None:
        self.file = directory / "ping"
        with self.file.open("w") as output:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", "a", "ping", "-D", "-n", "-i", str(interval_s), "10.8.0.2"],
                stdout=output,
            )

    def answers(self) -> list[tuple[float, int]]:
        """(time, sequence number) of each answer so far."""
        found = re.findall(r"^\[([\d.]+)\].*icmp_seq=(\d+) ttl", self.file.read_text(), re.MULTILINE)
        return [(float(at), int(number)) for at, number in found]

    def stop(self) -> list[int]:
        """-> sequence numbers that were not answered, the last two aside: they may have been on their way"""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=10)
        got = {number for _, number in self.answers()}
        return [number for number in range(1, max(got) - 1) if number not in got]


def soon(true: Callable[[], bool], within_s: float = 10.0) -> float:
    """Wait until it is true. -> seconds that it took"""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < within_s, f"not within {within_s} s"
        time.sleep(0.05)
    return time.monotonic() - started


def reached() -> bool:
    done = subprocess.run(
        ["ip", "netns", "exec", "a", "ping", "-c1", "-W1", "10.8.0.2"], capture_output=True, check=False
    )
    return done.returncode == 0


def test_g11_a_direct_tunnel_loses_nothing_whatever_happens_to_the_agent(node: Node, tmp_path: Path) -> None:
    relay = node.relay()
    agent = node.ready()
    soon(reached)
    right = node.shown()
    assert "192.0.2.2:51820" in right
    assert "-A KUBE-FIREWALL -d 127.0.0.0/8 -m mark --mark 0x574b" in right
    assert "-A POSTROUTING -m mark --mark 0x574b" in right
    pings = Ping(tmp_path)
    for number in range(20):
        agent.kill(signal.SIGKILL if number % 2 else signal.SIGTERM)
        if number == 3:
            relay.kill(signal.SIGKILL)
            good = node.config.read_text()
            node.config.write_text(good.replace("allowed_ips", "allowed_ip"))
            broken = node.agent()
            assert broken.wait() == 2
            node.config.write_text(good)
            assert node.shown() == right
        agent = node.ready()
        assert "interface.reused" in agent.output()
        assert "host.changed" not in agent.output()
        if number == 5:
            relay = node.relay()
            relay.wait_for("relay.started")
    assert node.shown() == right
    agent.kill(signal.SIGTERM)
    assert node.shown() == right
    assert pings.stop() == []


@pytest.mark.alone
def test_what_somebody_removes_is_back_in_two_seconds(node: Node) -> None:
    agent = node.ready()
    soon(reached)
    time.sleep(1)
    right = node.shown()
    for command in (
        "ip -n a rule del priority 200; ip -n a rule del priority 110; ip -n a -6 rule flush; "
        "ip -n a -6 rule add lookup main priority 32766",
        "ip -n a route flush table 22347",
        "ip netns exec a iptables-nft -D KUBE-FIREWALL 1",
        "ip netns exec a iptables-nft -t nat -D POSTROUTING 1",
        "ip -n a address del 10.8.0.1/24 dev wire_kube",
        "ip netns exec a sysctl -qw net.ipv4.conf.wire_kube.rp_filter=1",
        "ip -n a link set wire_kube down",
        "ip netns exec a sysctl -qw net.ipv4.conf.lo.accept_local=0",
        "ip netns exec a wg set wire_kube fwmark 0 listen-port 51999",
        f"ip netns exec a wg set wire_kube peer {KEY_B.public()} allowed-ips 10.8.0.77/32",
        f"ip netns exec a wg set wire_kube peer {KEY_B.public()} remove",
        "wg genkey | ip netns exec a wg set wire_kube private-key /dev/stdin",
    ):
        said = agent.output().count("host.restored")
        sh(command)
        took_s = soon(lambda said=said: agent.output().count("host.restored") > said)  # type: ignore[misc]
        assert took_s <= WITHIN_S, (command, took_s)
        soon(lambda: normal(node.shown()) == normal(right))
    sh("ip -n a link del wire_kube")
    soon(reached)
    assert "host.restored" in agent.output()


def normal(shown: str) -> list[str]:
    """Without what a new address or a link that was down changes by itself, in any order."""
    gone = re.sub(r"(valid_lft|preferred_lft) \S+|proto kernel_\w+|qlen \d+|fe80\S*|state \w+", "", shown)
    return sorted(line for line in gone.splitlines() if "multicast" not in line)


def test_cleanup_waits_for_the_agent_to_stop_and_leaves_the_host_as_it_was(node: Node) -> None:
    before = sh(BARE_STATE_OF_A)
    agent = node.ready()
    refused = node.agents.start("a", "cleanup", *node.places())
    assert refused.wait() == 3
    assert "stop it first" in refused.output()
    dry = node.agents.start("a", "cleanup", "--dry-run", *node.places())
    assert dry.wait() == 1
    assert "would remove: interface wire_kube" in dry.output()
    agent.kill(signal.SIGKILL)
    for said in ("removed: interface wire_kube", "and nothing was"):
        done = node.agents.start("a", "cleanup", *node.places())
        assert done.wait() == 0, done.output()
        assert said in done.output()
        assert sh(BARE_STATE_OF_A) == before
        assert not node.state.exists()
        assert not node.control.exists()
    # And then a first start again, with a key of its own.
    agent = node.ready()
    assert (node.state / "privatekey").stat().st_mode & 0o777 == 0o600
    assert node.state.stat().st_mode & 0o777 == 0o700
    # One that is stopped answers nobody, and is an agent all the same.
    os.kill(agent.pid, signal.SIGSTOP)
    refused = node.agents.start("a", "cleanup", *node.places())
    assert refused.wait() == 3
    assert "an agent is using it: stop it first" in refused.output()
    forced = node.agents.start("a", "cleanup", "--force", "--json", *node.places())
    assert forced.wait() == 0, forced.output()
    told = json.loads(forced.output().splitlines()[-1])
    assert (told["clean"], told["left"], told["failed"], told["dry_run"]) == (True, [], [], False)
    assert {"kind": "interface", "what": "interface wire_kube"} in told["removed"]
    assert sh(BARE_STATE_OF_A) == before
    agent.kill(signal.SIGKILL)


def test_clean_state_rebuilds_by_request_and_keeps_the_key(node: Node) -> None:
    agent = node.ready()
    right = node.shown()
    index = sh("ip netns exec a cat /sys/class/net/wire_kube/ifindex")
    agent.kill(signal.SIGTERM)
    agent = node.agent("--clean-state")
    agent.wait_for("agent.started")
    assert sh("ip netns exec a cat /sys/class/net/wire_kube/ifindex") != index
    assert "clean_state.begun" in agent.output()
    assert [line for line in right.splitlines() if line.startswith("wire_kube")] == [
        line for line in node.shown().splitlines() if line.startswith("wire_kube")
    ]


def test_a_relay_inside_the_tunnels_network_is_refused_and_the_host_is_as_before(node: Node) -> None:
    before = sh("ip -n a rule; ip -n a route show table all; ip -n a -o link")
    node.config.write_text(CONFIG.replace("192.0.2.2:3478", "10.8.0.77:3478"))
    agent = node.agent()
    assert agent.wait() == 3
    assert "the relay 10.8.0.77 would be reached through wire_kube itself" in agent.output()
    assert sh("ip -n a rule; ip -n a route show table all; ip -n a -o link") == before


def relayed_only(node: Node, directory: Path) -> None:
    """A relay, an agent beside b's interface, and no way between the two nodes but through them."""
    relay = node.relay()
    relay.wait_for("relay.started")
    sh("ip netns exec b iptables-nft -A INPUT -i wire-a -p udp --dport 51820 -j DROP")
    node.config.write_text(CONFIG.replace('endpoint = "192.0.2.2:51820"', ""))
    far = node.agents.start(
        "b", "agent", "--relay", "192.0.2.2:3478", "--interface", "wgb",
        "--state", str(directory / "b"), "--control", str(directory / "b.sock"),
    )  # fmt: skip
    far.wait_for("link.connected")


@pytest.mark.alone
def test_a_relayed_peer_is_back_in_two_seconds_after_a_kill(node: Node, tmp_path: Path) -> None:
    relayed_only(node, tmp_path)
    agent = node.ready()
    agent.wait_for("link.connected")
    soon(reached, 20)
    right = node.shown()
    assert re.search(rf"{re.escape(str(KEY_B.public()))}\t\S+\t127\.", right)
    pings = Ping(tmp_path, interval_s=0.05)
    for number in (signal.SIGKILL, signal.SIGTERM):
        time.sleep(0.5)
        killed_at = time.time()
        agent.kill(number)
        agent = node.agent()
        ended_at = time.time()
        soon(lambda at=ended_at: any(answered > at for answered, _ in pings.answers()))  # type: ignore[misc]
        back_s = min(answered for answered, _ in pings.answers() if answered > ended_at) - killed_at
        assert back_s <= WITHIN_S, number
    pings.stop()
    agent.wait_for("agent.started")
    assert node.shown() == right


def test_g11_a_relayed_peer_loses_at_most_one_packet_over_a_restart(node: Node, tmp_path: Path) -> None:
    """With a service manager, which keeps the relay's connection and the socket on lo meanwhile."""
    relayed_only(node, tmp_path)
    agent = node.agent(service="agent")
    agent.wait_for("link.connected")
    soon(reached, 20)
    right = node.shown()
    pings = Ping(tmp_path, interval_s=0.02)
    for _ in range(3):
        time.sleep(0.5)
        agent.kill(signal.SIGTERM)
        agent = node.agent(service="agent")
        agent.wait_for("agent.started")
        assert "link.resumed" in agent.output()
        assert node.shown() == right
    time.sleep(1)
    lost = pings.stop()
    print(f"3 restarts: {len(lost)} lost")
    assert len(lost) <= 1, lost
