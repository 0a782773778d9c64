"""Packets handed over arrive as from another source, in both families, and none leaves the host."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from relayd.agent.reinjector import Reinjector
from relayd.demo.lab import Lab, Node
from relayd.endpoints import Endpoint
from tests.helpers.inside import inside

PORT = 51820


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Lab() as lab:
        here, there = lab.node("here"), lab.node("there")
        lab.wire(here, there, IPv4Network("192.0.2.0/24"))
        for one, address in ((here, "2001:db8::1"), (there, "2001:db8::2")):
            other = there if one is here else here
            one.ip(f"addr add {address}/64 dev to-{other.name} nodad")
        here.ip("route add default via 192.0.2.2", "route add default via 2001:db8::2")
        yield here


@pytest.mark.parametrize("source", ["203.0.113.9:4242", "[2001:db8:9::9]:4242"])
@pytest.mark.parametrize("rp_filter", [0, 1])
def test_a_packet_comes_as_from_the_direct_endpoint(node: Node, source: str, rp_filter: int) -> None:
    """Also where the host checks the way back of what it receives (rp_filter): it never was received."""
    node.run("sh", "-c", f"for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {rp_filter} > $f; done")
    endpoint = Endpoint.parse(source)
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    with inside(node), socket.socket(family, socket.SOCK_DGRAM) as wireguard:
        wireguard.bind(("::" if family == socket.AF_INET6 else "", PORT))
        wireguard.settimeout(5.0)
        reinjector = Reinjector(PORT)
        try:
            assert reinjector.can(endpoint)
            for payload in (b"odd", b"even", b"x" * 1452, b"y" * 9000):
                assert reinjector.hand_over(memoryview(payload), endpoint)
                got, name = wireguard.recvfrom(65535)
                assert got == payload
                assert Endpoint.of_socket(name) == endpoint
        finally:
            reinjector.close()
    assert reinjector.counts == {"handed over": 4}


def test_without_a_route_there_nothing_is_sent_and_it_is_counted(node: Node) -> None:
    node.ip("route del default via 192.0.2.2")
    try:
        with inside(node):
            reinjector = Reinjector(PORT)
        try:
            with inside(node):
                assert not reinjector.hand_over(memoryview(b"late"), Endpoint.parse("203.0.113.9:4242"))
        finally:
            reinjector.close()
    finally:
        node.ip("route add default via 192.0.2.2")
    assert reinjector.counts == {"refused: Network is unreachable": 1}
