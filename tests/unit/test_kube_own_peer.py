"""A node's own resource: made once, kept right, and never made again when somebody deleted it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from relayd.coordination.kubernetes.own_peer import Identity, Own, correction, decide, new_peer
from relayd.coordination.kubernetes.resources import ALLOWED_IPS_ANNOTATION, Node, Peer

KEY, OTHER = "k" * 43 + "=", "o" * 43 + "="


def peer(noted: str = "10.0.0.1/32", **spec: Any) -> Peer:
    metadata = {
        "name": "a",
        "uid": "peer",
        "resourceVersion": "7",
        "annotations": {ALLOWED_IPS_ANNOTATION: noted} if noted else {},
    }
    spec = {"publicKey": KEY, "endpoint": "192.0.2.1:1", "allowedIPs": ["10.0.0.1/32"]} | spec
    return msgspec.convert({"metadata": metadata, "spec": spec}, Peer)


BEFORE = Identity(mesh="mesh", node="node", peer="peer")


@pytest.mark.parametrize(
    ("there", "before", "mesh", "node", "expected"),
    [
        (True, Identity(), "mesh", "node", Own.KEEP),
        (True, BEFORE, "mesh", "node", Own.KEEP),
        (True, BEFORE, "other", "other", Own.KEEP),
        (False, Identity(), "mesh", "node", Own.MAKE),
        (False, BEFORE, "mesh", "node", Own.REMOVED),
        (False, BEFORE, "mesh", "", Own.REMOVED),
        (False, BEFORE, "mesh", "registered anew", Own.MAKE),
        (False, BEFORE, "another cluster's", "node", Own.MAKE),
    ],
)
def test_what_is_done_about_it(there: bool, before: Identity, mesh: str, node: str, expected: Own) -> None:
    assert decide(peer() if there else None, before, mesh_uid=mesh, node_uid=node) is expected


def test_a_new_one_belongs_to_its_node() -> None:
    node = msgspec.convert({"metadata": {"name": "a", "uid": "node"}}, Node)
    made = new_peer("a", node, public_key=KEY, endpoint="", allowed_ips=("10.0.0.1/32",))
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "node"}
    ]
    assert made["spec"] == {"publicKey": KEY, "allowedIPs": ["10.0.0.1/32"]}


def test_a_long_node_name_makes_a_label_that_is_taken() -> None:
    made = new_peer("n" * 62 + "." + "x" * 100, None, public_key=KEY, endpoint="", allowed_ips=())
    assert made["metadata"]["labels"]["wirekube.io/node"] == "n" * 62


def correct(there: Peer, *, endpoint: str = "", ips: tuple[str, ...] = ("10.0.0.1/32",)) -> Any:
    return correction(there, public_key=KEY, endpoint=endpoint, allowed_ips=ips)


def test_what_is_right_is_not_written() -> None:
    assert correct(peer()) is None
    assert correct(peer(), endpoint="192.0.2.1:1") is None


def test_key_and_endpoint_are_put_right() -> None:
    assert correct(peer(publicKey=OTHER))["spec"] == {"publicKey": KEY}
    assert correct(peer(), endpoint="192.0.2.2:2")["spec"] == {"endpoint": "192.0.2.2:2"}


def test_others_allowed_ips_stay_and_ours_are_followed() -> None:
    both = peer(allowedIPs=["192.168.1.0/24", "10.0.0.1/32"])
    assert correct(both) is None, "their order is nobody's business"
    moved = correct(both, ips=("10.0.0.9/32",))
    assert moved["spec"]["allowedIPs"] == ["10.0.0.9/32", "192.168.1.0/24"]
    assert moved["metadata"]["annotations"] == {ALLOWED_IPS_ANNOTATION: "10.0.0.9/32"}


def test_an_allowed_ip_that_somebody_took_out_comes_back() -> None:
    assert correct(peer(allowedIPs=["192.168.1.0/24"]))["spec"]["allowedIPs"] == [
        "10.0.0.1/32",
        "192.168.1.0/24",
    ]


def test_a_resource_made_by_another_agent_gets_the_note() -> None:
    patch = correct(peer(noted=""))
    assert "spec" not in patch
    assert patch["metadata"]["annotations"] == {ALLOWED_IPS_ANNOTATION: "10.0.0.1/32"}


def test_a_correction_is_of_the_version_that_was_read() -> None:
    assert correct(peer(publicKey=OTHER))["metadata"]["resourceVersion"] == "7"
