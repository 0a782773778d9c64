"""Relays and agents as their pods run: two replicas behind the headless Service, and two nodes.

a ---- r1, r2 ---- b        a and b have no wire of their own
all ---- api
"""

from __future__ import annotations

import base64
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from relayd.demo.lab import Lab, Node
from relayd.demo.process import Process
from relayd.demo.tunnel import start_wireguard_go
from tests.helpers.netns import Pings, status_of, wait_until, write
from tests.kube.control_plane import ADDRESS, NAMESPACE, ControlPlane
from tests.kube.objects import mesh
from tests.kube.pods import Pod

REPLICAS = {"r1": IPv4Address("198.51.100.1"), "r2": IPv4Address("198.51.100.2")}
SERVICE_NAME = "wirekube-relay-headless.wirekube-system.svc"
CONTROL_AGENT, CONTROL_RELAY = "/run/relayd/agent-wire_kube.sock", "/run/relayd/relay.sock"
START_S = 60.0


class Cluster:
    """Nodes with a pod each."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.plane = lab, ControlPlane(lab)
        self.plane.install()
        self.nodes: dict[str, Node] = {name: lab.node(name) for name in (*REPLICAS, "a", "b")}
        wires = IPv4Network("198.18.0.0/24").subnets(new_prefix=30)
        for name, node in self.nodes.items():
            lab.wire(self.plane.node, node, next(wires))
            node.ip(f"route add {ADDRESS} via {self.plane.node.addresses[name]}")
        for name, address in REPLICAS.items():
            self.nodes[name].ip(f"addr add {address}/32 dev lo")
            for other in "ab":
                lab.wire(self.nodes[name], self.nodes[other], next(wires))
                self.nodes[other].ip(f"route add {address} via {self.nodes[name].addresses[other]}")
        self.pods: dict[str, Pod] = {}
        self.running: dict[str, Process] = {}
        for name in REPLICAS:
            self.pods[name] = self._pod(name, "deployment/wirekube-relay")
        for name in "ab":
            start_wireguard_go(self.nodes[name], "wire_kube")
            self.pods[name] = self._pod(name, "daemonset/wirekube-agent")

    def _pod(self, name: str, workload: str) -> Pod:
        return Pod(self.plane, self.nodes[name], workload, name=f"pod-{name}", node_name=name)

    def start(self, *names: str) -> None:
        for name in names:
            self.running[name] = self.pods[name].start()

    def stop(self, name: str) -> float:
        """As kubelet: SIGTERM, and all of the grace period before SIGKILL. -> seconds that it took"""
        process, began = self.running.pop(name), time.monotonic()
        process.terminate()
        assert process.wait(self.pods[name].spec["terminationGracePeriodSeconds"]) == 0, process.last_words()
        return time.monotonic() - began

    def dns(self, *replicas: str) -> None:
        """What the headless Service's name leads to, as cluster DNS has it: the replicas that are ready."""
        hosts = "".join(f"{REPLICAS[one]} {SERVICE_NAME}\n" for one in replicas)
        for name in "ab":
            write(self.nodes[name], "/run/hosts", f"127.0.0.1 localhost\n{hosts}")

    def bind_hosts(self) -> None:
        """Have the nodes look names up in files that are theirs alone, with all addresses of a name."""
        for name in "ab":
            write(self.nodes[name], "/run/host.conf", "multi on\n")
            for file in ("hosts", "host.conf"):
                if Path("/etc", file).exists():  # to be mounted on: nothing is made there for a test
                    self.nodes[name].run("mount", "--bind", f"/run/{file}", f"/etc/{file}")

    def ready(self, name: str) -> int:
        return self.pods[name].probe("readinessProbe", pod_ip=str(REPLICAS.get(name, "127.0.0.1")))

    def relay(self, name: str) -> dict[str, Any]:
        return wait_until(lambda: status_of(self.nodes[name], CONTROL_RELAY), f"{name} answers")

    def agent(self, name: str) -> dict[str, Any]:
        return wait_until(lambda: status_of(self.nodes[name], CONTROL_AGENT), f"{name} answers")

    def home(self, name: str) -> str:
        """The replica that an agent is at home at."""
        address = next(one["address"] for one in self.agent(name)["relays"] if one["home"])
        return next(replica for replica, at in REPLICAS.items() if f"{at}:3478" == address)


@pytest.fixture(scope="module")
def cluster(lab_of_module: Lab) -> Cluster:
    made = Cluster(lab_of_module)
    made.dns("r1", "r2")
    made.bind_hosts()
    return made


def test_two_replicas_that_start_at_once_share_one_key(cluster: Cluster) -> None:
    secrets = ("secret", "-n", NAMESPACE)
    assert cluster.plane.get(*secrets)["items"] == []
    cluster.start("r1", "r2")
    for name in REPLICAS:
        cluster.running[name].wait_for_output('"relay_key.shared"', START_S)
    (secret,) = cluster.plane.get(*secrets)["items"]
    shared = base64.b64decode(secret["data"]["relay.key"]).decode().strip()
    for name in REPLICAS:
        assert cluster.nodes[name].path("/var/lib/wirekube/relay.key").read_text().strip() == shared


