"""Three agents make a mesh out of nothing but the API, and keep it whatever happens to that."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from itertools import permutations

import pytest

from relayd import marks
from relayd.demo.lab import RELAYD, Lab
from tests.helpers.netns import Pings, drop_packets, relay_status, status_of, wait_until
from tests.kube.control_plane import ADDRESS, NAMESPACE, PORT
from tests.kube.nodes import INTERFACE, MESH, OTHER_PORT, OTHER_RELAY, RELAY, Nodes, meshed
from tests.kube.objects import KEY, peer

GONE_S = 2.0
"""A peer that was deleted is gone everywhere within this of the event."""

REACTS_S = 30.0
"""For what an agent does by itself: a write may have to wait for ten seconds, a watch for its backoff."""


@pytest.fixture(scope="module")
def nodes(lab_of_module: Lab) -> Iterator[Nodes]:
    yield from meshed(lab_of_module)


def within(limit_s: float, holds: Callable[[], object], what: str) -> None:
    """Wait until it holds, and no longer."""
    wait_until(holds, what, limit_s)


def seen_as(nodes: Nodes, name: str) -> str:
    """A node's endpoint, as the relay's STUN server tells it."""
    return f"{nodes.named[name].addresses['relay']}:51820"


def test_a_mesh_appears_out_of_the_api_alone(nodes: Nodes) -> None:
    for here, there in permutations(nodes.named, 2):
        nodes.pings(here, there)
    found = {name: nodes.peer(name) for name in nodes.named}
    for name, one in found.items():
        node = nodes.cluster.get("node", name)
        assert one["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]
        assert one["spec"]["publicKey"] == nodes.wg(name, "public-key").strip()
    # As the relay sees them; for b and c, that takes the place of the Node's InternalIP.
    for name in nodes.named:
        within(
            REACTS_S,
            lambda name=name: nodes.peer(name)["spec"].get("endpoint") == seen_as(nodes, name),  # type: ignore[misc]
            f"{name}'s endpoint is published",
        )


def test_each_reports_its_connections_with_a_manager_of_its_own(nodes: Nodes) -> None:
    def told(name: str) -> dict[str, str]:
        return dict(nodes.peer(name).get("status", {}).get("connections", {}))

    wanted = {
        "a": {"b": "relay", "c": "relay"},
        "b": {"a": "relay", "c": "direct"},
        "c": {"a": "relay", "b": "direct"},
    }
    for name, connections in wanted.items():
        within(60, lambda name=name, connections=connections: told(name) == connections, f"{name} reports")  # type: ignore[misc]
    one = nodes.peer("b")
    assert one["status"]["connected"] is True
    assert one["status"]["relayLatencyMs"] >= 1
    assert one["status"]["endpointDiscoveryMethod"] == "stun"
    assert one["status"]["natType"] == "open"
    assert one["status"]["iceState"] == "connected"
    assert nodes.peer("a")["status"]["iceState"] in ("checking", "relay", "failed"), "a finds no direct path"
    candidates = {entry["address"]: entry for entry in one["status"]["iceCandidates"]}
    assert candidates[f"{nodes.named['b'].addresses['c']}:51820"]["type"] == "host"
    assert candidates[seen_as(nodes, "b")]["priority"] > 0
    managers = {entry["manager"]: entry for entry in one["metadata"]["managedFields"]}
    assert managers["relayd-agent"]["operation"] == "Apply"
    assert managers["relayd-agent"]["subresource"] == "status"


def test_writes_are_few(nodes: Nodes) -> None:
    before = {name: nodes.peer(name)["metadata"]["resourceVersion"] for name in nodes.named}
    time.sleep(5)
    after = {name: nodes.peer(name)["metadata"]["resourceVersion"] for name in nodes.named}
    assert sum(before[name] != after[name] for name in nodes.named) <= 3, "one write each in five seconds"


def test_the_annotation_wins_over_everything_found(nodes: Nodes) -> None:
    annotated = {"metadata": {"annotations": {"wirekube.io/endpoint": "203.0.113.77:4000"}}}
    nodes.patch("node", "a", annotated)
    within(
        REACTS_S, lambda: nodes.peer("a")["spec"].get("endpoint") == "203.0.113.77:4000", "it is published"
    )
    nodes.patch("node", "a", {"metadata": {"annotations": {"wirekube.io/endpoint": None}}})
    within(
        REACTS_S, lambda: nodes.peer("a")["spec"]["endpoint"] == seen_as(nodes, "a"), "what is found is back"
    )


def test_a_peer_that_is_added_changed_and_deleted_is_followed_within_two_seconds(nodes: Nodes) -> None:
    made = peer("office", publicKey=KEY, endpoint="203.0.113.200:51820", allowedIPs=["10.100.255.1/32"])
    nodes.cluster.apply(made)
    for name in nodes.named:
        within(GONE_S, lambda name=name: KEY in nodes.wg(name, "peers"), f"{name} has it")  # type: ignore[misc]
        within(GONE_S, lambda name=name: "10.100.255.1" in nodes.routes(name), f"{name} routes to it")  # type: ignore[misc]
    nodes.patch(
        "wkpeer", "office", {"spec": {"allowedIPs": ["10.100.255.2/32"], "endpoint": "203.0.113.201:1"}}
    )
    for name in nodes.named:
        within(GONE_S, lambda name=name: "10.100.255.2" in nodes.routes(name), f"{name} follows")  # type: ignore[misc]
        assert "10.100.255.1" not in nodes.routes(name)
    assert "203.0.113.201:1" in nodes.wg("a", "endpoints")
    nodes.cluster.kubectl("delete", "wkpeer", "office", "--wait=false")
    for name in nodes.named:
        within(GONE_S, lambda name=name: KEY not in nodes.wg(name, "peers"), f"{name} drops it")  # type: ignore[misc]
        within(GONE_S, lambda name=name: "10.100.255.2" not in nodes.routes(name), f"{name} drops its route")  # type: ignore[misc]
        within(
            GONE_S,
            lambda name=name: all(one["key"] != KEY for one in nodes.status(name)["peers"]),  # type: ignore[misc]
            f"{name} forgets its relayed path",
        )


def test_a_node_that_reports_nonsense_ends_nobody(nodes: Nodes) -> None:
    deep = '{"a":' * 9000 + "1" + "}" * 9000
    nodes.cluster.apply(peer("odd", publicKey=KEY, allowedIPs=["10.100.255.1/32"]))
    patch = f'{{"status": {{"connected": true, "junk": {deep}}}}}'
    nodes.cluster.kubectl("patch", "wkpeer", "odd", "--subresource=status", "--type=merge", "-p", patch)
    nodes.patch("wkpeer", "odd", {"spec": {"allowedIPs": ["10.100.255.3/32"]}})
    for name in nodes.named:
        within(GONE_S, lambda name=name: "10.100.255.3" in nodes.routes(name), f"{name} goes on")  # type: ignore[misc]
    nodes.cluster.kubectl("delete", "wkpeer", "odd", "--wait=false")


def test_a_peer_that_something_holds_up_being_deleted_is_gone_all_the_same(nodes: Nodes) -> None:
    made = peer("held", publicKey=KEY, endpoint="203.0.113.200:51820", allowedIPs=["10.100.255.1/32"])
    nodes.cluster.apply(made)
    within(GONE_S, lambda: KEY in nodes.wg("a", "peers"), "a has it")
    nodes.patch("wkpeer", "held", {"metadata": {"finalizers": ["example.net/held"]}})
    try:
        nodes.cluster.kubectl("delete", "wkpeer", "held", "--wait=false")
        for name in nodes.named:
            within(GONE_S, lambda name=name: KEY not in nodes.wg(name, "peers"), f"{name} drops it")  # type: ignore[misc]
    finally:
        nodes.patch("wkpeer", "held", {"metadata": {"finalizers": None}})


def test_others_allowed_ips_of_a_node_stay_and_are_routed(nodes: Nodes) -> None:
    own = nodes.peer("c")["spec"]["allowedIPs"]
    nodes.patch("wkpeer", "c", {"spec": {"allowedIPs": [*own, "192.168.77.0/24"]}})
    within(GONE_S, lambda: "192.168.77.0/24" in nodes.routes("a"), "a routes there")
    nodes.patch("wkpeer", "c", {"spec": {"allowedIPs": ["192.168.77.0/24"]}})
    within(
        REACTS_S, lambda: set(nodes.peer("c")["spec"]["allowedIPs"]) == {*own, "192.168.77.0/24"}, "mended"
    )
    nodes.patch("wkpeer", "c", {"spec": {"allowedIPs": own}})
    within(GONE_S, lambda: "192.168.77.0/24" not in nodes.routes("a"), "and no more")
    nodes.pings("a", "c")


def test_settings_of_the_mesh_take_effect_without_a_restart(nodes: Nodes) -> None:
    pings = Pings(nodes.lab, nodes.named["a"], nodes.address("b"))
    pings.wait_back()
    nodes.patch("wkmesh", "default", {"spec": {"mtu": 1380}})
    for name in nodes.named:
        within(
            5,
            lambda name=name: "mtu 1380" in nodes.named[name].run("ip", "link", "show", INTERFACE),  # type: ignore[misc]
            f"{name} has the MTU",
        )
    nodes.patch("wkmesh", "default", {"spec": {"listenPort": 51999}})
    within(5, lambda: nodes.wg("a", "listen-port").strip() == "51999", "a listens there")
    pings.wait_back()
    nodes.patch("wkmesh", "default", {"spec": {"mtu": 1420, "listenPort": 51820}})
    within(5, lambda: nodes.wg("a", "listen-port").strip() == "51820", "and back")
    pings.wait_back()
    pings.stop()


def test_the_times_of_the_mesh_count_at_once(nodes: Nodes) -> None:
    def patience(name: str) -> dict[str, float]:
        return dict(nodes.status(name)["patience"])

    before = patience("a")
    assert before["recheck_cap_s"] == 120, "as the definition has it"
    relay = {"directRetryIntervalSeconds": 45, "handshakeTimeoutSeconds": 20}
    traversal = {"healthProbeTimeoutSeconds": 6, "handshakeValidWindowSeconds": 240}
    nodes.patch("wkmesh", "default", {"spec": {"relay": relay, "natTraversal": traversal}})
    wanted = {"silent_s": 6, "recheck_cap_s": 45, "try_s": 20, "fresh_handshake_s": 240}
    for name in nodes.named:
        within(5, lambda name=name: patience(name) == wanted, f"{name} has them")  # type: ignore[misc]
    back = {"relay": dict.fromkeys(relay), "natTraversal": None}
    nodes.patch("wkmesh", "default", {"spec": back})
    within(5, lambda: patience("a") == before, "and those of before")


def test_what_nodes_route_follows_the_mesh(nodes: Nodes) -> None:
    """InternalIPs (b and c have one), pods' networks, and what is excluded."""
    internal, pods = str(nodes.named["b"].addresses["c"]), "10.244.7.0/24"
    nodes.patch("node", "b", {"spec": {"podCIDR": pods, "podCIDRs": [pods]}})
    nodes.patch(
        "wkmesh",
        "default",
        {"spec": {"autoAllowedIPs": {"includeNodeInternalIP": True}, "podCIDRRouting": {"enabled": True}}},
    )
    for network in (internal, pods):
        within(REACTS_S, lambda network=network: network in nodes.routes("a"), f"a routes {network}")  # type: ignore[misc]
    nodes.patch("wkmesh", "default", {"spec": {"routing": {"excludeCIDRs": ["10.244.0.0/16"]}}})
    within(5, lambda: pods not in nodes.routes("a"), "what is excluded isn't routed")
    assert internal in nodes.routes("a")
    assert internal in nodes.routes("c")
    nodes.patch("wkmesh", "default", {"spec": {"routing": {"localSubnetPolicy": "bypass"}}})
    within(REACTS_S, lambda: internal not in nodes.routes("c"), "c, on the same wire, reaches it there")
    nodes.named["c"].run("ping", "-c1", "-W2", internal)
    assert internal in nodes.routes("a"), "a isn't on it"
    assert pods in nodes.peer("b")["spec"]["allowedIPs"], "b still says what it has"
    nodes.patch(
        "wkmesh", "default", {"spec": {"autoAllowedIPs": None, "podCIDRRouting": None, "routing": None}}
    )
    within(REACTS_S, lambda: internal not in nodes.routes("a"), "and no more")
    within(REACTS_S, lambda: len(nodes.peer("b")["spec"]["allowedIPs"]) == 1, "b has its address alone")


