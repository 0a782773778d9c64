"""The filter for WireGuard's port, run by the kernel itself on whole packets: a socket pair needs no root."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from relayd.agent.shared_port import PATTERNS
from relayd.netio import bpf
from relayd.netio.raw_udp import checksum

PORT = 51820
STUN = bytes.fromhex("0001 0000 2112a442") + b"twelve bytes"
SEALED = bytes.fromhex("524c59f09f949101") + b"k" * 32 + b"n" * 24 + b"box" * 10
WIREGUARD = bytes.fromhex("04000000") + b"r" * 28


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        yield left, right


def ipv4_header(options: bytes, payload_bytes: int) -> bytes:
    words = 5 + len(options) // 4
    total = words * 4 + payload_bytes
    return struct.pack("!BBHHHBBH8x", 0x40 | words, 0, total, 0, 0, 64, 17, 0) + options


def udp(payload: bytes, port: int = PORT) -> bytes:
    return struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload


def passes(pair: tuple[socket.socket, socket.socket], packet: bytes, *, ip_header: bool) -> bool:
    left, right = pair
    bpf.attach(right, bpf.udp_filter(PORT, PATTERNS, ip_header=ip_header))
    left.send(packet)
    if not select.select([right], [], [], 0)[0]:  # a socket pair delivers before send() returns
        return False
    assert right.recv(2000) == packet, "an accepted packet comes whole"
    return True


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (STUN, True),
        (SEALED, True),
        (WIREGUARD, False),
        (b"", False),
        (STUN[:7], False),
        (SEALED[:7], False),
        (SEALED[:7] + b"\x02" + SEALED[8:], False),
        (b"\x00" + SEALED, False),
        (STUN[4:], False),
    ],
    ids=[
        "stun",
        "sealed",
        "wireguard",
        "empty",
        "cut-stun",
        "cut-magic",
        "version-2",
        "shifted",
        "early-cookie",
    ],
)
@pytest.mark.parametrize("header", ["udp", "ipv4", "ipv4-options"])
def test_only_stun_and_sealed_messages_pass(
    pair: tuple[socket.socket, socket.socket], payload: bytes, expected: bool, header: str
) -> None:
    segment = udp(payload)
    options = {"udp": None, "ipv4": b"", "ipv4-options": b"\x01" * 40}[header]
    packet = segment if options is None else ipv4_header(options, len(segment)) + segment
    assert passes(pair, packet, ip_header=options is not None) is expected


@pytest.mark.parametrize("port", [PORT - 1, PORT + 1, PORT & 0xFF, 0])
def test_another_port_does_not_pass(pair: tuple[socket.socket, socket.socket], port: int) -> None:
    assert not passes(pair, udp(STUN, port), ip_header=False)


def test_a_packet_of_any_length_is_judged_without_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    packet = ipv4_header(b"", 8 + len(SEALED)) + udp(SEALED)
    shortest = 20 + 8 + 8  # up to the end of the magic
    for length in range(1, len(packet)):
        assert passes(pair, packet[:length], ip_header=True) is (length >= shortest), length


def test_a_filter_is_replaced_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    assert passes(pair, udp(STUN), ip_header=False)
    bpf.attach(right, bpf.udp_filter(PORT + 1, PATTERNS, ip_header=False))
    left.send(udp(STUN))
    assert not select.select([right], [], [], 0)[0]


def test_a_prefix_that_is_no_whole_word_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of four"):
        bpf.words_of(b"RLY")


def test_the_program_in_hex() -> None:
    program = bpf.udp_filter(3478, ((bpf.Word(4, 0x2112A442),),), ip_header=True)
    assert [tuple(one) for one in program] == [
        (0xB1, 0, 0, 0),
        (0x48, 0, 0, 2),
        (0x15, 1, 0, 3478),
        (0x06, 0, 0, 0),
        (0x40, 0, 0, 12),
        (0x15, 0, 1, 0x2112A442),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    ]


# UDP's checksum ---------------------------------------------------------------------------------------------


def folded(data: bytes) -> int:
    """RFC 1071, section 4.1, word by word."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("payload", [b"", b"a", b"ab", bytes(range(256)) * 5 + b"x", b"\xff" * 1472])
def test_a_segment_with_its_checksum_sums_up_to_all_ones(payload: bytes) -> None:
    source, to = IPv4Address("192.0.2.1"), IPv4Address("203.0.113.9")
    value = checksum(source, to, udp(payload))
    segment = udp(payload)[:6] + value.to_bytes(2, "big") + payload
    pseudo = source.packed + to.packed + struct.pack("!HH", 17, len(segment))
    assert folded(pseudo + segment + b"\0" * (len(segment) % 2)) == 0xFFFF


def test_a_checksum_of_zero_is_sent_as_ones() -> None:
    source = to = IPv4Address("0.0.0.0")
    # 17 (protocol) + 10 (length) + 10 (again) + ports 0 + payload: the sum is 0xFFFF, its complement 0.
    segment = struct.pack("!HHHH", 0, 0, 10, 0) + (0xFFFF - 37).to_bytes(2, "big")
    assert checksum(source, to, segment) == 0xFFFF
