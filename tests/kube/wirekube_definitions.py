"""WireKube's own definitions of the four kinds, as far as an agent meets their fields.

Written from what is known of its resources, of a version that has no field for what newer agents report
(`lastReportedAt`, `bindMode`); unlike ours they prune what they don't know. Of the two kinds that relayd has
no use for, only the names are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT: Mapping[str, Any] = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
FLAG = {"type": "boolean"}
INT32 = {"type": "integer", "format": "int32"}
INT64 = {"type": "integer", "format": "int64"}
TIME = {"type": "string", "format": "date-time"}
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _object(required: tuple[str, ...] = (), **fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields} | ({"required": list(required)} if required else {})


def _list(required: tuple[str, ...], **fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": _object(required, **fields)}


_CONDITIONS = _list(
    ("lastTransitionTime", "message", "reason", "status", "type"),
    lastTransitionTime=TIME,
    message={**TEXT, "maxLength": 32768},
    observedGeneration={**INT64, "minimum": 0},
    reason={**TEXT, "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    status={**TEXT, "enum": ["True", "False", "Unknown"]},
    type={**TEXT, "maxLength": 316},
)

_PEER = _object(
    spec=_object(
        publicKey=TEXT,
        endpoint=TEXT,
        allowedIPs=TEXTS,
        persistentKeepalive={**INT32, "minimum": 0, "maximum": 65535, "default": 25},
    ),
    status=_object(
        connected=FLAG,
        lastHandshake=TIME,
        bytesReceived=INT64,
        bytesSent=INT64,
        endpointDiscoveryMethod=TEXT,
        natType=TEXT,
        iceCandidates=_list(("address", "priority", "type"), address=TEXT, priority=INT32, type=TEXT),
        iceState=TEXT,
        portPrediction=_object(
            basePort=INT32, increment=INT32, jitter=INT32, samplePorts={"type": "array", "items": INT32}
        ),
        connections={"type": "object", "additionalProperties": TEXT},
        relayLatencyMs=INT32,
        conditions=_CONDITIONS,
    ),
)

_MESH = _object(
    spec=_object(
        listenPort={**INT32, "default": 51820},
        interfaceName={**TEXT, "default": "wire_kube"},
        mtu={**INT32, "default": 1420},
        meshCIDR=TEXT,
        apiServerURL=TEXT,
        stunServers={**TEXTS, "minItems": 2},
        autoAllowedIPs=_object(includeNodeInternalIP=FLAG),
        relay=_object(
            mode={**TEXT, "enum": ["auto", "always", "never"]},
            provider={**TEXT, "enum": ["external", "managed"]},
            external=_object(endpoint=TEXT, controlEndpoint=TEXT, transport=TEXT),
            managed=_object(replicas=INT32, serviceType=TEXT, port=INT32, image=TEXT),
            handshakeTimeoutSeconds={**INT32, "default": 30},
            directRetryIntervalSeconds={**INT32, "default": 120},
        ),
        routing=_object(localSubnetPolicy=TEXT, excludeCIDRs=TEXTS),
    ),
    status=_object(readyPeers=INT32, totalPeers=INT32, relayEndpoint=TEXT, conditions=_CONDITIONS),
)


def _definition(kind: str, plural: str, schema: Mapping[str, Any], *short_names: str) -> dict[str, Any]:
    names: dict[str, Any] = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
    }
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.wirekube.io"},
        "spec": {
            "group": "wirekube.io",
            "scope": "Cluster",
            "names": names | ({"shortNames": list(short_names)} if short_names else {}),
            "versions": [version],
        },
    }


SHARED = (
    _definition("WireKubeMesh", "wirekubemeshes", _MESH, "wkmesh"),
    _definition("WireKubePeer", "wirekubepeers", _PEER, "wkpeer"),
)
"""Those that we have too, by the same names: in a cluster it is one or the other."""

OTHERS = (
    _definition("WireKubeGateway", "wirekubegateways", ANYTHING),
    _definition("WireKubeExternalPeer", "wirekubeexternalpeers", ANYTHING),
)
