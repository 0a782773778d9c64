"""Which addresses are candidates, and in what order."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from relayd.endpoints import Endpoint
from relayd.paths.candidates import (
    LocalAddress,
    chosen,
    foundation,
    from_wire,
    host_candidates,
    is_usable,
    make,
    priority,
    to_wire,
)
from relayd.wire.sealed_messages import MAX_CANDIDATES, CandidateType, WireCandidate

V4, V6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
TUNNEL = ip_network("10.99.0.0/24")


def local(address: str, interface: str = "eth0", kind: str = "", *, leads_out: bool = False) -> LocalAddress:
    return LocalAddress(address=ip_address(address), interface=interface, kind=kind, leads_out=leads_out)


def hosts(*addresses: LocalAddress, only: tuple[str, ...] = ()) -> list[str]:
    found = host_candidates(addresses, 51820, tunnels=[TUNNEL], only=only)
    return [str(one.endpoint) for one in found]


def test_priorities_are_rfc_8445s() -> None:
    # (2**24) * type preference + (2**8) * local preference + (256 - component), section 5.1.2.1
    assert priority("host", V6) == 126 * 2**24 + 65535 * 2**8 + 255 == 2130706431
    assert priority("host", V4) == 126 * 2**24 + 65534 * 2**8 + 255


def test_the_nearer_way_has_the_higher_priority() -> None:
    kinds: list[CandidateType] = ["host", "prflx", "srflx", "relay"]
    ordered = [priority(kind, V4) for kind in kinds]
    assert ordered == sorted(ordered, reverse=True)
    assert priority("host", V6) > priority("host", V4) > priority("host", IPv6Address("fe80::1%eth0"))
    assert priority("host", V4) > priority("srflx", V6)
    assert all(1 <= one < 2**31 for one in ordered)


def test_a_foundation_tells_types_bases_and_servers_apart() -> None:
    one = foundation("srflx", V4, "192.0.2.9")
    assert one == foundation("srflx", V4, "192.0.2.9")
    others = (
        foundation("srflx", V4, "192.0.2.8"),
        foundation("host", V4),
        foundation("srflx", V6, "192.0.2.9"),
    )
    assert len({one, *others}) == 4
    assert all(len(found) <= 32 for found in others)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.64.0.9",
        "::1",
        "0.0.0.0",
        "224.0.0.1",
        "ff02::1",
        "240.0.0.1",
        "255.255.255.255",
        "169.254.1.1",
        "fe80::1",
        "10.99.0.7",
        "::ffff:192.0.2.1",
    ],
)
def test_addresses_that_no_peer_can_have_are_no_candidates(address: str) -> None:
    assert not is_usable(ip_address(address), [TUNNEL])
    assert hosts(local(address)) == []


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "10.0.0.1", "100.64.0.1", "2001:db8::1", "fd00::1", "fe80::1%eth0"]
)
def test_addresses_of_lans_and_of_the_world_are(address: str) -> None:
    assert is_usable(ip_address(address), [TUNNEL])


@pytest.mark.parametrize(
    ("interface", "kind"),
    [
        ("docker0", "bridge"),
        ("wg0", "wireguard"),
        ("flannel.1", "vxlan"),
        ("cali123", "veth"),
        ("tun0", "tun"),
    ],
)
def test_virtual_interfaces_count_only_when_told(interface: str, kind: str) -> None:
    assert hosts(local("192.0.2.1", interface, kind)) == []
    assert hosts(local("192.0.2.1", interface, kind), only=(interface,)) == ["192.0.2.1:51820"]


def test_a_bridge_with_the_default_route_and_a_containers_veth_are_networks_like_any() -> None:
    assert hosts(local("192.0.2.1", "br-lan", "bridge", leads_out=True)) == ["192.0.2.1:51820"]
    assert hosts(local("192.0.2.1", "eth0", "veth")) == ["192.0.2.1:51820"]


def test_told_interfaces_exclude_all_others() -> None:
    both = local("192.0.2.1", "eth0"), local("198.51.100.1", "eth1")
    assert hosts(*both, only=("eth1",)) == ["198.51.100.1:51820"]


def test_at_most_32_and_the_freshest_first() -> None:
    many = [make("host", Endpoint(ip_address(f"192.0.2.{k}"), 1), found_at=float(k)) for k in range(1, 51)]
    kept = chosen(many)
    assert len(kept) == MAX_CANDIDATES
    assert [one.found_at for one in kept] == [float(k) for k in range(50, 18, -1)]


def test_of_one_endpoint_the_higher_priority_stays() -> None:
    endpoint = Endpoint(V4, 51820)
    old = make("host", endpoint, found_at=1.0)
    new = make("srflx", endpoint, base=V4, found_at=9.0)
    other = make("host", Endpoint(V6, 51820), found_at=5.0)
    assert chosen([new, old, other]) == [old, other]


def test_a_peer_is_told_no_zone_and_tries_each_of_its_links() -> None:
    scoped = make("host", Endpoint(IPv6Address("fe80::1%eth7"), 51820))
    told = to_wire([scoped])
    assert told[0].address == "fe80::1"
    found = from_wire(told, links=["eth0", "eth1"])
    assert {str(one.endpoint) for one in found} == {"[fe80::1%eth0]:51820", "[fe80::1%eth1]:51820"}
    assert from_wire(told) == []


def told(address: str, kind: str = "host") -> WireCandidate:
    return WireCandidate(type=kind, address=address, port=51820, priority=1, foundation="f")


def test_a_peer_cannot_send_our_pings_home_or_into_the_tunnel() -> None:
    own = ip_address("192.0.2.7")
    list_ = [told("127.0.0.1"), told("127.64.0.1"), told("10.99.0.9"), told("224.0.0.1"), told("192.0.2.7")]
    assert from_wire(list_, own=[own], tunnels=[TUNNEL]) == []
    assert len(from_wire([*list_, told("192.0.2.8")], own=[own], tunnels=[TUNNEL])) == 1


def test_types_of_later_versions_and_relays_are_passed_over() -> None:
    assert from_wire([told("192.0.2.1", "quantum"), told("192.0.2.2", "relay")]) == []
