"""docs/kubernetes.md, "Removing a node": its commands as they stand there, on a cluster with three agents."""

from __future__ import annotations

import re

import pytest

from relayd.demo.lab import RELAYD, Lab
from tests.helpers.netns import START_S, wait_until
from tests.helpers.node_page import blocks_of
from tests.kube.control_plane import NAMESPACE, ROOT, ControlPlane
from tests.kube.kubelet import Kubelet
from tests.kube.nodes import MESH, STATE, Nodes
from tests.kube.objects import mesh

KUBELETS: dict[str, Kubelet] = {}
BLOCKS = blocks_of(ROOT / "docs/kubernetes.md")
GONE_S = 2.0


@pytest.fixture(scope="module")
def nodes(lab_of_module: Lab) -> Nodes:
    cluster = ControlPlane(lab_of_module, "--kubelet-preferred-address-types=ExternalIP")
    cluster.shell(BLOCKS["install"])
    cluster.established()
    cluster.apply(mesh(**MESH))
    made = Nodes(lab_of_module, cluster)
    made.relay.relayd("serve", "--open", "--state", "/run/relay", "--http", "off")
    for name in made.named:
        made.patch("node", name, {"metadata": {"labels": {"wirekube.io/vpn-enabled": "true"}}})
        made.start(name)
    for name in made.named:
        made.agents[name].wait_for_output('"agent.started"', 60)
    KUBELETS.update({name: Kubelet(cluster, made.named[name], name) for name in "bc"})
    return made


def run(nodes: Nodes, block: str, node: str) -> str:
    """A block of the page, pasted with its first line filled in."""
    return nodes.cluster.shell(BLOCKS[block].replace("NODE=<node-name>", f"NODE={node}"))


def daemon_set_obeys_the_label(nodes: Nodes, name: str) -> None:
    """What the DaemonSet's controller does, where there is none: a pod goes when its node isn't selected."""
    labels = nodes.cluster.get("node", name)["metadata"].get("labels", {})
    selector = nodes.cluster.get("daemonset", "wirekube-agent", "-n", NAMESPACE)
    wanted = selector["spec"]["template"]["spec"]["nodeSelector"]
    assert any(labels.get(key) != value for key, value in wanted.items() if key.startswith("wirekube.io/"))
    nodes.stop(name)


def kubelet_runs_the_job(nodes: Nodes, name: str) -> tuple[int, str]:
    """Run the command of the Job's container where its pod would run. -> exit status, log"""
    job = nodes.cluster.get("job", f"wirekube-cleanup-{name}", "-n", NAMESPACE)
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeName"] == name
    assert pod["hostNetwork"] is True
    (container,) = pod["containers"]
    assert "command" not in container, "the image's entry point is relayd"
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert {"/var/lib/wirekube", "/run/relayd"} <= mounts
    # (State and control socket are the node's own, below /run, as kubelet would mount the host's.)
    process = nodes.named[name].start(*RELAYD, *container["args"], "--state", STATE)
    status = process.wait(START_S)
    said = process.output()
    nodes.lab.discard(process)
    KUBELETS[name].ran(job, said, ok=status == 0)
    return status, said


def test_the_page_has_these_blocks() -> None:
    assert {"label", "delete", "job", "verify", "one-liner", "install", "join"} <= set(BLOCKS)


def test_a_deleted_node_that_still_runs_stops_routing_and_stays_out(nodes: Nodes) -> None:
    """The order was wrong: the resource went while the agent ran. It must not come back by itself."""
    nodes.pings("a", "c")
    key = nodes.key("c")
    nodes.cluster.kubectl("delete", "wirekubepeer", "c", "--wait=false")
    for other in "ab":
        wait_until(lambda o=other: key not in nodes.wg(o, "peers"), f"{other} drops c", GONE_S)  # type: ignore[misc]
    wait_until(lambda: nodes.wg("c", "peers") == "" and nodes.routes("c") == "", "c stops routing", GONE_S)
    status = nodes.status("c")
    assert status["cluster"]["removed"] is True
    assert any("was deleted" in line for line in status["cluster"]["problems"])
    assert nodes.events("c", "peer.deleted")
    # Nor does it when it is started again, or when the API server comes back.
    nodes.stop("c")
    nodes.start("c").wait_for_output('"agent.started"', 60)
    assert nodes.status("c")["cluster"]["removed"] is True
    assert nodes.peer("c") == {}
    assert nodes.wg("c", "peers") == ""


