"""Generic netlink's messages, and the interface that the kernel's describe."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.endpoints import Endpoint
from relayd.kernel import genl, nlmsg
from relayd.kernel.device import NO_KEY, Peer
from relayd.kernel.nlmsg import KernelError, attribute
from relayd.kernel.wireguard_dump import _LISTS, _LISTS_REMEMBERED, Reader, request
from relayd.keys import PublicKey
from tests.helpers.wireguard_contract import networks, new_key

OWN, A, B = new_key(), new_key().public(), new_key().public()
HEADER = struct.pack("=BBH", 0, 1, 0)
NESTED = 0x8000


def read(*messages: Sequence[bytes]) -> Reader:
    reader = Reader("wg0")
    for attributes in messages:
        for _ in reader.feed(HEADER + b"".join(attributes)):
            pass
    return reader


def peers(*each: bytes) -> bytes:
    """WGDEVICE_A_PEERS."""
    return attribute(8 | NESTED, b"".join(attribute(NESTED, one) for one in each))


def allowed(*texts: str) -> bytes:
    """WGPEER_A_ALLOWEDIPS."""
    each = (
        attribute(1, struct.pack("=H", 2 if network.version == 4 else 10))
        + attribute(2, network.network_address.packed)
        + attribute(3, bytes([network.prefixlen]))
        for network in networks(*texts)
    )
    return attribute(9 | NESTED, b"".join(attribute(NESTED, one) for one in each))


def peer(key: PublicKey, *more: bytes) -> bytes:
    return attribute(1, key.raw) + b"".join(more)


DEVICE = (
    attribute(1, struct.pack("=I", 7)),
    attribute(2, b"wg0\0"),
    attribute(3, OWN.raw),
    attribute(4, OWN.public().raw),
    attribute(6, struct.pack("=H", 51820)),
    attribute(7, struct.pack("=I", 0x574B)),
)
INET = attribute(4, struct.pack("=H", 2) + struct.pack("!H4s8x", 51821, bytes([192, 0, 2, 1])))


def test_a_whole_interface() -> None:
    full = peer(
        A,
        attribute(2, bytes(32)),
        INET,
        attribute(5, struct.pack("=H", 25)),
        attribute(6, struct.pack("=qq", 1_700_000_000, 500_000_000)),
        attribute(7, struct.pack("=Q", 1 << 40)),
        attribute(8, struct.pack("=Q", 7)),
        allowed("10.1.0.0/16", "fd00::/64", "0.0.0.0/0"),
        attribute(10, struct.pack("=I", 1)),
    )
    got = read((*DEVICE, peers(full, peer(B)))).interface()
    assert (got.name, got.public_key, got.private_key) == ("wg0", OWN.public(), OWN)
    assert (got.listen_port, got.fwmark) == (51820, 0x574B)
    assert got.peers == {
        A: Peer(
            key=A,
            endpoint=Endpoint.parse("192.0.2.1:51821"),
            allowed_ips=networks("10.1.0.0/16", "fd00::/64", "0.0.0.0/0"),
            handshake_at=1_700_000_000.5,
            rx_bytes=1 << 40,
            tx_bytes=7,
            keepalive_s=25,
        ),
        B: Peer(B, None, (), None, rx_bytes=0, tx_bytes=0, keepalive_s=0),
    }


def test_an_interface_without_a_key_or_a_peer() -> None:
    got = read((attribute(3, bytes(32)), attribute(4, bytes(32)))).interface()
    assert (got.public_key, got.private_key, got.peers) == (NO_KEY, None, {})


def test_a_peer_goes_on_in_the_next_message() -> None:
    first = peer(A, attribute(5, struct.pack("=H", 25)), allowed("10.1.0.0/16"))
    got = read((*DEVICE, peers(first)), (peers(peer(A, allowed("10.2.0.0/16")), peer(B)),)).interface()
    assert got.peers[A].allowed_ips == networks("10.1.0.0/16", "10.2.0.0/16")
    assert got.peers[A].keepalive_s == 25
    assert list(got.peers) == [A, B]


def test_lists_that_change_all_the_time_do_not_pile_up() -> None:
    """A node may change its allowed IPs every second: what they were must not fill the others' memory."""
    before = [lists.cache_info().currsize for lists in _LISTS.values()]
    texts = [f"10.0.{number >> 8}.{number & 255}/32" for number in range(400)]
    for number in range(100):
        got = read((*DEVICE, peers(peer(A, allowed(*texts[number : number + 300]))))).interface()
        assert got.peers[A].allowed_ips == networks(*texts[number : number + 300])
    kept = [lists.cache_info().currsize for lists in _LISTS.values()]
    assert kept[:-1] == before[:-1]
    assert kept[-1] <= 64, "each takes 150 KB"
    (most, *_) = _LISTS_REMEMBERED
    assert len(allowed(*texts[:4])) <= most + 4, "but what most peers have is remembered for many"


