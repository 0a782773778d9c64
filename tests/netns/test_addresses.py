"""What a host's addresses and ways out are, as its kernel has them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest
import trio

from relayd.demo.lab import Lab, Node
from relayd.kernel.addresses import default_gateways, host_addresses
from tests.helpers.inside import inside

ROUTES = 2000


@pytest.fixture(scope="module")
def host(lab: Lab) -> Node:
    """With two ways out, a network that is none, and as many routes as a node of a large cluster has."""
    host = lab.node("host")
    for number, other in enumerate(("up", "spare", "inner")):
        lab.wire(host, lab.node(other), IPv4Network(f"192.0.{number}.0/24"))
    host.ip("route add default via 192.0.1.2 metric 200")
    host.ip("route add default via 192.0.0.2 metric 100")
    host.ip("route add unreachable default metric 4000")
    batch = (f"route add 10.{number // 250}.{number % 250}.0/24 via 192.0.2.2" for number in range(ROUTES))
    host.run("ip", "-batch", "-", stdin="\n".join(batch))
    return host


def ways_out() -> set[str]:
    """The interfaces with an IPv4 address that lead out."""
    found = trio.run(host_addresses)
    return {one.interface for one in found if one.leads_out and one.address.version == 4}


def test_an_address_leads_out_where_a_default_route_goes_by_its_interface(host: Node) -> None:
    with inside(host):
        found = {one.address: one for one in trio.run(host_addresses)}
        assert ways_out() == {"to-up", "to-spare"}
        assert not found[ip_address("192.0.2.1")].leads_out
        assert trio.run(default_gateways) == [IPv4Address("192.0.0.2"), IPv4Address("192.0.1.2")]


def test_one_default_route_of_two_ways_leads_out_by_both(host: Node) -> None:
    host.ip("route del default metric 200")
    host.ip("route replace default metric 100 nexthop via 192.0.0.2 nexthop via 192.0.1.2")
    with inside(host):
        assert ways_out() == {"to-up", "to-spare"}


def test_a_default_route_of_the_other_version_leads_out_too(host: Node) -> None:
    host.ip("addr add 2001:db8:2::1/64 dev to-inner nodad")
    host.run("ip", "-6", "route", "add", "default", "via", "2001:db8:2::2", "dev", "to-inner")
    with inside(host):
        assert "to-inner" in ways_out()
