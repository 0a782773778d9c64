"""PCP and NAT-PMP: requests in hex, answers of each kind, and what a stranger can send."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.errors import RemoteProtocolError
from relayd.wire import port_control as pc

NONCE = b"twelve bytes"
OWN = IPv4Address("192.168.1.2")
OUTSIDE = IPv4Address("203.0.113.5")


def test_requests_in_hex() -> None:
    assert pc.pmp_address_request().hex() == "0000"
    assert pc.pmp_map_request(51820, 51820, 7200).hex() == "00010000ca6cca6c00001c20"
    assert pc.pcp_map_request(NONCE, OWN, 51820, 51821, 7200).hex() == (
        "02010000" "00001c20" "00000000000000000000ffffc0a80102"
        + NONCE.hex() + "11000000" "ca6c" "ca6d" "00000000000000000000ffff00000000"
    )  # fmt: skip


def pcp_answer(
    *, version: int = 2, operation: int = 0x81, result: int = 0, nonce: bytes = NONCE, protocol: int = 17,
    internal: int = 51820, external: int = 4711, address: str = "00000000000000000000ffffcb007105",
) -> bytes:  # fmt: skip
    head = struct.pack("!BBBBII12x", version, operation, 0, result, 3600, 99)
    return head + struct.pack("!12sB3xHH", nonce, protocol, internal, external) + bytes.fromhex(address)


def test_a_pcp_mapping_is_read() -> None:
    mapping = pc.pcp_map_answer_untrusted(pcp_answer(), NONCE, 51820)
    assert mapping == pc.PortMapping(4711, 3600, OUTSIDE)
    assert str(mapping.endpoint(IPv4Address(0))) == "203.0.113.5:4711"


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 3},
        {"operation": 0x80},
        {"operation": 0x01},
        {"nonce": b"twelve Bytes"},
        {"protocol": 6},
        {"internal": 1},
        {"external": 0},
        {"address": "20010db8000000000000000000000001"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_pcp_answer_to_something_else_is_ignored(wrong: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        pc.pcp_map_answer_untrusted(pcp_answer(**wrong), NONCE, 51820)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (1, pc.OtherVersionError, "another version"),
        (2, pc.RefusedError, "isn't allowed"),
        (12, pc.RefusedError, "NAT between"),
        (200, pc.RefusedError, "result 200"),
    ],
)
def test_a_pcp_refusal_is_told_in_words(result: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pc.pcp_map_answer_untrusted(pcp_answer(result=result), NONCE, 51820)


def test_a_gateway_that_speaks_nat_pmp_alone_says_so_to_pcp() -> None:
    """RFC 6887, section 9: version 0, result 1."""
    with pytest.raises(pc.OtherVersionError, match="alone"):
        pc.pcp_map_answer_untrusted(bytes.fromhex("0081000100000000"), NONCE, 51820)


def test_nat_pmp_answers_are_read() -> None:
    assert pc.pmp_address_answer_untrusted(bytes.fromhex("008000000000000acb007105")) == OUTSIDE
    answer = bytes.fromhex("008100000000000aca6c126700000e10")
    assert pc.pmp_map_answer_untrusted(answer, 51820) == pc.PortMapping(4711, 3600)
    for wrong in (answer[:-1], answer + b"\0", b"\x02" + answer[1:], answer[:10] + b"\0\0" + answer[12:]):
        with pytest.raises(RemoteProtocolError):
            pc.pmp_map_answer_untrusted(wrong, 51820)
    with pytest.raises(RemoteProtocolError, match="another port"):
        pc.pmp_map_answer_untrusted(answer, 51821)
    with pytest.raises(pc.RefusedError, match="not allowed"):
        pc.pmp_map_answer_untrusted(b"\0\x81\0\x02" + bytes(12), 51820)
    with pytest.raises(pc.OtherVersionError):
        pc.pmp_address_answer_untrusted(b"\0\x80\0\x01" + bytes(8))


@given(st.binary(max_size=80))
def test_garbage_raises_one_of_two_errors_only(data: bytes) -> None:
    for head in (b"", b"\x02\x81", b"\0\x81\0\0", b"\0\x80\0\0"):
        for read in (
            pc.pmp_address_answer_untrusted,
            lambda what: pc.pmp_map_answer_untrusted(what, 51820),
            lambda what: pc.pcp_map_answer_untrusted(what, NONCE, 51820),
        ):
            try:
                read(head + data)
            except (RemoteProtocolError, pc.RefusedError):
                continue
