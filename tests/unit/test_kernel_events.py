"""events: which of the kernel's news wake the keeper. Messages as the kernel packs them."""

from __future__ import annotations

import socket
import struct

from relayd.kernel.events import concerns_addresses, concerns_firewall, concerns_routing

LO = socket.if_nametoindex("lo")


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def route(table: int) -> bytes:
    destination = attribute(1, bytes([10, 9, 0, 0]))
    return message(24, bytes(12) + destination + attribute(15, struct.pack("=I", table)))


def link(name: bytes) -> bytes:
    return message(16, bytes(16) + attribute(3, name + b"\0"))


def test_rules_and_rp_filter_concern_us() -> None:
    for kind in (32, 33, 80):
        assert concerns_routing(message(kind, bytes(12)), "lo")


def test_routes_of_our_table_alone_concern_us() -> None:
    assert concerns_routing(route(22347), "lo")
    assert not concerns_routing(route(254), "lo")
    assert concerns_routing(route(254) + route(22347), "lo")


def test_our_interface_and_its_addresses_concern_us() -> None:
    assert concerns_routing(link(b"wire_kube"), "wire_kube")
    assert not concerns_routing(link(b"wire_kube2"), "wire_kube")
    address = struct.pack("=BBBBI", 2, 24, 0, 0, LO)
    assert concerns_routing(message(20, address), "lo")
    assert not concerns_routing(message(20, struct.pack("=BBBBI", 2, 24, 0, 0, LO + 1)), "lo")
    assert concerns_routing(message(21, address), "no_such_if")  # it is gone with its address


def test_what_is_cut_off_or_nonsense_concerns_nobody() -> None:
    whole = route(22347)
    for length in range(len(whole) - 1):
        concerns_routing(whole[:length], "lo")  # and raises nothing
    assert not concerns_routing(b"", "lo")
    assert not concerns_routing(bytes(64), "lo")
    assert not concerns_routing(message(24, bytes(12) + struct.pack("=HH", 0, 15)), "lo")


def test_only_the_chains_of_exemptions_concern_the_firewall() -> None:
    assert concerns_firewall(attribute(2, b"KUBE-FIREWALL\0"))
    assert not concerns_firewall(attribute(2, b"KUBE-FIREWALL-2\0"))
    assert concerns_firewall(attribute(1, b"nat\0") + attribute(2, b"POSTROUTING\0"))
    assert not concerns_firewall(attribute(1, b"nat\0") + attribute(2, b"KUBE-POSTROUTING\0"))
    assert not concerns_firewall(attribute(2, b"POSTROUTING-2\0"))


def default_route(table: int, prefix: int = 0) -> bytes:
    # struct rtmsg: family, destination's prefix length, source's, tos, table, ...
    return message(24, bytes([socket.AF_INET, prefix, 0, 0, table]) + bytes(7))


def test_any_address_and_default_routes_of_the_main_table_concern_the_paths() -> None:
    assert concerns_addresses(message(20, bytes(8)))
    assert concerns_addresses(message(21, bytes(8)))
    assert concerns_addresses(default_route(254))
    assert not concerns_addresses(default_route(254, prefix=24))
    assert not concerns_addresses(default_route(100))
    assert not concerns_addresses(link(b"eth0"))
    assert not concerns_addresses(b"\x01")