def test_stun_servers_that_the_mesh_names_are_asked_and_silence_changes_nothing(nodes: Nodes) -> None:
    """The second one's answers are another server's; then none answers any more."""

    def published() -> str:
        return str(nodes.peer("a")["spec"]["endpoint"])

    def answers(port: int) -> int:
        status = status_of(nodes.relay, f"/run/relay-{port}.sock")
        return int(status["stun"].get("answered", 0)) if status is not None else 0

    def found() -> list[str]:
        return [one["method"] for one in nodes.status("a")["discovery"]["findings"]]

    seen = published()
    other = nodes.start_relay(OTHER_PORT)
    other.wait_for_output('"relay.started"', 30)
    nodes.patch("wkmesh", "default", {"spec": {"stunServers": [OTHER_RELAY, f"stun:{RELAY}"]}})
    within(REACTS_S, lambda: answers(OTHER_PORT), "it is asked")
    assert "stun" in found()
    drop_packets(nodes.named["a"], "udp sport { 3478, 3479, 3490, 3491 }")
    nodes.stop("a")
    nodes.start("a").wait_for_output('"agent.started"', 60)
    time.sleep(12)  # a look is over by then, and a correction would have been made
    assert "stun" not in found()
    assert published() == seen, "what the resource has stays"
    drop_packets(nodes.named["a"])
    nodes.patch("wkmesh", "default", {"spec": {"stunServers": None}})
    nodes.lab.discard(other)
    nodes.pings("a", "b")


