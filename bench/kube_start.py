"""How an agent starts in a cluster of a thousand nodes: how long until all is configured, and its memory.

A real API server with 1,000 WireKubePeers in it, every other one with an endpoint and the rest for the relay;
and an agent with nothing but its token, in namespaces of their own (root is needed). The interface is
wireguard-go's, which takes a core while it is given its peers.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network

from bench.model import BenchError
from bench.process import cpu_ns, peak_kib, resident_kib
from relayd.demo.lab import RELAYD, Lab, Node
from relayd.demo.tunnel import start_wireguard_go
from relayd.errors import HostError
from relayd.keys import PrivateKey
from relayd.marks import RELAY_PORT
from tests.kube.build import default_cache
from tests.kube.control_plane import ADDRESS, PROGRAM, URL, ControlPlane

NAME = "kube-start"
PEERS = 1000
GOAL_S = 3.0
GOAL_KIB = 80 * 1024
START_S = 120.0
BATCH = 100
"""Resources that one kubectl makes: it paces itself, and the laboratory ends it after a minute."""

INTERFACE = "wire_kube"
FIRST = IPv4Address("10.100.0.1")


@dataclass(frozen=True, slots=True)
class Start:
    """What one start took."""

    peers: int
    seconds: float
    cpu_s: float
    resident_kib: int
    peak_kib: int

    @property
    def met(self) -> bool:
        return self.seconds < GOAL_S and self.peak_kib < GOAL_KIB

    def __str__(self) -> str:
        return (
            f"{NAME}: {self.peers} WireKubePeers: first full configuration after {self.seconds:.2f} s (goal "
            f"{GOAL_S:g} s), CPU {self.cpu_s:.2f} s; resident {self.resident_kib / 1024:.1f} MiB, at most "
            f"{self.peak_kib / 1024:.1f} MiB (goal {GOAL_KIB / 1024:.0f} MiB): "
            f"{'met' if self.met else 'missed'}"
        )


def measure() -> Start:
    """Once. Raises BenchError where it can't be measured: no root, or no cluster program."""
    if not os.environ.get(PROGRAM) and not list(default_cache().glob("cluster-*")):
        raise BenchError(f"{NAME}: skipped: the cluster program isn't built (python -m tests.kube.build)")
    try:
        with Lab() as lab:
            return _start(lab)
    except HostError as error:
        raise BenchError(f"{NAME}: {error}") from error


def _start(lab: Lab) -> Start:
    cluster = ControlPlane(lab)
    cluster.install()
    node = lab.node("a")
    lab.wire(cluster.node, node, IPv4Network("198.18.0.0/30"))
    node.ip(f"route add {ADDRESS} via {cluster.node.addresses['a']}")
    start_wireguard_go(node, INTERFACE)
    node.path("/run/ca.crt").write_text(cluster.ca)
    node.path("/run/token").write_text(cluster.pod_token("a"))
    relay = cluster.node.relayd("serve", "--open", "--http", "off", "--state", "/run/relay")
    relay.wait_for_output("relay.started", START_S)
    place = {"provider": "external", "external": {"endpoint": f"{ADDRESS}:{RELAY_PORT}"}}
    cluster.apply(_resource("WireKubeMesh", "default", meshCIDR="10.100.0.0/16", relay=place))
    for first in range(0, PEERS, BATCH):
        made = [_peer(number) for number in range(first, first + BATCH)]
        cluster.kubectl("create", "-f", "-", stdin="\n---\n".join(json.dumps(one) for one in made))
    return _measured(node)


def _measured(node: Node) -> Start:
    begun = time.perf_counter()
    agent = node.start(
        *RELAYD, "agent", "--kubernetes", "--log", "json", "--state", "/run/state", "--http", "off",
        "--api-token-file", "/run/token", "--api-ca-file", "/run/ca.crt",
        environment={"NODE_NAME": "a", "WIREKUBE_KUBE_APISERVER": URL},
    )  # fmt: skip
    agent.wait_for_output('"agent.started"', START_S)
    took_s = time.perf_counter() - begun
    configured = len(node.run("wg", "show", INTERFACE, "peers").split())
    routes = len(node.run("ip", "route", "show", "table", "22347").splitlines())
    relayed = node.run("wg", "show", INTERFACE, "endpoints").count("\t127.")
    if (configured, routes, relayed) != (PEERS, PEERS, PEERS // 2):
        raise BenchError(f"{NAME}: {configured} peers, {routes} routes, {relayed} on the relay, of {PEERS}")
    return Start(PEERS, took_s, cpu_ns(agent.pid) / 1e9, resident_kib(agent.pid), peak_kib(agent.pid))


def _peer(number: int) -> dict[str, object]:
    key = PrivateKey(sha256(number.to_bytes(4, "big")).digest()).public()
    spec: dict[str, object] = {"publicKey": str(key), "allowedIPs": [f"{FIRST + number}/32"]}
    if number % 2:
        spec["endpoint"] = f"203.0.113.{number % 250 + 1}:{20000 + number}"
    return _resource("WireKubePeer", f"node-{number}", **spec)


def _resource(kind: str, name: str, **spec: object) -> dict[str, object]:
    version = "wirekube.io/v1alpha1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}
