"""Resources of a cluster as values, and the node `a` of it."""

from __future__ import annotations

import msgspec

from relayd.coordination.kubernetes.mesh import (
    Self,
    View,
)
from relayd.coordination.kubernetes.resources import Mesh, Node, Peer
from relayd.keys import PrivateKey

KEYS = [PrivateKey(bytes([number]) * 32) for number in range(1, 9)]
ME = Self(name="a", private_key=KEYS[0])


def peer(name: str, key: int = 1, *, made: int = 1, **spec: object) -> Peer:
    spec = {"publicKey": str(KEYS[key].public()), **spec}
    metadata = {"name": name, "uid": f"uid-{name}", "creationTimestamp": f"2026-01-01T00:00:{made:02}Z"}
    return msgspec.convert({"metadata": metadata, "spec": spec}, Peer)


def mesh(**spec: object) -> Mesh:
    metadata = {"name": "default", "uid": "mesh"}
    return msgspec.convert({"metadata": metadata, "spec": {"meshCIDR": "10.100.0.0/16"} | spec}, Mesh)


def node(*addresses: str, **annotations: str) -> Node:
    return msgspec.convert(
        {
            "metadata": {"name": "a", "uid": "node", "annotations": annotations},
            "status": {"addresses": [{"type": "InternalIP", "address": one} for one in addresses]},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
        },
        Node,
    )


def view(*peers: Peer, of: Mesh | None = None, on: Node | None = None) -> View:
    return View(mesh=of or mesh(), peers={one.metadata.name: one for one in peers}, node=on)
