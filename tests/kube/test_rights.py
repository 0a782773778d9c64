"""RBAC and admission: an agent changes the resource of its own node, reads the rest, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from relayd.errors import HostError
from tests.kube.control_plane import NAMESPACE, ControlPlane
from tests.kube.objects import KEY, mesh, peer


@pytest.fixture(scope="module")
def token(installed: ControlPlane) -> Iterator[str]:
    installed.apply(peer("b", publicKey=KEY), mesh())
    yield installed.pod_token("a")
    installed.delete_pod("wirekube-agent-a")
    installed.kubectl("delete", "wkpeer,wkmesh,node", "--all")


def refused(cluster: ControlPlane, token: str, *arguments: str, stdin: str = "") -> str:
    with pytest.raises(HostError) as caught:
        cluster.as_agent(token, *arguments, stdin=stdin)
    return str(caught.value)


def merge(kind: str, name: str, patch: object, *more: str) -> tuple[str, ...]:
    return ("patch", kind, name, "--type=merge", "-p", json.dumps(patch), *more)


ENDPOINT = {"spec": {"endpoint": "192.0.2.66:51820"}}
STATUS = {"status": {"connected": True}}


def test_an_agent_makes_and_keeps_the_resource_of_its_node(installed: ControlPlane, token: str) -> None:
    installed.as_agent(token, "create", "-f", "-", stdin=json.dumps(peer("a", publicKey=KEY)))
    installed.as_agent(token, *merge("wkpeer", "a", ENDPOINT))
    installed.as_agent(token, *merge("wkpeer", "a", STATUS, "--subresource=status"))
    found = installed.get("wkpeer", "a")
    assert found["spec"]["endpoint"] == "192.0.2.66:51820"
    assert found["status"]["connected"] is True


def test_an_agent_reads_what_it_needs(installed: ControlPlane, token: str) -> None:
    for what in ("wkpeer", "wkmesh", "node"):
        assert installed.as_agent(token, "get", what)


def test_an_agent_cannot_write_another_nodes(installed: ControlPlane, token: str) -> None:
    before = installed.get("wkpeer", "b")
    for said in (
        refused(installed, token, "create", "-f", "-", stdin=json.dumps(peer("c", publicKey=KEY))),
        refused(installed, token, *merge("wkpeer", "b", ENDPOINT)),
        refused(installed, token, *merge("wkpeer", "b", STATUS, "--subresource=status")),
    ):
        assert 'the agent of node "a" may not write WireKubePeer' in said
    assert installed.get("wkpeer", "b") == before
    assert installed.kubectl("get", "wkpeer", "c", "--ignore-not-found") == ""


def test_a_token_of_no_pod_writes_nothing(installed: ControlPlane, token: str) -> None:
    unbound = installed.kubectl("create", "token", "wirekube-agent", "-n", NAMESPACE).strip()
    assert installed.as_agent(unbound, "get", "wkpeer")
    assert 'the agent of node ""' in refused(installed, unbound, *merge("wkpeer", "b", ENDPOINT))


@pytest.mark.parametrize(
    "arguments",
    [
        ("delete", "wkpeer", "b"),
        ("delete", "wkpeer", "a"),
        merge("wkmesh", "default", {"spec": {"mtu": 1300}}),
        merge("node", "a", {"metadata": {"annotations": {"a": "b"}}}),
        ("get", "secrets", "-n", NAMESPACE),
        ("get", "pods", "-n", NAMESPACE),
    ],
    ids=" ".join,
)
def test_an_agent_may_not(installed: ControlPlane, token: str, arguments: tuple[str, ...]) -> None:
    assert "is forbidden" in refused(installed, token, *arguments)


def test_a_relay_reads_peers_and_nothing_else(installed: ControlPlane, token: str) -> None:
    relays = installed.kubectl("create", "token", "wirekube-relay", "-n", NAMESPACE).strip()
    assert installed.as_agent(relays, "get", "wkpeer")
    assert "is forbidden" in refused(installed, relays, *merge("wkpeer", "b", ENDPOINT))
    assert "is forbidden" in refused(installed, relays, "get", "wkmesh")


def test_a_relay_makes_the_secret_of_its_key_and_no_other(installed: ControlPlane, token: str) -> None:
    relays = installed.kubectl("create", "token", "wirekube-relay", "-n", NAMESPACE).strip()

    def secret(name: str, kind: str = "Opaque") -> str:
        of_agents = {"kubernetes.io/service-account.name": "wirekube-agent"}
        metadata = {"name": name, "namespace": NAMESPACE, "annotations": of_agents}
        return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind})

    for wrong in (
        secret("other"),
        # The API server would fill this one with a token, which the relay might then read.
        secret("wirekube-relay-key", "kubernetes.io/service-account-token"),
    ):
        assert "a relay may make the Secret wirekube-relay-key" in refused(
            installed, relays, "create", "-f", "-", stdin=wrong
        )
    installed.as_agent(relays, "create", "-f", "-", stdin=secret("wirekube-relay-key"))
    installed.as_agent(relays, "get", "secret", "wirekube-relay-key", "-n", NAMESPACE)
    installed.kubectl("delete", "secret", "wirekube-relay-key", "-n", NAMESPACE)


def test_others_are_not_held_to_the_agents_rule(installed: ControlPlane, token: str) -> None:
    installed.kubectl(*merge("wkpeer", "b", {"spec": {"persistentKeepalive": 30}}))
    assert installed.get("wkpeer", "b")["spec"]["persistentKeepalive"] == 30