def test_a_relay_is_ready_when_it_knows_whom_to_let_in(cluster: Cluster) -> None:
    for name in REPLICAS:
        wait_until(lambda name=name: cluster.ready(name) == 200, f"{name} is ready", START_S)  # type: ignore[misc]
        assert cluster.pods[name].probe("livenessProbe", pod_ip=str(REPLICAS[name])) == 200


def test_a_node_is_ready_when_every_peer_has_a_way(cluster: Cluster) -> None:
    cluster.start("a", "b")
    time.sleep(2)
    assert cluster.pods["a"].probe("startupProbe") == 0, "there is no mesh yet"
    cluster.plane.apply(mesh(meshCIDR="10.100.0.0/24", relay={"mode": "auto", "provider": "managed"}))
    for name in "ab":
        cluster.running[name].wait_for_output('"agent.started"', START_S)
        for kind in ("startupProbe", "livenessProbe"):
            assert cluster.pods[name].probe(kind) == 200
        wait_until(lambda name=name: cluster.ready(name) == 200, f"{name} is ready", START_S)  # type: ignore[misc]


def test_agents_at_home_at_different_replicas_reach_each_other(cluster: Cluster) -> None:
    pings = Pings(cluster.lab, cluster.nodes["a"], _address(cluster, "b"))
    pings.wait_back()
    pings.stop()
    for name in "ab":
        known = {one["address"] for one in cluster.agent(name)["relays"]}
        assert known == {f"{address}:3478" for address in REPLICAS.values()}
    registered = {name: {one["key"] for one in cluster.relay(name)["peers"]} for name in REPLICAS}
    for name in "ab":
        assert cluster.agent(name)["public_key"] in registered[cluster.home(name)]


def test_a_replica_that_is_shut_down_says_so_and_its_agents_move_without_a_loss(cluster: Cluster) -> None:
    pings = Pings(cluster.lab, cluster.nodes["a"], _address(cluster, "b"))
    pings.wait_back()
    leaving = cluster.home("b")
    (other,) = set(REPLICAS) - {leaving}
    told_at = time.time()
    cluster.running[leaving].terminate()
    wait_until(lambda: cluster.ready(leaving) != 200, "it isn't ready any more", 5.0)
    assert cluster.ready(leaving) == 503, cluster.running[leaving].output()[-3000:]
    cluster.dns(other)
    wait_until(lambda: {cluster.home(name) for name in "ab"} == {other}, "both are at the other", 15.0)
    cluster.stop(leaving)
    assert time.time() - told_at < cluster.pods[leaving].spec["terminationGracePeriodSeconds"]
    lost = [
        one for one in pings.timeline().gaps() if one.end_s is None or one.end_s > told_at - pings.started_at
    ]
    assert lost == []
    cluster.start(leaving)
    wait_until(lambda: cluster.ready(leaving) == 200, "another one is there in its place", START_S)
    cluster.dns("r1", "r2")
    wait_until(
        lambda: all(len(cluster.agent(name)["relays"]) == 2 for name in "ab"), "both are known again", 60.0
    )
    pings.stop()


def _address(cluster: Cluster, name: str) -> IPv4Address:
    peer = cluster.plane.get("wkpeer", name)
    return IPv4Address(peer["spec"]["allowedIPs"][0].removesuffix("/32"))


def test_a_relay_whose_container_is_restarted_while_the_api_is_away_lets_in_those_it_knew(
    cluster: Cluster,
) -> None:
    with cluster.plane.away():
        cluster.running["r1"].kill()
        cluster.running.pop("r1").wait()
        cluster.start("r1")
        wait_until(lambda: cluster.ready("r1") == 200, "it is ready", START_S)
        assert cluster.relay("r1")["admission_problem"] != ""
        wait_until(
            lambda: cluster.relay("r1")["connections"] > 0 or cluster.home("a") == cluster.home("b") == "r2",
            "who is at home there is let in",
            30.0,
        )
        assert '"admission.from_memory"' in cluster.running["r1"].output()
    wait_until(lambda: cluster.relay("r1")["admission_problem"] == "", "it follows again", 60.0)


def test_a_relay_that_never_saw_the_api_is_not_ready_until_it_does(cluster: Cluster) -> None:
    cluster.stop("r1")
    cluster.nodes["r1"].run("find", "/var/lib/wirekube", "-type", "f", "-delete")
    with cluster.plane.away():
        cluster.start("r1")
        cluster.running["r1"].wait_for_output('"relay_key.awaited"', START_S)
        assert cluster.ready("r1") != 200
    wait_until(lambda: cluster.ready("r1") == 200, "it is ready when the API is there", START_S)


def test_a_pod_ends_within_its_grace_period(cluster: Cluster) -> None:
    for name in "ab":
        cluster.stop(name)
