"""The agent's own description of an interface, with a userspace WireGuard that nobody has configured."""

from __future__ import annotations

import signal
import time
from functools import partial
from ipaddress import IPv4Address, IPv4Network

import pytest

from relayd.demo.lab import Lab, Node
from relayd.demo.process import Process
from relayd.demo.tunnel import start_wireguard_go
from relayd.keys import PrivateKey
from tests.helpers.netns import (
    BACK_S,
    Pings,
    agent_status,
    is_registered,
    wait_connected,
    wait_until,
    write,
)

KEYS = {"a": PrivateKey(b"\x0a" * 32), "b": PrivateKey(b"\x0b" * 32)}
ADDRESSES = {"a": IPv4Address("198.18.0.1"), "b": IPv4Address("198.18.0.2")}
NETWORKS = {"a": IPv4Network("192.0.2.0/24"), "b": IPv4Network("198.51.100.0/24")}


def config(node: Node, peer: str) -> str:
    return f"""\
[interface]
name = "wg0"
private_key_file = "private.key"
listen_port = 51820
address = "{ADDRESSES[node.name]}/24"
mtu = 1400

[[peer]]
public_key = "{KEYS[peer].public()}"
allowed_ips = "{ADDRESSES[peer]}/32"
persistent_keepalive = 5

[relay]
address = "{node_relay(node)}:3478"

[agent]
state_dir = "state"
"""


def node_relay(node: Node) -> IPv4Address:
    """The relay's address on the node's wire."""
    return next(NETWORKS[node.name].hosts())


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> dict[str, Node]:
    relay, a, b = (lab.node(name) for name in ("relay", "a", "b"))
    for node, peer in ((a, "b"), (b, "a")):
        lab.wire(relay, node, NETWORKS[node.name])
        start_wireguard_go(node, "wg0")
        node.run("mkdir", "/run/etc")
        write(node, "/run/etc/private.key", KEYS[node.name].to_base64() + "\n")
        write(node, "/run/etc/agent.toml", config(node, peer))
        node.relayd("agent", "--config", "/run/etc/agent.toml")
    relay.relayd("serve", "--open", "--state", "/run/relay-state")
    for node in (a, b):
        wait_connected(node, BACK_S)
    return {node.name: node for node in (relay, a, b)}


def test_the_interface_is_as_the_file_says(nodes: dict[str, Node]) -> None:
    node = nodes["a"]
    link = node.run("ip", "-o", "link", "show", "wg0")
    assert "mtu 1400" in link
    assert "UP" in link
    assert f"inet {ADDRESSES['a']}/24" in node.run("ip", "-o", "address", "show", "wg0")
    private, public, port, mark = node.run("wg", "show", "wg0", "dump").splitlines()[0].split("\t")
    assert PrivateKey.from_base64(private).public() == KEYS["a"].public()
    assert public == str(KEYS["a"].public())
    assert port == "51820"
    assert int(mark, 0) == 0x574B


def test_traffic_passes_through_the_relay(lab: Lab, nodes: dict[str, Node]) -> None:
    pings = Pings(lab, nodes["a"], ADDRESSES["b"])
    pings.wait_back()
    pings.stop()


def test_a_restart_rewrites_nothing(lab: Lab, nodes: dict[str, Node]) -> None:
    node = nodes["a"]
    pings = Pings(lab, node, ADDRESSES["b"])
    pings.wait_back()
    before = node.run("wg", "show", "wg0", "endpoints")
    addresses = node.run("ip", "-o", "address", "show", "wg0")
    handshake = node.run("wg", "show", "wg0", "latest-handshakes")
    second = node.relayd("agent", "--config", "/run/etc/agent.toml")
    assert second.wait(20) == 3, "two agents for one interface"
    assert node.run("wg", "show", "wg0", "endpoints") == before
    agents = [process for process in lab.processes() if process.title == "a: relayd agent"]
    agents[0].kill()
    agents[0].wait()
    node.relayd("agent", "--config", "/run/etc/agent.toml")
    wait_connected(node, BACK_S)
    pings.wait_back()
    pings.stop()
    assert node.run("wg", "show", "wg0", "endpoints") == before
    assert node.run("ip", "-o", "address", "show", "wg0") == addresses
    # The session is the one from before: nothing was configured anew.
    assert node.run("wg", "show", "wg0", "latest-handshakes") == handshake


def test_a_reload_moves_to_another_relay_and_adds_a_peer_while_traffic_passes(
    lab: Lab, nodes: dict[str, Node]
) -> None:
    pings = Pings(lab, nodes["a"], ADDRESSES["b"])
    pings.wait_back()
    nodes["relay"].relayd(
        "serve", "--open", "--state", "/run/other-state", "--control", "/run/other.sock", "--http", "off",
        "--stun-port", "off", "--listen", "0.0.0.0:4478",
    )  # fmt: skip
    third = PrivateKey(b"\x0c" * 32).public()
    moved_at = time.time()
    for node, peer in ((nodes["a"], "b"), (nodes["b"], "a")):
        told = config(node, peer).replace(":3478", ":4478").replace("mtu = 1400", "mtu = 1380")
        told += f'\n[[peer]]\npublic_key = "{third}"\nallowed_ips = "198.18.0.3/32"\n'
        agent = [one for one in lab.processes() if one.title == f"{node.name}: relayd agent"][-1]
        reload_with_a_mistake_first(node, agent, told)
        assert agent.returncode() is None
        wait_until(partial(is_at, node, ":4478"), "the agent is at the other relay")
        wait_until(partial(shows, node, str(third), "wg show wg0 peers"), "the new peer is there")
        wait_until(partial(shows, node, "mtu 1380", "ip -o link show wg0"), "the MTU is another")
    pings.wait_back(moved_at)
    pings.stop()


def reload_with_a_mistake_first(node: Node, agent: Process, text: str) -> None:
    before = node.run("wg", "show", "wg0", "peers")
    for told, event in ((text + "\n[nonsense]\n", "agent.config_refused"), (text, "agent.reloaded")):
        assert event not in agent.output()
        write(node, "/run/etc/agent.toml", told)
        agent.send_signal(signal.SIGHUP)
        wait_until(partial(says, agent, event), event)
        if told is not text:
            assert "nonsense" in agent.output()
            assert node.run("wg", "show", "wg0", "peers") == before
    assert "'relays', '[interface]', '[[peer]]'" in agent.output().replace('"', "'")


def says(process: Process, text: str) -> bool:
    return text in process.output()


def is_at(node: Node, port: str) -> bool:
    return agent_status(node)["relay"]["address"].endswith(port) and is_registered(node)


def shows(node: Node, text: str, command: str) -> bool:
    return text in node.run(*command.split())
