"""A cluster that has WireKube's own definitions, and a node whose agent is WireKube's."""

from __future__ import annotations

import json
from ipaddress import ip_network

import pytest

from relayd.coordination.kubernetes.addresses import preferred
from relayd.demo.lab import Lab
from tests.helpers.netns import wait_until
from tests.kube.control_plane import ControlPlane
from tests.kube.nodes import Nodes
from tests.kube.objects import KEY, mesh, peer
from tests.kube.wirekube_definitions import OTHERS, SHARED

STATUS = {
    "connected": True,
    "lastHandshake": "2026-01-02T03:04:05Z",
    "bytesReceived": 123456789012,
    "bytesSent": 42,
    "endpointDiscoveryMethod": "stun",
    "natType": "symmetric",
    "iceCandidates": [
        {"type": "host", "address": "192.168.1.7:51820", "priority": 2130706431},
        {"type": "srflx", "address": "203.0.113.7:40001", "priority": 1694498815},
    ],
    "iceState": "relay",
    "portPrediction": {"basePort": 40001, "increment": 2, "jitter": 1, "samplePorts": [40001, 40003]},
    "connections": {"a": "relay"},
    "relayLatencyMs": 23,
}
"""As its agent writes it."""


MESH = ip_network("10.100.0.0/24")
TAKEN = preferred("a", MESH)


@pytest.fixture(scope="module")
def nodes(lab_of_module: Lab) -> Nodes:
    """With ours installed first, then WireKube's in place of the two that both have, and beside them."""
    cluster = ControlPlane(lab_of_module)
    cluster.install()
    for one in SHARED:
        cluster.kubectl("replace", "-f", "-", stdin=json.dumps(one))
    cluster.apply(*OTHERS)
    made = Nodes(lab_of_module, cluster)
    cluster.apply(mesh(meshCIDR=str(MESH), relay={"mode": "never"}))
    theirs = peer(
        "theirs",
        publicKey=KEY,
        endpoint="203.0.113.7:40001",
        # Its agents don't look who else has an address: this one is a's, by the hash of its name.
        allowedIPs=[f"{TAKEN}/32", "192.168.7.0/24"],
        persistentKeepalive=15,
    )
    cluster.apply(theirs)
    status = json.dumps({"status": STATUS})
    cluster.kubectl("patch", "wkpeer", "theirs", "--subresource=status", "--type=merge", "-p", status)
    made.start("a").wait_for_output('"agent.started"', 60)
    return made


def test_all_four_kinds_are_served(nodes: Nodes) -> None:
    names = [f"crd/{one['metadata']['name']}" for one in (*SHARED, *OTHERS)]
    nodes.cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    assert nodes.cluster.get("wirekubegateways,wirekubeexternalpeers")["items"] == []


def test_a_resource_that_its_agent_wrote_is_read_and_left_alone(nodes: Nodes) -> None:
    before = nodes.peer("theirs")
    assert before["status"] == STATUS
    assert KEY in nodes.wg("a", "peers")
    assert f"{KEY}\t{TAKEN}/32 192.168.7.0/24" in nodes.wg("a", "allowed-ips")
    assert f"{KEY}\t15" in nodes.wg("a", "persistent-keepalive")
    assert f"{KEY}\t203.0.113.7:40001" in nodes.wg("a", "endpoints")
    assert "192.168.7.0/24" in nodes.routes("a")
    assert nodes.status("a")["cluster"]["problems"] == []
    wait_until(lambda: nodes.peer("a").get("status"), "a reports", 30)
    assert nodes.peer("theirs") == before


def test_what_the_definition_has_no_field_for_is_left_out_of_the_status(nodes: Nodes) -> None:
    reported = wait_until(lambda: nodes.peer("a").get("status"), "a reports", 30)
    assert "lastReportedAt" not in reported
    assert reported["connected"] is False
    assert {one["type"] for one in reported["conditions"]} == {"Ready", "Configured"}
    told = nodes.events("a", "status.fields_unknown")
    unknown = [field for line in told for field in line["fields"]]
    assert sorted(unknown) == ["bindMode", "lastReportedAt"], "each is found out once"
    assert nodes.events("a", "status.not_written") == []


def test_our_resource_is_one_that_its_agents_can_read(nodes: Nodes) -> None:
    """Nothing in it that the definition would prune: what its agents decode is all that there is."""
    spec = nodes.peer("a")["spec"]
    assert spec["publicKey"] == nodes.wg("a", "public-key").strip()
    assert spec["allowedIPs"] == [f"{nodes.address('a')}/32"], "the tunnel's address comes first"
    assert set(spec) <= {"publicKey", "endpoint", "allowedIPs", "persistentKeepalive"}


def test_an_address_that_another_node_has_is_not_taken(nodes: Nodes) -> None:
    address = nodes.address("a")
    assert address in MESH
    assert address == MESH[int(TAKEN) - int(MESH[0]) + 1], "the next one"