def path(nodes: Nodes, name: str, to: str) -> str:
    """How `name` reaches `to`, by its own words."""
    key = nodes.key(to)
    return next(str(one["path"]) for one in nodes.status(name)["peers"] if one["key"] == key)


def test_relay_mode_never_takes_the_relay_away_and_auto_brings_it_back(nodes: Nodes) -> None:
    nodes.patch("wkmesh", "default", {"spec": {"relay": {"mode": "never"}}})
    for name in nodes.named:
        within(5, lambda name=name: nodes.status(name)["relay"]["state"] == "none", f"{name} has none")  # type: ignore[misc]
    within(5, lambda: relay_status(nodes.relay)["peers"] == [], "nobody is connected to it")
    within(5, lambda: path(nodes, "a", "b") == "none", "a has no way to b")
    nodes.pings("b", "c")
    nodes.patch("wkmesh", "default", {"spec": {"relay": {"mode": "auto"}}})
    within(15, lambda: len(relay_status(nodes.relay)["peers"]) == 3, "all are connected again")
    nodes.pings("a", "b")


def test_a_relay_that_is_named_anew_is_used_without_a_restart(nodes: Nodes) -> None:
    other = nodes.start_relay(OTHER_PORT)
    other.wait_for_output('"relay.started"', 30)
    nodes.patch("wkmesh", "default", {"spec": {"relay": {"external": {"endpoint": OTHER_RELAY}}}})
    for name in nodes.named:
        within(
            15,
            lambda name=name: (  # type: ignore[misc]
                [(one["address"], one["state"]) for one in nodes.status(name)["relays"]]
                == [(OTHER_RELAY, "connected")]
            ),
            f"{name} is connected there",
        )
    assert relay_status(nodes.relay)["peers"] == []
    nodes.pings("a", "b")
    nodes.patch("wkmesh", "default", {"spec": MESH})
    within(15, lambda: len(relay_status(nodes.relay)["peers"]) == 3, "all are back")
    nodes.lab.discard(other)
    nodes.pings("a", "b")


