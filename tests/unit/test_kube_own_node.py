"""What a node says of itself: an address without collisions, its allowed IPs, its endpoint."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from relayd.coordination.kubernetes.addresses import choose, fnv1a, preferred
from relayd.coordination.kubernetes.mesh import (
    Discovered,
    meaning,
    own_address,
    own_allowed_ips,
    own_endpoint,
)
from tests.helpers.kube_resources import ME, mesh, node, peer, view


@pytest.mark.parametrize(("text", "value"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_fnv1a(text: str, value: int) -> None:
    assert fnv1a(text) == value


def test_an_address_is_what_wirekube_computes() -> None:
    network = ip_network("10.100.0.0/24")
    assert preferred("node-1", network) == network[fnv1a("node-1") % 254 + 1]


def test_a_collision_takes_the_next_free_address() -> None:
    network = ip_network("10.100.0.0/24")
    first = preferred("node-1", network)
    assert choose("node-1", network, has=None, taken=[first]) != first
    assert choose("node-1", network, has=None, taken=[]) == first


def test_every_address_is_given_and_then_the_network_is_full() -> None:
    network = ip_network("10.100.0.0/29")
    taken = [choose(f"node-{n}", network, has=None, taken=[]) for n in range(1)]
    for n in range(1, 6):
        taken.append(choose(f"node-{n}", network, has=None, taken=taken))
    assert sorted(taken) == list(network.hosts())
    with pytest.raises(ValueError, match="full"):
        choose("one-more", network, has=None, taken=taken)


def test_a_network_without_hosts_is_refused() -> None:
    with pytest.raises(ValueError, match="no addresses"):
        choose("a", ip_network("10.0.0.0/31"), has=None, taken=[])


def test_ipv6_networks_have_addresses_too() -> None:
    assert preferred("a", ip_network("fd00:1::/64")) in ip_network("fd00:1::/64")


def test_a_node_keeps_the_address_that_it_has() -> None:
    assert own_address(view(peer("a", 0, allowedIPs=["10.100.7.7/32"])), "a") == ip_address("10.100.7.7")


def test_of_two_nodes_with_one_address_the_younger_moves() -> None:
    both = (
        peer("a", 0, made=1, allowedIPs=["10.100.7.7/32"]),
        peer("b", 1, made=2, allowedIPs=["10.100.7.7/32"]),
    )
    assert own_address(view(*both), "a") == ip_address("10.100.7.7")
    assert own_address(view(*both), "b") != ip_address("10.100.7.7")


def test_a_node_without_a_resource_takes_nobodys_address() -> None:
    wanted = preferred("a", ip_network("10.100.0.0/16"))
    assert own_address(view(peer("b", allowedIPs=[f"{wanted}/32"])), "a") != wanted


def test_own_allowed_ips() -> None:
    address = preferred("a", ip_network("10.100.0.0/16"))
    here = node("192.0.2.5", "2001:db8::5")
    assert own_allowed_ips(view(on=here), "a") == (f"{address}/32",)
    auto = mesh(autoAllowedIPs={"includeNodeInternalIP": True}, podCIDRRouting={"enabled": True})
    assert own_allowed_ips(view(of=auto, on=here), "a") == (
        f"{address}/32",
        "192.0.2.5/32",
        "2001:db8::5/128",
        "10.244.1.0/24",
    )
    older = mesh(meshCIDR="", autoAllowedIPs={"strategy": "node-internal-ip"})
    assert own_allowed_ips(view(of=older, on=here), "a") == ("192.0.2.5/32", "2001:db8::5/128")


@pytest.mark.parametrize(
    ("annotated", "found", "has", "expected"),
    [
        ("198.51.100.1:5000", "203.0.113.1:1", "203.0.113.9:9", ("198.51.100.1:5000", "manual")),
        ("", "203.0.113.1:1", "203.0.113.9:9", ("203.0.113.1:1", "stun")),
        ("", "", "203.0.113.9:9", ("", "")),
        ("", "", "", ("192.0.2.5:51820", "internal-ip")),
    ],
)
def test_whose_word_counts_for_the_endpoint(
    annotated: str, found: str, has: str, expected: tuple[str, str]
) -> None:
    here = node("192.0.2.5", **{"wirekube.io/endpoint": annotated})
    said = Discovered(endpoint=found, method="stun")
    assert own_endpoint(view(peer("a", 0, endpoint=has), on=here), "a", said) == expected


@pytest.mark.parametrize(
    "written", ["192.0.2.9", "2001:db8::1:51820", "192.0.2.9:wireguard", "192.0.2.9:0", "a b:51820", ":51820"]
)
def test_an_annotation_that_names_no_endpoint_is_said_and_done_without(written: str) -> None:
    """The whole resource would be refused: the node couldn't join."""
    of = view(peer("a", 0), on=node("10.0.0.5", **{"wirekube.io/endpoint": written}))
    found = Discovered(endpoint="198.51.100.1:40000", method="stun")
    assert own_endpoint(of, "a", found) == ("198.51.100.1:40000", "stun")
    assert any("annotation wirekube.io/endpoint" in line for line in meaning(of, ME).problems)


@pytest.mark.parametrize("written", [" 192.0.2.9:51820\n", "[2001:db8::1]:51820", "home.example.net:51820"])
def test_an_annotation_that_names_one_wins(written: str) -> None:
    of = view(peer("a", 0), on=node("10.0.0.5", **{"wirekube.io/endpoint": written}))
    assert own_endpoint(of, "a", Discovered()) == (written.strip(), "manual")
    assert not any("annotation" in line for line in meaning(of, ME).problems)


def test_an_unsure_endpoint_takes_the_place_of_nothing_but_another_one() -> None:
    found = Discovered(endpoint="[2001:db8::5]:51820", method="ipv6", sure=False)
    there = view(peer("a", 0, endpoint="203.0.113.9:9"), on=node("192.0.2.5"))
    assert own_endpoint(there, "a", found) == ("", "")
    assert own_endpoint(there, "a", found, unsure="203.0.113.9:9") == ("[2001:db8::5]:51820", "ipv6")
    assert own_endpoint(view(on=node("192.0.2.5")), "a", found) == ("[2001:db8::5]:51820", "ipv6")
