"""config/: every manifest is taken by a real API server, and refuses what it should."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import relayd
from relayd.errors import HostError
from tests.kube.control_plane import NAMESPACE, ROOT, ControlPlane
from tests.kube.objects import KEY, mesh, peer

CONFIG = ROOT / "config"
EXAMPLES = sorted((CONFIG / "examples").glob("*.yaml"))
MANIFESTS = sorted(
    path
    for path in CONFIG.rglob("*.yaml")
    if path.name not in ("kustomization.yaml", "cleanup-job.yaml") and path not in EXAMPLES
)


POD_MONITORS: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"kind": "PodMonitor", "plural": "podmonitors"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
            }
        ],
    },
}
"""By name alone: what else is right there, the Prometheus Operator says."""


def test_every_manifest_is_in_the_kustomization() -> None:
    listed = re.findall(r"^  - (\S+\.yaml)$", (CONFIG / "kustomization.yaml").read_text(), re.MULTILINE)
    assert sorted(CONFIG / name for name in listed) == MANIFESTS


def test_the_image_is_of_this_version_everywhere() -> None:
    tags = [re.findall(r"image: relayd:(\S+)", path.read_text()) for path in CONFIG.rglob("*.yaml")]
    assert {tag for found in tags for tag in found} == {relayd.__version__}
    assert f"newTag: {relayd.__version__}" in (CONFIG / "kustomization.yaml").read_text()


def test_each_port_that_the_relay_answers_on_is_let_through() -> None:
    """STUN's second one too: without it agents don't find out how their NATs filter."""
    exposed = set(re.findall(r"(\d+)/(tcp|udp)", (ROOT / "Dockerfile").read_text()))
    container = re.findall(
        r"name: (\S+), containerPort: (\d+), protocol: (\S+)}", (CONFIG / "relay/deployment.yaml").read_text()
    )
    assert {(port, protocol.lower()) for _, port, protocol in container} == exposed
    allowed = re.findall(r"port: ([a-z-]+), protocol", (CONFIG / "relay/network-policy.yaml").read_text())
    assert {name for name, _, _ in container} == set(allowed)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(CONFIG)))
def test_a_manifest_passes_a_dry_run_on_the_server(cluster: ControlPlane, path: Path) -> None:
    cluster.kubectl("apply", "-f", str(CONFIG / "namespace.yaml"))
    said = cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", str(path))
    assert "serverside-applied (server dry run)" in said


def test_all_of_it_is_installed_by_one_command_and_a_second_time(installed: ControlPlane) -> None:
    before = installed.get("all,pdb,netpol,sa", "-n", NAMESPACE)["items"]
    assert {f"{one['kind']}/{one['metadata']['name']}" for one in before} >= {
        "DaemonSet/wirekube-agent",
        "Deployment/wirekube-relay",
        "Service/wirekube-relay",
        "Service/wirekube-relay-headless",
        "PodDisruptionBudget/wirekube-relay",
        "NetworkPolicy/wirekube-relay",
        "ServiceAccount/wirekube-agent",
        "ServiceAccount/wirekube-cleanup",
    }
    installed.install()
    assert installed.get("all,pdb,netpol,sa", "-n", NAMESPACE)["items"] == before


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_taken(installed: ControlPlane, path: Path) -> None:
    others = [POD_MONITORS] if "monitoring.coreos.com" in path.read_text() else []
    for one in others:
        installed.apply(one)
        name = f"crd/{one['metadata']['name']}"
        installed.kubectl("wait", "--for=condition=Established", "--timeout=30s", name)
    installed.kubectl("apply", "--server-side", "--dry-run=server", "-f", str(path))
    for one in others:
        installed.kubectl("delete", "crd", one["metadata"]["name"])


def test_the_agent_has_two_capabilities_and_runs_where_the_label_is(installed: ControlPlane) -> None:
    pod = installed.get("daemonset", "wirekube-agent", "-n", NAMESPACE)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["nodeSelector"]["wirekube.io/vpn-enabled"] == "true"
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    paths = {one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one}
    assert {"/var/lib/wirekube", "/run/relayd"} <= paths


def test_relays_are_spread_keep_one_and_run_as_nobody(installed: ControlPlane) -> None:
    spec = installed.get("deployment", "wirekube-relay", "-n", NAMESPACE)["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["replicas"] >= 2
    (spread,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    labels = spread["podAffinityTerm"]["labelSelector"]["matchLabels"]
    assert labels == spec["selector"]["matchLabels"]
    assert labels.items() <= spec["template"]["metadata"]["labels"].items()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    budget = installed.get("pdb", "wirekube-relay", "-n", NAMESPACE)["spec"]
    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, labels)
    for name, cluster_ip in (("wirekube-relay", None), ("wirekube-relay-headless", "None")):
        service = installed.get("service", name, "-n", NAMESPACE)["spec"]
        ports = {(one["protocol"], one["port"]) for one in service["ports"]}
        assert ports == {("TCP", 3478), ("UDP", 3478), ("UDP", 3479)}
        assert service["selector"] == labels
        assert cluster_ip in (None, service["clusterIP"])
    policy = installed.get("netpol", "wirekube-relay", "-n", NAMESPACE)["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


@pytest.mark.parametrize("kind", ["deployment/wirekube-relay", "daemonset/wirekube-agent"])
def test_every_container_has_probes_requests_and_limits(installed: ControlPlane, kind: str) -> None:
    spec = installed.get(kind, "-n", NAMESPACE)["spec"]["template"]["spec"]
    for container in spec["containers"]:
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
        assert all("httpGet" in container[probe] for probe in container if probe.endswith("Probe"))
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"]
        assert not container["securityContext"]["privileged"]


def test_agents_are_updated_one_at_a_time(installed: ControlPlane) -> None:
    strategy = installed.get("daemonset", "wirekube-agent", "-n", NAMESPACE)["spec"]["updateStrategy"]
    assert (strategy["type"], strategy["rollingUpdate"]["maxUnavailable"]) == ("RollingUpdate", 1)


def test_short_names_and_columns(installed: ControlPlane) -> None:
    installed.apply(peer("columns", publicKey=KEY, endpoint="192.0.2.9:51820", allowedIPs=["10.100.0.9/32"]))
    try:
        header, row = installed.kubectl("get", "wkpeer").splitlines()[:2]
        assert header.split() == ["NAME", "ENDPOINT", "ALLOWEDIPS", "CONNECTED", "NAT", "REPORTED", "AGE"]
        assert row.split()[:3] == ["columns", "192.0.2.9:51820", '["10.100.0.9/32"]']
        assert installed.get("wkpeer", "columns")["spec"]["persistentKeepalive"] == 25
    finally:
        installed.kubectl("delete", "wkpeer", "columns")
    installed.apply(mesh())
    try:
        row = installed.kubectl("get", "wkmesh").splitlines()[1]
        assert row.split()[:3] == ["default", "51820", "wire_kube"]
    finally:
        installed.kubectl("delete", "wkmesh", "default")


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (peer("a", publicKey="nonsense"), "spec.publicKey"),
        (peer("a", publicKey=KEY[:-2] + "R="), "spec.publicKey"),
        (peer("a", endpoint="192.0.2.1"), "spec.endpoint"),
        (peer("a", endpoint="2001:db8::1:51820"), "spec.endpoint"),
        (peer("a", allowedIPs=["10.0.0.1"]), "spec.allowedIPs"),
        (peer("a", persistentKeepalive=70000), "spec.persistentKeepalive"),
        (peer("a", publickey=KEY), "unknown field"),
        (mesh(listenPort=80), "spec.listenPort"),
        (mesh(interfaceName="a/b"), "spec.interfaceName"),
        (mesh(mtu=100), "spec.mtu"),
        (mesh(stunServers=["one.example.net:3478"]), "spec.stunServers"),
        (mesh(meshCIDR="10.0.0.0"), "spec.meshCIDR"),
        (mesh(apiServerURL="http://api.example.net"), "spec.apiServerURL"),
        (mesh(relay={"mode": "sometimes"}), "spec.relay.mode"),
        (mesh(relay={"provider": "external"}), "needs external.endpoint"),
        (mesh(relay={"provider": "external", "external": {"endpoint": ""}}), "needs external.endpoint"),
        (mesh(relay={"external": {"endpoint": "r:1", "transport": "udp"}}), "external.transport"),
        (mesh(routing={"localSubnetPolicy": "never"}), "routing.localSubnetPolicy"),
        (mesh(natTraversal={"birthdayAttack": "yes"}), "natTraversal.birthdayAttack"),
        (mesh(relay={"handshakeTimeoutSeconds": 2}), "relay.handshakeTimeoutSeconds"),
        (mesh(relay={"provider": "external", "external": {"endpoint": "relay"}}), "external.endpoint"),
    ],
)
def test_what_is_wrong_is_refused_where_it_is(
    installed: ControlPlane, made: dict[str, object], complaint: str
) -> None:
    with pytest.raises(HostError, match=re.escape(complaint)):
        installed.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(made))


WIREKUBES = [
    {"stunServers": ["stun.example.net:3478", "stun:stun.example.org:19302"], "meshCIDR": "172.31.240.0/20"},
    {
        "relay": {
            "mode": "auto",
            "provider": "external",
            "external": {"controlEndpoint": "wss://relay.example.net/relay", "transport": "wss"},
            "handshakeTimeoutSeconds": 30,
            "directRetryIntervalSeconds": 120,
        }
    },
    {
        "relay": {
            "provider": "managed",
            "managed": {
                "replicas": 1,
                "serviceType": "NodePort",
                "port": 3478,
                "resources": {"cpuLimit": "500m"},
            },
        },
        "natTraversal": {
            "birthdayAttack": "enabled",
            "handshakeValidWindowSeconds": 10,
            "healthProbeTimeoutSeconds": 5,
            "directConnectedWindowSeconds": 300,
        },
        "routing": {"localSubnetPolicy": "bypass", "excludeCIDRs": ["10.0.0.0/8"]},
        "autoAllowedIPs": {"includeNodeInternalIP": True},
    },
    {"autoAllowedIPs": {"strategy": "node-internal-ip"}, "podCIDRRouting": {"enabled": True}},
]
"""Meshes with the fields of its versions."""


@pytest.mark.parametrize("spec", WIREKUBES, ids="-".join)
def test_wirekubes_own_meshes_are_taken_whole(installed: ControlPlane, spec: dict[str, object]) -> None:
    installed.apply(mesh(**spec))
    try:
        found = installed.get("wkmesh", "default")["spec"]
        assert json.dumps(_without_defaults(found, spec), sort_keys=True) == json.dumps(spec, sort_keys=True)
    finally:
        installed.kubectl("delete", "wkmesh", "default")


def _without_defaults(found: object, asked: object) -> object:
    """`found`, as far as something of it was asked for."""
    if isinstance(found, dict) and isinstance(asked, dict):
        return {key: _without_defaults(value, asked[key]) for key, value in found.items() if key in asked}
    return found


def test_a_newer_agents_status_is_kept_whole(installed: ControlPlane) -> None:
    installed.apply(peer("newer", publicKey=KEY))
    try:
        told = {"bindMode": "proxied", "lastReportedAt": "2026-01-02T03:04:05Z", "somethingNew": {"a": 1}}
        patch = ("patch", "wkpeer", "newer", "--subresource=status", "--type=merge", "-p")
        installed.kubectl(*patch, json.dumps({"status": told}))
        assert installed.get("wkpeer", "newer")["status"] == told
    finally:
        installed.kubectl("delete", "wkpeer", "newer")


def test_the_cleanup_job_is_filled_in_by_the_guides_command(installed: ControlPlane) -> None:
    name = "wirekube-cleanup-node-a.example"
    installed.shell(
        "NODE=node-a.example\n"
        'sed "s/TARGET_NODE_NAME/$NODE/g" config/cleanup/cleanup-job.yaml | kubectl apply -f -'
    )
    try:
        pod = installed.get("job", name, "-n", NAMESPACE)["spec"]["template"]["spec"]
        assert pod["nodeName"] == "node-a.example"
        assert pod["tolerations"] == [{"operator": "Exists"}]
        (container,) = pod["containers"]
        assert (container["image"], container["args"]) == (f"relayd:{relayd.__version__}", ["cleanup"])
    finally:
        installed.kubectl("delete", "job", "-n", NAMESPACE, name)
