"""Whatever happens to the API server, or to the way there: three nodes keep their mesh."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from relayd.coordination.kubernetes.follower import AWAY_CAP_S
from relayd.demo.lab import Lab
from tests.helpers.netns import Pings, drop_packets, relay_status, wait_until
from tests.kube.control_plane import ADDRESS, PORT, URL
from tests.kube.nodes import INTERFACE, STATE, Nodes, meshed
from tests.kube.objects import KEY, peer

AWAY_S = 60.0

BACK_S = AWAY_CAP_S + 5.0
"""For news from just after the server came back: one wait, a watch, and what a busy machine adds."""

REACTS_S = 30.0
"""For what an agent does by itself: a write may have to wait for ten seconds, a watch for its backoff."""


@pytest.fixture(scope="module")
def nodes(lab_of_module: Lab) -> Iterator[Nodes]:
    for made in meshed(lab_of_module):
        for here, there in ("ab", "bc", "ca"):
            made.pings(here, there)
        yield made


def cut(nodes: Nodes, name: str) -> None:
    """Reset a node's connections to the API server."""
    nodes.named[name].run("ss", "-K", "dst", str(ADDRESS), "dport", "=", str(PORT))


def has(nodes: Nodes, name: str) -> bool:
    """Whether a node's WireGuard has the peer with KEY."""
    return KEY in nodes.wg(name, "peers")


def test_a_watch_that_is_cut_is_taken_up_again(nodes: Nodes) -> None:
    count = len(nodes.events("a", "kubernetes.followed"))
    cut(nodes, "a")
    nodes.cluster.apply(peer("meanwhile", publicKey=KEY, allowedIPs=["10.100.255.9/32"]))
    wait_until(lambda: has(nodes, "a"), "a has what came meanwhile", REACTS_S)
    nodes.cluster.kubectl("delete", "wkpeer", "meanwhile")
    wait_until(lambda: not has(nodes, "a"), "and what went", REACTS_S)
    assert len(nodes.events("a", "kubernetes.followed")) > count
    nodes.pings("a", "b")


def test_after_410_it_lists_anew_and_loses_nothing(nodes: Nodes) -> None:
    """A node that is cut off from the API while old revisions are compacted away."""
    node = nodes.named["a"]
    drop_packets(node, f"ip saddr {ADDRESS}")
    nodes.cluster.apply(peer("unseen", publicKey=KEY, allowedIPs=["10.100.255.9/32"]))
    # A restarted server has no cache from before: what it is asked to go on from must be in etcd.
    with nodes.cluster.away():
        pass
    nodes.cluster.compact()
    assert not has(nodes, "a")
    drop_packets(node)
    wait_until(lambda: nodes.events("a", "kubernetes.expired"), "it is told 410", 60)
    wait_until(lambda: has(nodes, "a"), "a has what it didn't see", REACTS_S)
    nodes.cluster.kubectl("delete", "wkpeer", "unseen")
    wait_until(lambda: not has(nodes, "a"), "and is followed again", REACTS_S)


def test_an_api_server_that_is_killed_for_a_minute_under_traffic_costs_nothing(nodes: Nodes) -> None:
    """And what is deleted the moment that it is back is gone at once."""
    nodes.cluster.apply(peer("doomed", publicKey=KEY, allowedIPs=["10.100.255.9/32"]))
    for name in nodes.named:
        wait_until(lambda name=name: has(nodes, name), f"{name} has it", REACTS_S)  # type: ignore[misc]
    pings = [Pings(nodes.lab, nodes.named[here], nodes.address(to)) for here, to in ("ab", "bc")]
    for one in pings:
        one.wait_back()
    before = {name: (nodes.wg(name, "endpoints"), nodes.routes(name)) for name in nodes.named}
    registered = {one["key"] for one in relay_status(nodes.relay)["peers"]}
    began = time.time()
    with nodes.cluster.away():
        wait_until(lambda: not nodes.status("a")["cluster"]["current"], "a knows", REACTS_S)
        time.sleep(max(0.0, began + AWAY_S - time.time()))
        assert {name: (nodes.wg(name, "endpoints"), nodes.routes(name)) for name in nodes.named} == before
        assert {one["key"] for one in relay_status(nodes.relay)["peers"]} == registered
    nodes.cluster.kubectl("delete", "wkpeer", "doomed", "--wait=false")
    for name in nodes.named:
        wait_until(lambda name=name: not has(nodes, name), f"{name} drops it", BACK_S)  # type: ignore[misc]
        wait_until(lambda name=name: nodes.status(name)["cluster"]["current"], f"{name} follows", BACK_S)  # type: ignore[misc]
    wait_until(lambda: relay_status(nodes.relay)["admission_problem"] == "", "the relay follows", BACK_S)
    for one in pings:
        timeline = one.stop()
        assert [gap for gap in timeline.gaps() if gap.start_s > began - one.started_at] == []