def test_relay_mode_always_relays_those_that_were_direct(nodes: Nodes) -> None:
    within(60, lambda: path(nodes, "b", "c") == "direct", "b and c are direct")
    nodes.patch("wkmesh", "default", {"spec": {"relay": {"mode": "always"}}})
    for name, to in ("bc", "cb"):
        within(10, lambda name=name, to=to: path(nodes, name, to) == "relay", f"{name} relays to {to}")  # type: ignore[misc]
    nodes.pings("b", "c")
    time.sleep(3)  # what comes back is no reason to change over
    assert (path(nodes, "b", "c"), path(nodes, "c", "b")) == ("relay", "relay")
    hosts = [line.split("\t")[1].split(".")[0] for line in nodes.wg("b", "endpoints").splitlines()]
    assert hosts == ["127", "127"], "WireGuard itself sends to the proxy alone"
    nodes.patch("wkmesh", "default", {"spec": {"relay": {"mode": "auto"}}})
    within(90, lambda: path(nodes, "b", "c") == "direct", "and direct again")
    nodes.pings("b", "c")


def test_connections_to_the_api_server_carry_wireguards_mark(nodes: Nodes) -> None:
    """So they never go into the tunnel: the rules of the host look at nothing else."""
    told = nodes.named["a"].run("ss", "-Htne", "dst", str(ADDRESS), "dport", "=", str(PORT))
    connections = [line for line in told.splitlines() if "ESTAB" in line]
    assert len(connections) >= 3, "the watches, at least"
    assert all(f"fwmark:{marks.FWMARK:#x}" in line for line in connections), told


