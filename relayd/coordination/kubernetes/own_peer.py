"""This node's own resource: whether to make it, what to put right in it, and when to leave it be. Pure.

    there is one                                      it is kept: publicKey, endpoint, our part of allowedIPs
    there is none, and never was                      it is made
    there is none, and there was                      somebody deleted it: removed
    ... but the node was registered anew since, or    it is made: the old one went with the node, or was
        the mesh is another one                       another cluster's
    removed, and there is one again                   somebody wants the node back: it is kept

What says that there was one is a file of the node's (the tombstone is on the node, not in the API): a
finalizer would hold up `kubectl delete` for as long as the node is away, which is when nodes are deleted; and
a resource that says "deleted" would have to be read, and cleared, by all the others for ever. The price: a
node whose state directory was wiped has forgotten it, and makes its resource anew. `relayd cleanup` removes
the file with all the rest, so that a node which is labelled again joins again.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from msgspec import Struct

from relayd.coordination.kubernetes import resources
from relayd.coordination.kubernetes.resources import (
    ALLOWED_IPS_ANNOTATION,
    GROUP,
    NODE_LABEL,
    VERSION,
    Node,
    Peer,
)


class Identity(Struct, frozen=True):
    """Which resources were this node's, by uid; "": none yet."""

    mesh: str = ""
    node: str = ""
    peer: str = ""


class Own(Enum):
    """What to do about the resource."""

    MAKE = "make"
    KEEP = "keep"
    REMOVED = "removed"


def decide(peer: Peer | None, before: Identity, *, mesh_uid: str, node_uid: str) -> Own:
    """The table above. `node_uid` is "" when the node can't be read."""
    if peer is not None:
        return Own.KEEP
    if not before.peer:
        return Own.MAKE
    if before.mesh != mesh_uid or (node_uid and before.node and before.node != node_uid):
        return Own.MAKE
    return Own.REMOVED


def new_peer(
    name: str, node: Node | None, *, public_key: str, endpoint: str, allowed_ips: tuple[str, ...]
) -> dict[str, Any]:
    """The resource at the node's first start. It goes when the Node does, by its owner reference."""
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {NODE_LABEL: name[:63].rstrip("-._")},
        "annotations": {ALLOWED_IPS_ANNOTATION: ",".join(allowed_ips)},
    }
    if node is not None and node.metadata.uid:
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Node", "name": node.metadata.name, "uid": node.metadata.uid}
        ]
    spec: dict[str, Any] = {"publicKey": public_key, "allowedIPs": list(allowed_ips)}
    if endpoint:
        spec["endpoint"] = endpoint
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "WireKubePeer", "metadata": metadata, "spec": spec}


def correction(
    peer: Peer, *, public_key: str, endpoint: str, allowed_ips: tuple[str, ...]
) -> dict[str, Any] | None:
    """A merge patch (RFC 7396) that puts the agent's part right; None: it is right.

    `endpoint` "": whatever is there. Allowed IPs that are neither ours now nor were are somebody else's and
    stay. The patch is refused when the resource has changed since it was read.
    """
    noted = peer.metadata.annotations.get(ALLOWED_IPS_ANNOTATION, "")
    before = [one for one in noted.split(",") if one]
    others = [one for one in peer.spec.allowedIPs if one not in before and one not in allowed_ips]
    # Ours first: agents that take their tunnel's source address from here take the first.
    wanted = (*allowed_ips, *others)
    spec: dict[str, Any] = {}
    if peer.spec.publicKey != public_key:
        spec["publicKey"] = public_key
    if endpoint and peer.spec.endpoint != endpoint:
        spec["endpoint"] = endpoint
    if set(peer.spec.allowedIPs) != set(wanted):
        spec["allowedIPs"] = list(wanted)
    noting = ",".join(allowed_ips)
    metadata: dict[str, Any] = {"annotations": {ALLOWED_IPS_ANNOTATION: noting}} if noted != noting else {}
    if not spec and not metadata:
        return None
    patch: dict[str, Any] = {"metadata": {"resourceVersion": peer.metadata.resourceVersion, **metadata}}
    return {**patch, "spec": spec} if spec else patch


def path_of(name: str) -> str:
    """Where a peer's resource is."""
    return f"{resources.PEERS}/{name}"