def test_an_agent_starts_from_memory_while_the_api_server_is_away(nodes: Nodes) -> None:
    file = nodes.named["a"].path(f"{STATE}/cluster.json")
    assert file.stat().st_mode & 0o777 == 0o600
    to = nodes.address("b")
    with nodes.cluster.away():
        nodes.stop("a")
        # As after a reboot: nothing of it is there any more.
        nodes.named["a"].ip("route flush table 22347")
        for key in nodes.wg("a", "peers").split():
            nodes.named["a"].run("wg", "set", INTERFACE, "peer", key, "remove")
        started = nodes.start("a")
        started.wait_for_output('"agent.started"', 60)
        assert len(nodes.routes("a").splitlines()) == 2
        assert "from memory" in " ".join(nodes.status("a")["cluster"]["problems"])
        nodes.pings("a", to)
    wait_until(lambda: nodes.status("a")["cluster"]["current"], "it follows again", BACK_S)
    wait_until(lambda: nodes.status("a")["cluster"]["problems"] == [], "and has nothing to complain of", 5)


def test_the_api_server_that_the_mesh_names_is_turned_to_and_left_when_it_does_not_answer(
    nodes: Nodes,
) -> None:
    def server(name: str) -> str:
        return str(nodes.status(name)["cluster"]["api_server"])

    for name in nodes.named:
        wait_until(lambda name=name: nodes.status(name)["cluster"]["current"], f"{name} follows", BACK_S)  # type: ignore[misc]
    assert server("b") == URL
    named = f"https://{ADDRESS}:{PORT}/"  # the same, so that it answers: told apart by how it is written
    nobody = f"https://{ADDRESS}:1"
    nodes.patch("wkmesh", "default", {"spec": {"apiServerURL": nobody}})
    wait_until(lambda: nodes.events("b", "kubernetes.server"), "b turns to it", 5)
    cut(nodes, "b")
    nodes.cluster.apply(peer("followed", publicKey=KEY, allowedIPs=["10.100.255.9/32"]))
    wait_until(lambda: has(nodes, "b"), "b follows by the pod's own", REACTS_S)
    assert server("b") == URL
    # It is remembered: a start where the pod's own environment leads nowhere goes there.
    nodes.patch("wkmesh", "default", {"spec": {"apiServerURL": named}})
    file = nodes.named["c"].path(f"{STATE}/cluster.json")

    def remembered() -> str:
        return str(json.loads(file.read_text())["mesh"]["spec"].get("apiServerURL", ""))

    wait_until(lambda: remembered() == named, "c remembers it", REACTS_S)
    nodes.stop("c")
    nodes.start("c", server=nobody).wait_for_output('"agent.started"', 60)
    wait_until(lambda: nodes.status("c")["cluster"]["current"], "c follows", REACTS_S)
    nodes.stop("c")
    nodes.start("c").wait_for_output('"agent.started"', 60)
    nodes.patch("wkmesh", "default", {"spec": {"apiServerURL": ""}})
    nodes.cluster.kubectl("delete", "wkpeer", "followed")
    for name in nodes.named:
        wait_until(lambda name=name: not has(nodes, name), f"{name} follows", REACTS_S)  # type: ignore[misc]


def test_a_rotated_token_is_taken_up(nodes: Nodes) -> None:
    """The old one ends with its pod, and isn't good for a single request more."""
    nodes.new_token("a", pod="wirekube-agent-a-2")
    nodes.cluster.delete_pod("wirekube-agent-a")
    cut(nodes, "a")
    nodes.cluster.apply(peer("later", publicKey=KEY, allowedIPs=["10.100.255.9/32"]))
    wait_until(lambda: has(nodes, "a"), "a follows with the new one", REACTS_S)
    nodes.cluster.kubectl("delete", "wkpeer", "later")
