"""docs/node-management.md: its blocks of commands, run as they stand there, in each situation it speaks of.

Beside the agent itself, with WireGuard in the kernel: tests/kernel/test_node_management.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relayd.demo.host import check_programs
from relayd.demo.lab import Lab, Node
from relayd.errors import HostError
from tests.helpers.netns import snapshot, wait_until
from tests.helpers.node_page import BLOCKS

COPY = (
    "-m mark --mark 0x574b -d 127.0.0.0/8 -j ACCEPT "
    "-m comment --comment 'wirekube: allow WG relay proxy on loopback'"
)
REMEMBERED = '{"version": 1, "old": {"net/ipv4/conf/lo/accept_local": ["0", "1"]}}'


NODE = """
mount -t tmpfs state /var/lib
ip link add wire_kube type bridge
ip link set wire_kube addrgenmode none up
ip address add 10.11.0.1/24 dev wire_kube
ip address add fd00:11::1/64 dev wire_kube nodad
ip rule add priority 200 from 10.99.0.0/16 lookup 99
ip -6 rule add priority 200 fwmark 1 lookup main
for iptables in iptables-nft iptables-legacy; do
    $iptables -N KUBE-FIREWALL
    $iptables -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
done
for iptables in iptables-nft iptables-legacy ip6tables-nft; do
    $iptables -t nat -N KUBE-POSTROUTING
    $iptables -t nat -A POSTROUTING -j KUBE-POSTROUTING
    $iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    $iptables -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
    $iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully
done
"""
"""Its last part is as kube-proxy writes it."""


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """A node of Kubernetes' with a state directory of its own, and with things of others that must survive.

    Its wire_kube is a bridge: what is no WireGuard stays.
    """
    try:
        check_programs(["iptables-nft", "iptables-legacy"])
    except HostError as error:
        pytest.skip(str(error))
    made = lab.node("node")
    made.run("sh", "-ec", NODE)

    def settled() -> bool:  # a new link, and its addresses, take a moment
        first, second = seen(made), seen(made)
        return first == second and "tentative" not in second["addresses"]

    wait_until(settled, "nothing changes by itself")
    yield made
    for process in lab.processes():
        if process.title.startswith("node"):
            lab.discard(process)


def run(node: Node, name: str, shell: str = "sh") -> str:
    """A block of the page as root would paste it. What it printed, complaints too."""
    # (Its last command may fail: the state directory can be a mount, a grep can find nothing.)
    return node.run(shell, "-c", f"exec 2>&1\n{BLOCKS[name]}\ntrue")


def seen(node: Node) -> dict[str, str]:
    """What the commands could have changed."""
    more = {
        "IPv6 rules": "ip -6 rule",
        "IPv6 routes": "ip -6 route show table all",
        "legacy": "iptables-legacy-save | grep -v -e '^#' -e '^:.* ACCEPT '",
        "accept_local": "cat /proc/sys/net/ipv4/conf/lo/accept_local",
        "state": "find /var/lib",
    }
    return snapshot(node) | {name: node.run("sh", "-c", script) for name, script in more.items()}


def set_up(node: Node) -> None:
    """By the page, and with what an agent writes to the disk."""
    assert run(node, "set up") == ""
    assert run(node, "routes") == ""
    node.run("sh", "-ec", "mkdir -p /var/lib/wirekube; echo key >/var/lib/wirekube/privatekey")
    node.run("sh", "-ec", "cat >/var/lib/wirekube/sysctls.json", stdin=REMEMBERED)


def test_the_page_has_these_blocks() -> None:
    assert set(BLOCKS) == {"whose", "set up", "routes", "remove", "verify"}


def test_rules_are_put_where_the_page_says(node: Node) -> None:
    node.ip("rule add priority 100 lookup local", "rule del priority 0 lookup local")
    assert run(node, "set up") == ""
    assert "110:\tfrom all fwmark 0x574b lookup main" in node.run("ip", "rule")
    assert "200:\tfrom all lookup 22347" in node.run("ip", "-6", "rule")
    for iptables in ("iptables-nft", "iptables-legacy"):
        first = node.run(iptables, "-S", "KUBE-FIREWALL").splitlines()[1]
        assert "--mark 0x574b" in first
    for iptables in ("iptables-nft", "iptables-legacy", "ip6tables-nft"):
        ours, jump = node.run(iptables, "-t", "nat", "-S", "POSTROUTING").splitlines()[1:]
        assert "--mark 0x574b" in ours
        assert jump == "-A POSTROUTING -j KUBE-POSTROUTING"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_removing_by_hand_leaves_the_node_as_it_was_before(node: Node, shell: str) -> None:
    node.run("sh", "-c", "echo 2 >/proc/sys/net/ipv4/conf/wire_kube/rp_filter")
    before = seen(node)
    set_up(node)
    assert len(run(node, "verify", shell).splitlines()) >= 10
    assert run(node, "remove", shell) == ""
    # (The bridge of that name is none of ours, and told of.)
    assert [line.split()[0] for line in run(node, "verify", shell).splitlines()] == ["wire_kube"]
    assert seen(node) == before


def test_copies_other_priorities_and_moved_rules_go_too(node: Node) -> None:
    before = seen(node)
    node.ip("rule add priority 100 lookup local", "rule del priority 0 lookup local")
    set_up(node)
    node.ip(
        "rule add priority 101 fwmark 0x574b lookup main",
        "rule add priority 190 fwmark 0x574b lookup main",
        "rule add priority 201 lookup 22347",
    )
    node.run("ip", "-6", "rule", "add", "priority", "7", "lookup", "22347")
    for iptables in ("iptables-nft", "iptables-legacy"):
        node.run("sh", "-ec", f"{iptables} -A KUBE-FIREWALL {COPY}; {iptables} -I KUBE-FIREWALL {COPY}")
    assert run(node, "remove") == ""
    node.ip("rule add priority 0 lookup local", "rule del priority 100 lookup local")
    assert seen(node) == before


def test_a_second_removal_and_one_of_a_clean_node_change_nothing(node: Node) -> None:
    before = seen(node)
    assert run(node, "remove") == ""
    assert seen(node) == before
    set_up(node)
    assert run(node, "remove") == run(node, "remove") == ""
    assert seen(node) == before


def test_a_state_directory_that_is_a_mount_is_emptied(node: Node) -> None:
    node.run("sh", "-ec", "mkdir /var/lib/wirekube; mount -t tmpfs state /var/lib/wirekube")
    set_up(node)
    node.run("sh", "-ec", "mkdir /var/lib/wirekube/.hidden")
    run(node, "remove")
    assert node.run("find", "/var/lib/wirekube", "-mindepth", "1") == ""
    assert "/var/lib/wirekube" in node.run("cat", "/proc/self/mounts")


def test_accept_local_that_was_on_before_stays_on(node: Node) -> None:
    set_up(node)
    node.run("rm", "/var/lib/wirekube/sysctls.json")  # relayd remembers only what it changed
    run(node, "remove")
    assert node.run("cat", "/proc/sys/net/ipv4/conf/lo/accept_local").strip() == "1"


MARKED_DATAGRAM = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as sender, socket.socket(type=socket.SOCK_DGRAM) as receiver:
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x574B)
    sender.bind(("", int(sys.argv[1])))
    receiver.bind(("127.64.1.2", 0))
    receiver.settimeout(5)
    sender.sendto(b"x", receiver.getsockname())
    try:
        print(receiver.recvfrom(16)[1][1] == int(sys.argv[1]))
    except TimeoutError:
        print("nothing came")
"""


def test_kube_proxy_takes_marked_datagrams_for_its_own_until_the_rule_stands(node: Node) -> None:
    assert node.run("python3", "-c", MARKED_DATAGRAM, "51900").strip() != "True"
    set_up(node)
    assert node.run("python3", "-c", MARKED_DATAGRAM, "51901").strip() == "True"
