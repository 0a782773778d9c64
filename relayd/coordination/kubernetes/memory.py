"""What a node remembers of its cluster, for a start while the API server is away."""

from __future__ import annotations

from msgspec import Struct

from relayd.coordination.kubernetes.own_peer import Identity
from relayd.coordination.kubernetes.resources import Mesh, Node, Peer


class ClusterMemory(Struct, frozen=True):
    """The content of a file in the state directory. Fields of a newer version are left out."""

    node_name: str
    identity: Identity = Identity()
    removed: bool = False
    """This node's resource was deleted under it."""

    mesh: Mesh | None = None
    peers: list[Peer] = []
    node: Node | None = None
    version: int = 1
