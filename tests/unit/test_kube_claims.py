"""What several resources claim has one owner, and nobody takes what is another node's."""

from __future__ import annotations

from ipaddress import ip_network

from relayd.coordination.kubernetes.addresses import preferred
from relayd.coordination.kubernetes.mesh import (
    meaning,
    own_address,
)
from tests.helpers.kube_resources import KEYS, ME, mesh, node, peer, view


def test_what_an_older_resource_has_a_younger_one_cannot_take() -> None:
    made = meaning(
        view(
            peer("a", 0, made=1, allowedIPs=["10.100.0.1/32"]),
            peer("b", 1, made=2, allowedIPs=["10.100.0.2/32"]),
            peer("thief", 2, made=3, allowedIPs=["10.100.0.2/32", "10.100.0.1/32", "10.100.0.9/32"]),
        ),
        ME,
    )
    by_name = {made.names[one.key]: one for one in made.mesh.peers}
    assert by_name["b"].allowed_ips == (ip_network("10.100.0.2/32"),)
    assert by_name["thief"].allowed_ips == (ip_network("10.100.0.9/32"),)
    assert any("10.100.0.2/32 is b's" in line for line in made.problems)
    assert any("10.100.0.1/32 is a's" in line for line in made.problems)


def test_what_two_claim_under_one_key_goes_to_who_has_it() -> None:
    """Else a node that was taken over would cut another off by naming its key, if it was there before."""
    made = meaning(
        view(
            peer("a", 0, allowedIPs=["10.100.0.1/32"]),
            peer("thief", 1, made=1, allowedIPs=["10.100.0.3/32"]),
            peer("b", 1, made=2, allowedIPs=["10.100.0.2/32"]),
            peer("me-too", 0, made=3, allowedIPs=["10.100.0.4/32"]),
        ),
        ME,
    )
    (one,) = made.mesh.peers
    assert one.key == KEYS[1].public()
    assert set(one.allowed_ips) == {ip_network("10.100.0.2/32"), ip_network("10.100.0.3/32")}
    assert [line.partition(":")[0] for line in made.problems] == [
        "WireKubePeer me-too has the key of a",
        "WireKubePeer b has the key of thief",
    ]


def test_the_address_that_a_nodes_name_stands_for_is_no_older_nodes() -> None:
    """Agents may write their own node's resource: by that none of them has the address of another."""
    network = ip_network("10.100.0.0/16")
    mine, others = preferred("a", network), preferred("b", network)
    of_all = view(
        peer("thief", 2, made=1, allowedIPs=["10.100.0.9/32", f"{others}/32", f"{mine}/32"]),
        peer("a", 0, made=2, allowedIPs=[f"{mine}/32"]),
        peer("b", 1, made=3, allowedIPs=[f"{others}/32"]),
    )
    made = meaning(of_all, ME)
    by_name = {made.names[one.key]: one for one in made.mesh.peers}
    assert by_name["b"].allowed_ips == (ip_network(others),)
    assert by_name["thief"].allowed_ips == (ip_network("10.100.0.9/32"),)
    assert own_address(of_all, "a") == mine, "it doesn't move"
    assert own_address(of_all, "b") == others


def test_of_two_whose_names_stand_for_one_address_the_older_has_it() -> None:
    network = ip_network("10.100.0.0/30")  # for two nodes
    first = preferred("a", network)
    twin = next(name for name in "bcdefgh" if preferred(name, network) == first)
    of_all = view(
        peer("a", 0, made=2, allowedIPs=[f"{first}/32"]),
        peer(twin, 1, made=1, allowedIPs=[f"{first}/32"]),
        of=mesh(meshCIDR=str(network)),
    )
    assert own_address(of_all, twin) == first
    assert own_address(of_all, "a") != first
    assert meaning(of_all, ME).mesh.peers[0].allowed_ips == (ip_network(first),)


def test_what_this_node_routes_to_itself_is_no_others() -> None:
    """A route to its own pods through the tunnel would come before the one to their bridge."""
    made = meaning(
        view(
            peer("thief", 1, made=1, allowedIPs=["10.244.1.0/24", "192.168.7.0/24", "192.168.8.0/24"]),
            peer("a", 0, made=2, allowedIPs=["10.100.0.1/32", "192.168.7.0/24"]),
            of=mesh(podCIDRRouting={"enabled": True}),
            on=node("192.0.2.1"),
        ),
        ME,
    )
    assert made.mesh.peers[0].allowed_ips == (ip_network("192.168.8.0/24"),)
