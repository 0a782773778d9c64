"""The resources, as far as an agent looks at them. Fields have the API's names; there are more of them.

What a peer's status says is not decoded: with a thousand nodes that is most of the bytes, and nothing here
depends on it.
"""
# ruff: noqa: N815

from __future__ import annotations

from msgspec import Struct

GROUP = "wirekube.io"
VERSION = "v1alpha1"
API = f"/apis/{GROUP}/{VERSION}"
MESHES, PEERS, NODES = f"{API}/wirekubemeshes", f"{API}/wirekubepeers", "/api/v1/nodes"

ENDPOINT_ANNOTATION = f"{GROUP}/endpoint"
"""On a node: the endpoint to publish, whatever is found. On nothing else."""

BIRTHDAY_ANNOTATION = f"{GROUP}/birthday-attack"
"""On a node: "enabled" or "disabled" there, whatever the mesh says."""

NODE_LABEL = f"{GROUP}/node"
"""On a peer that an agent made: its node."""

ALLOWED_IPS_ANNOTATION = f"{GROUP}/relayd-allowed-ips"
"""On a peer: those of its allowed IPs that the agent put there, with commas between."""


class Meta(Struct, frozen=True):
    """metadata."""

    name: str = ""
    uid: str = ""
    resourceVersion: str = ""
    creationTimestamp: str = ""
    annotations: dict[str, str] = {}
    deletionTimestamp: str = ""


class Resource(Struct, frozen=True):
    """What all have."""

    metadata: Meta

    @property
    def is_gone(self) -> bool:
        """Whether it counts as deleted already, while something (a finalizer) holds up that it is."""
        return False


class PeerSpec(Struct, frozen=True, omit_defaults=True):
    """A node of the mesh."""

    publicKey: str = ""
    endpoint: str = ""
    allowedIPs: tuple[str, ...] = ()
    persistentKeepalive: int = 25


class Peer(Resource, frozen=True):
    """WireKubePeer."""

    spec: PeerSpec = PeerSpec()

    @property
    def is_gone(self) -> bool:
        """Somebody wants the node out of the mesh. A finalizer must not keep it in: its own agent may write
        one there, too."""
        return bool(self.metadata.deletionTimestamp)


class ExternalRelay(Struct, frozen=True):
    """A relay that somebody else runs."""

    endpoint: str = ""
    controlEndpoint: str = ""
    """Where agents connect to, when that is elsewhere."""

    transport: str = ""


class ManagedRelay(Struct, frozen=True):
    """The relay of config/relay, or WireKube's own."""

    port: int = 3478
    controlEndpoint: str = ""
    transport: str = ""


class RelaySpec(Struct, frozen=True):
    """Which relay, and when. Of a time that is 0 nothing was said."""

    mode: str = "auto"
    provider: str = ""
    external: ExternalRelay | None = None
    managed: ManagedRelay | None = None
    handshakeTimeoutSeconds: int = 0
    directRetryIntervalSeconds: int = 0


class NATTraversal(Struct, frozen=True):
    """When a direct path counts as gone. Likewise."""

    birthdayAttack: str = ""
    handshakeValidWindowSeconds: int = 0
    healthProbeTimeoutSeconds: int = 0


class AutoAllowedIPs(Struct, frozen=True):
    """What a node adds to its own allowed IPs."""

    includeNodeInternalIP: bool = False
    strategy: str = ""


class PodCIDRRouting(Struct, frozen=True):
    """Likewise."""

    enabled: bool = False


class RoutingSpec(Struct, frozen=True):
    """What isn't routed."""

    excludeCIDRs: tuple[str, ...] = ()
    localSubnetPolicy: str = ""


class MeshSpec(Struct, frozen=True):
    """The settings of all nodes."""

    interfaceName: str = "wire_kube"
    listenPort: int = 51820
    mtu: int = 1420
    meshCIDR: str = ""
    apiServerURL: str = ""
    stunServers: tuple[str, ...] = ()
    relay: RelaySpec | None = None
    natTraversal: NATTraversal | None = None
    autoAllowedIPs: AutoAllowedIPs | None = None
    podCIDRRouting: PodCIDRRouting | None = None
    routing: RoutingSpec | None = None


class MeshStatus(Struct, frozen=True):
    """Where WireKube's own agents have found its managed relay: its leader writes that, and nobody else."""

    relayEndpoint: str = ""


class Mesh(Resource, frozen=True):
    """WireKubeMesh."""

    spec: MeshSpec = MeshSpec()
    status: MeshStatus = MeshStatus()


class NodeAddress(Struct, frozen=True):
    """One of a node's addresses."""

    type: str = ""
    address: str = ""


class NodeSpec(Struct, frozen=True):
    """What its pods have."""

    podCIDRs: tuple[str, ...] = ()
    podCIDR: str = ""


class NodeStatus(Struct, frozen=True):
    """What kubelet tells of it."""

    addresses: tuple[NodeAddress, ...] = ()


class Node(Resource, frozen=True):
    """Kubernetes' own."""

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()
