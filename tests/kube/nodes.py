"""Three nodes of a cluster, each with an agent that knows nothing but the API server and its own token.

a ----- relay      a can't reach b and c, but by the relay
b ----- relay
c ----- relay      b and c have a wire of their own
b ------------ c
a, b, c, relay ---- api
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from relayd.demo.lab import RELAYD, Lab
from relayd.demo.process import Process
from relayd.demo.tunnel import start_wireguard_go
from relayd.endpoints import Endpoint
from tests.helpers.netns import START_S, status_of, wait_until, write
from tests.kube.control_plane import ADDRESS, NAMESPACE, URL, ControlPlane
from tests.kube.objects import mesh

RELAY_ADDRESS = IPv4Address("198.51.100.1")
RELAY = Endpoint(RELAY_ADDRESS, 3478)
OTHER_PORT = 3490
"""Not next to the first one's: a relay answers STUN on two ports."""
OTHER_RELAY = f"{RELAY_ADDRESS}:{OTHER_PORT}"
INTERFACE = "wire_kube"
CONTROL = f"/run/relayd/agent-{INTERFACE}.sock"
STATE = "/run/state"
DIRECT = IPv4Network("203.0.113.0/30")
WIRES = IPv4Network("198.18.0.0/24").subnets(new_prefix=30)

MESH = {"meshCIDR": "10.100.0.0/24", "relay": {"provider": "external", "external": {"endpoint": str(RELAY)}}}