@pytest.mark.parametrize(
    "text", ["[2001:db8::1]:51822", "[fe80::1%3]:9", "[2001:db8::2]:65535", "192.0.2.9:1"]
)
def test_endpoints(text: str) -> None:
    wanted = Endpoint.parse(text)
    if wanted.address.version == 4:
        raw = struct.pack("=H", 2) + struct.pack("!H4s8x", wanted.port, wanted.address.packed)
    else:
        scope = int(wanted.address.scope_id or 0)
        raw = struct.pack("=H", 10) + struct.pack("!HI16s", wanted.port, 0, wanted.address.packed)
        raw += struct.pack("=I", scope)
    assert read((peers(peer(A, attribute(4, raw))),)).interface().peers[A].endpoint == wanted


def test_each_peer_is_a_place_to_stop_at() -> None:
    message = HEADER + b"".join((*DEVICE, peers(*(peer(new_key().public()) for _ in range(7)))))
    assert sum(1 for _ in Reader("wg0").feed(message)) == 7


@given(st.binary(max_size=120))
def test_a_cut_or_damaged_attribute_ends_the_list(noise: bytes) -> None:
    for kind, start, end in nlmsg.attributes_of(noise, 0, len(noise)):
        assert 0 <= kind <= 0x3FFF
        assert 4 <= start <= end <= len(noise)


# --- with the kernel ---


async def test_a_dump_is_the_kernels_whole_answer() -> None:
    """CTRL_CMD_GETFAMILY as a dump: all families, which any process may ask for."""
    names = set()
    async with aclosing(genl.dump("nlctrl", 3, 1, b"")) as messages:
        async for body in messages:
            names |= {
                body[start : end - 1]
                for kind, start, end in nlmsg.attributes_of(body, 4, len(body))
                if kind == 2
            }
    assert b"nlctrl" in names


async def test_a_family_that_is_not_there_is_enoent() -> None:
    async with aclosing(genl.dump("nothing", 0, 1, request("wg0"))) as messages:
        with pytest.raises(KernelError) as caught:
            await anext(messages)
    assert caught.value.code == errno.ENOENT


def test_an_answer_with_an_errno_is_an_error() -> None:
    body = struct.pack("=i", -errno.ENODEV) + bytes(16)
    error = struct.pack("=IHHII", 16 + len(body), 2, 0, 5, 0) + body
    with pytest.raises(KernelError) as caught:
        list(nlmsg.messages(error, 5))
    assert caught.value.code == errno.ENODEV
    assert list(nlmsg.messages(error, 4)) == []
    with pytest.raises(KernelError):
        list(nlmsg.messages(error[:-1], 5))


def test_the_key_is_in_no_repr() -> None:
    shown = repr(read(DEVICE).interface())
    assert OWN.to_base64() not in shown
    assert repr(OWN.raw) not in shown