def test_an_operator_brings_it_back_by_making_its_resource(nodes: Nodes) -> None:
    public_key = nodes.wg("c", "public-key").strip()
    made = {"apiVersion": "wirekube.io/v1alpha1", "kind": "WireKubePeer", "metadata": {"name": "c"}}
    nodes.cluster.apply(made | {"spec": {"publicKey": public_key}})
    wait_until(lambda: not nodes.status("c")["cluster"]["removed"], "c is back", 10)
    wait_until(lambda: nodes.peer("c")["spec"].get("allowedIPs"), "it has an address", 15)
    nodes.pings("a", "c")


def test_the_guide_to_the_letter(nodes: Nodes) -> None:
    key = nodes.key("c")
    run(nodes, "label", "c")
    daemon_set_obeys_the_label(nodes, "c")
    assert key in nodes.wg("a", "peers"), "until its resource goes, others go on"
    run(nodes, "delete", "c")
    for other in "ab":
        wait_until(lambda o=other: key not in nodes.wg(o, "peers"), f"{other} drops c", GONE_S)  # type: ignore[misc]
        wait_until(
            lambda o=other: all(one["key"] != key for one in nodes.status(o)["peers"]),  # type: ignore[misc]
            f"{other} forgets its relayed path",
            GONE_S,
        )
    run(nodes, "job", "c")
    status, said = kubelet_runs_the_job(nodes, "c")
    assert status == 0, said
    assert "end that process" in said  # wireguard-go's interface goes with wireguard-go
    for gone in ("rule", "privatekey", "cluster.json"):
        assert re.search(rf"^removed: .*{gone}", said, re.MULTILINE), said
    assert "22347" not in nodes.named["c"].run("ip", "rule")
    shown = run(nodes, "verify", "c")
    assert said.strip() in shown, "kubectl logs shows what was removed"
    assert nodes.cluster.get("job", "-n", NAMESPACE)["items"] == []
    run(nodes, "job", "c")
    again, said = kubelet_runs_the_job(nodes, "c")
    assert again == 0, said
    run(nodes, "verify", "c")


def test_the_job_fails_beside_an_agent_and_says_why(nodes: Nodes) -> None:
    run(nodes, "job", "b")
    status, said = kubelet_runs_the_job(nodes, "b")
    assert status != 0
    assert "stop it first" in said
    nodes.cluster.kubectl("delete", "job", "-n", NAMESPACE, "wirekube-cleanup-b")
    nodes.pings("a", "b")


def test_a_cleaned_up_node_that_is_labelled_again_joins_with_a_new_key(nodes: Nodes) -> None:
    run(nodes, "join", "c")
    assert nodes.cluster.get("node", "c")["metadata"]["labels"]["wirekube.io/vpn-enabled"] == "true"
    nodes.restart_wireguard("c")
    nodes.start("c").wait_for_output('"agent.started"', 60)
    wait_until(lambda: nodes.peer("c"), "c has a resource", 20)
    nodes.pings("a", "c")


def test_the_one_liner(nodes: Nodes) -> None:
    key = nodes.key("b")
    run(nodes, "label", "b")
    daemon_set_obeys_the_label(nodes, "b")
    run(nodes, "one-liner", "b")
    wait_until(lambda: key not in nodes.wg("a", "peers"), "a drops b", GONE_S)
    status, said = kubelet_runs_the_job(nodes, "b")
    assert status == 0, said
    assert nodes.peer("b") == {}