class Nodes:
    """Made with wires, wireguard-go, and Node resources; agents start one by one."""

    def __init__(self, lab: Lab, cluster: ControlPlane) -> None:
        self.lab, self.cluster = lab, cluster
        self.relay = lab.node("relay")
        self.relay.ip(f"addr add {RELAY_ADDRESS}/32 dev lo")
        lab.wire(cluster.node, self.relay, next(WIRES))
        self.relay.ip(f"route add {ADDRESS} via {cluster.node.addresses['relay']}")
        self.named = {name: lab.node(name) for name in "abc"}
        self.agents: dict[str, Process] = {}
        self._wireguard: dict[str, Process] = {}
        for name, node in self.named.items():
            for hub, address in ((self.relay, RELAY_ADDRESS), (cluster.node, ADDRESS)):
                lab.wire(hub, node, next(WIRES))
                node.ip(f"route add {address} via {hub.addresses[name]}")
            self._wireguard[name] = start_wireguard_go(node, INTERFACE)
        lab.wire(self.named["b"], self.named["c"], DIRECT)
        for name in self.named:
            self.new_token(name)
        for name, other in (("b", "c"), ("c", "b")):
            internal = {"type": "InternalIP", "address": str(self.named[name].addresses[other])}
            self.patch("node", name, {"status": {"addresses": [internal]}}, "--subresource=status")

    def start_relay(self, port: int = RELAY.port) -> Process:
        """As the Deployment does; in the state directory of the node. A second one has another port."""
        state = "/run/relay" if port == RELAY.port else f"/run/relay-{port}"
        more = (
            ()
            if port == RELAY.port
            else ("--listen", f"{RELAY_ADDRESS}:{port}", "--control", f"{state}.sock")
        )
        token = self.cluster.kubectl("create", "token", "wirekube-relay", "-n", NAMESPACE).strip()
        write(self.relay, "/run/ca.crt", self.cluster.ca)
        write(self.relay, "/run/token", token)
        return self.relay.start(
            *RELAYD, "serve", "--admit", "kubernetes", "--log", "json", "--state", state,
            "--http", "off", "--api-token-file", "/run/token", "--api-ca-file", "/run/ca.crt",
            "--api-server", URL, *more,
            environment={"POD_NAMESPACE": NAMESPACE},
        )  # fmt: skip

    def new_token(self, name: str, *, pod: str = "") -> None:
        """Project a token into the node, as kubelet does: another pod's, another token."""
        node = self.named[name]
        write(node, "/run/ca.crt", self.cluster.ca)
        write(node, "/run/token", self.cluster.pod_token(name, pod=pod))

    def start(self, name: str, *more: str, server: str = URL) -> Process:
        """Start the agent of a node, as the DaemonSet does; `server` is what its environment says."""
        node = self.named[name]
        agent = self.agents[name] = node.start(
            *RELAYD, "agent", "--kubernetes", "--log", "json", "--state", STATE, "--http", "off",
            "--api-token-file", "/run/token", "--api-ca-file", "/run/ca.crt", *more,
            environment={"NODE_NAME": name, "WIREKUBE_KUBE_APISERVER": server},
        )  # fmt: skip
        return agent

    def stop(self, name: str) -> None:
        """As kubelet does."""
        agent = self.agents.pop(name)
        agent.terminate()
        assert agent.wait(START_S) == 0, agent.last_words()

    def restart_wireguard(self, name: str) -> None:
        """Another wireguard-go, with an interface that nobody has configured."""
        self.lab.discard(self._wireguard[name])
        wait_until(lambda: INTERFACE not in self.named[name].run("ip", "-o", "link"), "the interface goes")
        self._wireguard[name] = start_wireguard_go(self.named[name], INTERFACE)

    def status(self, name: str) -> dict[str, Any]:
        """The agent's own words, once it answers."""
        node = self.named[name]
        return wait_until(lambda: status_of(node, CONTROL), f"the agent of {name} answers")

    def peer(self, name: str) -> dict[str, Any]:
        """A node's resource; {} when there is none."""
        said = self.cluster.kubectl(
            "get", "wkpeer", name, "-o", "json", "--ignore-not-found", "--show-managed-fields"
        )
        return json.loads(said) if said else {}

    def patch(self, kind: str, name: str, patch: object, *more: str) -> None:
        """As the administrator."""
        self.cluster.patch(kind, name, patch, *more)

    def address(self, name: str) -> IPv4Address:
        """A node's address in the mesh."""
        (text,) = (one for one in self.peer(name)["spec"]["allowedIPs"] if one.startswith("10.100."))
        return IPv4Address(text.removesuffix("/32"))

    def key(self, name: str) -> str:
        """A node's public key."""
        return str(self.peer(name)["spec"]["publicKey"])

    def wg(self, name: str, what: str) -> str:
        """`wg show` on a node, in an order of its own: wireguard-go has none."""
        return "\n".join(sorted(self.named[name].run("wg", "show", INTERFACE, what).splitlines()))

    def routes(self, name: str) -> str:
        """The node's routes into the tunnel."""
        return self.named[name].run("sh", "-c", "ip route show table 22347 2>/dev/null || true")

    def log(self, name: str) -> list[dict[str, Any]]:
        """What the agent has told."""
        lines = self.agents[name].output().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        """Of that kind."""
        return [one for one in self.log(name) if one.get("event") == event]

    def pings(self, name: str, to: str | IPv4Address, *, timeout_s: float = 40.0) -> float:
        """Ping from node to node (or address) through the tunnel until one is answered. -> seconds that it
        took"""
        began = time.monotonic()
        ping = ("ping", "-c1", "-W1", str(self.address(to) if isinstance(to, str) else to))
        wait_until(
            lambda: self.named[name].run("sh", "-c", '"$@" >/dev/null && echo yes || true', "sh", *ping),
            f"{name} reaches {to}",
            timeout_s,
        )
        return time.monotonic() - began


def meshed(lab: Lab) -> Iterator[Nodes]:
    """With a relay as the Deployment runs it, and an agent on each node, before there is a mesh."""
    cluster = ControlPlane(lab)
    cluster.install()
    made = Nodes(lab, cluster)
    relay = made.start_relay()
    for name in made.named:
        made.start(name)
    cluster.apply(mesh(**MESH))
    for name in made.named:
        made.agents[name].wait_for_output('"agent.started"', 60)
    yield made
    assert relay.returncode() is None, relay.last_words()