def test_the_interfaces_name_takes_a_restart_and_that_is_said(nodes: Nodes) -> None:
    nodes.patch("wkmesh", "default", {"spec": {"interfaceName": "other0"}})
    within(5, lambda: "other0" in nodes.status("a")["mesh_problem"], "it is said")
    nodes.patch("wkmesh", "default", {"spec": {"interfaceName": INTERFACE}})
    within(5, lambda: nodes.status("a")["mesh_problem"] == "", "and no more")
    nodes.pings("a", "b")


def test_an_agent_cannot_write_anothers_resource(nodes: Nodes) -> None:
    """One that says that it is another node: its token says which it is."""
    node = nodes.named["a"]
    before = nodes.peer("b")
    impostor = node.start(
        *RELAYD,
        "agent", "--kubernetes", "--log", "json", "--state", "/run/impostor", "--http", "off",
        "--api-token-file", "/run/token", "--api-ca-file", "/run/ca.crt", "--interface", "fake0",
        environment={"NODE_NAME": "b", "WIREKUBE_KUBE_APISERVER": f"https://{ADDRESS}:{PORT}"},
    )  # fmt: skip
    try:
        impostor.wait_for_output("may not write WireKubePeer", 30)
        after = nodes.peer("b")
        assert (after["spec"], after["metadata"]["uid"]) == (before["spec"], before["metadata"]["uid"])
    finally:
        nodes.lab.discard(impostor)


def test_a_collision_of_addresses_is_detected_and_the_younger_moves(nodes: Nodes) -> None:
    """A resource that somebody makes with an address that a node has: the node was there first."""
    address = nodes.address("b")
    nodes.cluster.apply(peer("twin", publicKey=KEY, allowedIPs=[f"{address}/32"]))
    within(5, lambda: any("twin" in line for line in nodes.status("a")["cluster"]["problems"]), "it is told")
    time.sleep(1)
    assert nodes.address("b") == address
    nodes.pings("a", "b")
    nodes.cluster.kubectl("delete", "wkpeer", "twin")


def test_resources_are_small(nodes: Nodes) -> None:
    for name in nodes.named:
        whole = nodes.peer(name)
        whole["metadata"].pop("managedFields")
        assert len(json.dumps(whole)) < 2500


def test_the_relay_lets_in_the_keys_of_the_peers_and_turns_out_one_that_is_deleted(nodes: Nodes) -> None:
    # It may have found out later than the agents that the API server is back.
    within(60, lambda: relay_status(nodes.relay)["admission_problem"] == "", "the relay follows")
    registered = {one["key"] for one in relay_status(nodes.relay)["peers"]}
    assert registered == {nodes.key(name) for name in nodes.named}
    secret = nodes.cluster.get("secret", "wirekube-relay-key", "-n", NAMESPACE)
    shared = base64.b64decode(secret["data"]["relay.key"]).decode()
    assert nodes.relay.path("/run/relay/relay.key").read_text().strip() == shared.strip()
    key = nodes.key("c")
    nodes.cluster.kubectl("delete", "wkpeer", "c", "--wait=false")
    within(
        GONE_S,
        lambda: key not in {one["key"] for one in relay_status(nodes.relay)["peers"]},
        "c is turned out",
    )
    within(20, lambda: relay_status(nodes.relay)["refused"].get("not admitted", 0) > 0, "and kept out")
