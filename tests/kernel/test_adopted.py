"""An interface that wg-quick made, with an agent and after it: only endpoints change, and come back."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.wireguard_contract import new_key
from tests.kernel.agents import Agents, Running
from tests.kernel.shell import sh

OWN = new_key()
TALKER, SILENT, UNKNOWN = (new_key().public() for _ in range(3))

QUICK = """\
[Interface]
PrivateKey = {key}
Address = 10.9.0.1/24, fd09::1/64
ListenPort = 51821
{more}

[Peer]
PublicKey = {talker}
AllowedIPs = {talker_ips}
Endpoint = 192.0.2.2:51820
PersistentKeepalive = 1

[Peer]
PublicKey = {silent}
AllowedIPs = 10.9.0.3/32
Endpoint = 192.0.2.3:51820

[Peer]
PublicKey = {unknown}
AllowedIPs = 10.9.0.4/32
"""

WIRES = """
printf 'netns add a\\nnetns add b\\n' | ip -batch -
ip -n a -batch - <<END
link set lo up
link add wire-b type veth peer name wire-a netns b
link set wire-b addrgenmode none up
address add 192.0.2.1/24 dev wire-b
route add default via 192.0.2.9
END
ip -n b -batch - <<END
link set lo up
link set wire-a up
address add 192.0.2.9/24 dev wire-a
END
"""

SHOWN = """
ip netns exec a sh -ec '
wg show all dump | cut -f 1-5,9
for version in 4 6; do printf "rule\\nroute show table all\\n" | ip -$version -batch -; done | grep -v ff00
printf "address\\nlink show wg0\\n" | ip -o -d -batch -
nft list ruleset
cd /proc/sys/net/ipv4/conf; cat all/rp_filter wg0/rp_filter lo/accept_local'
"""


class Node:
    """The namespace `a` with wg0 in it, and 192.0.2.9 for a relay that isn't there."""

    def __init__(self, directory: Path, agents: Agents) -> None:
        self.directory, self._agents = directory, agents
        self.places = (
            "--interface", "wg0", "--state", str(directory / "state"), "--control", str(directory / "sock"),
        )  # fmt: skip

    def quick(self, *, full: bool = False) -> None:
        more = "" if full else "Table = auto"
        talker_ips = "0.0.0.0/0, ::/0" if full else "10.9.0.2/32, 172.20.0.0/16"
        config = self.directory / "wg0.conf"
        config.touch(0o600)
        config.write_text(
            QUICK.format(
                key=OWN.to_base64(),
                more=more,
                talker=TALKER,
                talker_ips=talker_ips,
                silent=SILENT,
                unknown=UNKNOWN,
            )
        )
        sh(f"ip netns exec a wg-quick up {config}")

    def agent(self, relay: str = "192.0.2.9:3478") -> Running:
        return self._agents.start("a", "agent", "--relay", relay, *self.places)

    def release(self) -> Running:
        done = self._agents.start("a", "agent", "--release", *self.places)
        done.wait()
        return done

    def shown(self) -> str:
        return sh(SHOWN)


@pytest.fixture
def node(tmp_path: Path, agents: Agents) -> Iterator[Node]:
    sh(WIRES)
    try:
        yield Node(tmp_path, agents)
    finally:
        for running in agents.running():
            running.kill(signal.SIGKILL)
        sh("ip netns del a; ip netns del b")


def endpoints() -> dict[str, str]:
    listed = sh("ip netns exec a wg show wg0 endpoints").splitlines()
    return dict(line.split("\t") for line in listed)


def test_only_endpoints_change_and_release_puts_them_back(node: Node, agents: Agents, tmp_path: Path) -> None:
    serving = agents.start(
        *("b", "serve", "--listen", "192.0.2.9:3478", "--control", str(tmp_path / "relay")),
        *("--open", "--state", str(tmp_path / "relay-state")),
    )
    serving.wait_for("relay.started")
    node.quick()
    before, direct = node.shown(), endpoints()
    assert direct[str(UNKNOWN)] == "(none)"
    for number in (signal.SIGKILL, signal.SIGTERM):
        agent = node.agent()
        agent.wait_for("agent.started")
        deadline = time.monotonic() + 40
        while not endpoints()[str(TALKER)].startswith("127."):  # it is tried for 10 s, and never answers
            assert time.monotonic() < deadline, agent.output()
            time.sleep(0.2)
        now = endpoints()
        assert now[str(UNKNOWN)].startswith("127.")
        assert now[str(SILENT)] == direct[str(SILENT)]
        # Nothing else: the dump differs in endpoints alone.
        changed = node.shown()
        for key in (TALKER, UNKNOWN):
            changed = changed.replace(now[str(key)], direct[str(key)])
        assert changed == before
        refused = node.release()
        assert refused.status == 3
        assert "another process answers" in refused.output()
        agent.kill(number)
    done = node.release()
    assert done.status == 0, done.output()
    assert f"peer {TALKER}: endpoint 192.0.2.2:51820" in done.output()
    assert f"peer {UNKNOWN}: had no endpoint" in done.output()
    kept = endpoints()[str(UNKNOWN)]
    assert node.shown().replace(kept, "(none)") == before
    again = node.release()
    assert again.status == 1  # the peer that keeps ours is no longer remembered
    assert node.shown().replace(kept, "(none)") == before


def test_beside_a_full_tunnel_the_relays_packets_get_a_rule_of_their_own(node: Node) -> None:
    node.quick(full=True)
    before = node.shown()
    # Beyond the wire: wg-quick sends everything unmarked into wg0.
    agent = node.agent("198.51.100.9:3478")
    agent.wait_for("agent.started")
    assert "host.rule_needed" in agent.output()
    assert "wg0" not in sh("ip -n a route get 198.51.100.9 mark 0x574b")
    assert "dev wg0" in sh("ip -n a route get 198.51.100.9")
    assert "fwmark 0x574b" in sh("ip -n a rule")
    agent.kill(signal.SIGKILL)
    agent = node.agent("198.51.100.9:3478")
    agent.wait_for("agent.started")
    agent.kill(signal.SIGTERM)
    done = node.release()
    assert "removed: -4 rule" in done.output() or "removed -4 rule" in done.output()
    kept = endpoints()[str(UNKNOWN)]
    assert node.shown().replace(kept, "(none)") == before


def test_a_relay_that_only_the_tunnel_leads_to_is_refused(node: Node) -> None:
    node.quick()
    before = node.shown()
    agent = node.agent("172.20.0.9:3478")
    assert agent.wait() == 3
    assert "172.20.0.9 would be reached through wg0 itself" in agent.output()
    assert node.shown() == before
