"""Routes as rtnetlink's bytes: what is asked for, and what of the kernel's answer counts."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.kernel.nlmsg import attribute, split
from relayd.kernel.route_messages import DefaultRoute, KernelRoute, default_of, put, remove, route_of

TABLE = 22347
V4 = KernelRoute(ip_network("10.100.0.2/32"), 7, ip_address("10.100.0.1"), 0, plain=True)
V6 = KernelRoute(ip_network("fd00:7::/64"), 7, None, 1024, plain=True)
DEFAULT = KernelRoute(ip_network("0.0.0.0/0"), 7, None, 0, plain=True)


def body(message: bytes) -> bytes:
    ((_, _, _, found),) = split(message)
    return found


def test_a_request_is_these_bytes() -> None:
    """RTM_NEWROUTE, with ACK, CREATE and REPLACE; table 22347; protocol static, scope link, unicast."""
    assert put(V4, TABLE, 3).hex() == (
        "44000000" "1800" "0505" "03000000" "00000000"
        "02200000" "0004fd01" "00000000"
        "08000f00" "4b570000"
        "08000100" "0a640002"
        "08000600" "00000000"
        "08000400" "07000000"
        "08000700" "0a640001"
    )  # fmt: skip


@pytest.mark.parametrize("route", [V4, V6, DEFAULT], ids=lambda route: str(route.destination))
def test_what_is_asked_for_is_what_would_be_read(route: KernelRoute) -> None:
    assert route_of(body(put(route, TABLE, 1))) == route


def test_a_removal_names_destination_metric_and_table_and_no_device() -> None:
    ((sequence, kind, flags, found),) = split(remove(V6.destination, V6.metric, TABLE, 9))
    assert (sequence, kind, flags) == (9, 25, 0x5)
    asked = route_of(found)
    assert asked is not None
    assert (asked.destination, asked.metric, asked.device) == (V6.destination, 1024, 0)


@pytest.mark.parametrize("more", [attribute(5, bytes(4)), attribute(9, bytes(8)), attribute(30, bytes(4))])
def test_a_route_by_a_gateway_is_not_plain(more: bytes) -> None:
    found = route_of(body(put(V4, TABLE, 1)) + more)
    assert found is not None
    assert not found.plain


def test_an_unreachable_one_is_not_plain_and_another_family_is_none() -> None:
    unreachable = bytearray(body(put(V4, TABLE, 1)))
    unreachable[7] = 7
    found = route_of(bytes(unreachable))
    assert found is not None
    assert not found.plain
    unreachable[0] = 28  # AF_MPLS
    assert route_of(bytes(unreachable)) is None


def test_a_default_route_is_told_with_its_interface_gateway_and_metric() -> None:
    gateway = attribute(5, ip_address("192.0.2.1").packed)
    assert default_of(body(put(DEFAULT, TABLE, 1))) == DefaultRoute((7,), None, 0)
    found = default_of(body(put(replace(DEFAULT, metric=100), TABLE, 1)) + gateway)
    assert found == DefaultRoute((7,), ip_address("192.0.2.1"), 100)
    for other in (V4, V6):
        assert default_of(body(put(other, TABLE, 1))) is None


def test_a_default_route_of_several_ways_leads_out_by_each() -> None:
    hop = struct.Struct("=HBBi")
    hops = b"".join(
        hop.pack(hop.size + 8, 0, 0, device) + attribute(5, ip_address(f"192.0.2.{device}").packed)
        for device in (3, 4)
    )
    plain = body(put(DEFAULT, TABLE, 1))
    without_device = plain.replace(attribute(4, struct.pack("=I", 7)), b"")
    assert default_of(without_device + attribute(9, hops)) == DefaultRoute((3, 4), None, 0)
    endless = hop.pack(0, 0, 0, 3) + hop.pack(0, 0, 0, 4)
    assert default_of(without_device + attribute(9, endless)) == DefaultRoute((3, 4), None, 0)


def test_an_unreachable_default_route_leads_nowhere() -> None:
    unreachable = bytearray(body(put(DEFAULT, TABLE, 1)))
    unreachable[7] = 7
    assert default_of(bytes(unreachable)) is None


@given(st.binary(max_size=64))
def test_noise_is_an_error_or_a_route(noise: bytes) -> None:
    for read in (route_of, default_of):
        with suppress(ValueError, struct.error):
            read(noise)
