"""Part 3's wire format, pinned in hex, and its parser against everything that isn't it."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.keys import PublicKey
from relayd.wire import boxes, sealed
from relayd.wire import sealed_messages as messages
from relayd.wire.port_messages import SEALED_MAGIC, is_sealed
from relayd.wire.sealed_messages import (
    MAX_CANDIDATES,
    CallMeMaybe,
    Candidates,
    FindPort,
    Message,
    PathChanged,
    Ping,
    Pong,
    PortPrediction,
    WireCandidate,
)
from tests.helpers.identities import ALICE, BOB, MALLORY
from tests.helpers.sealing import ALICE_TO_BOB, BOB_TO_ALICE, NONCE, OTHER_SESSION, SESSION, TXID

TXID_HEX = TXID.hex()
HOST = WireCandidate(type="host", address="192.0.2.1", port=51820, priority=2130706431, foundation="h")
ALL: list[Message] = [
    Ping(TXID),
    Ping(TXID, 1371),
    Pong(TXID, Endpoint.parse("192.0.2.7:4660")),
    Pong(TXID, Endpoint.parse("[2001:db8::7]:4660"), 1371),
    Candidates(generation=1, session=SESSION, candidates=(HOST,), features=("birthday",)),
    CallMeMaybe(generation=2, session=SESSION, yours=OTHER_SESSION, candidates=(HOST,)),
    PathChanged(
        generation=3, session=SESSION, path="direct", endpoint="[2001:db8::1]:51820", mine="192.0.2.9:4"
    ),
    PathChanged(generation=4, session=SESSION, path="relay"),
    PortPrediction(generation=5, session=SESSION, address="192.0.2.9", base=40000, step=2, count=3),
    FindPort(generation=6, session=SESSION, yours=OTHER_SESSION, address="192.0.2.9"),
]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Ping(TXID, 12), "01" + TXID_HEX),
        (Ping(TXID, 15), "01" + TXID_HEX + "000000"),
        (Ping(TXID), "01" + TXID_HEX + "00" * 19),
        (Pong(TXID, Endpoint.parse("192.0.2.7:4660"), 19), "02" + TXID_HEX + "04 c0000207 1234"),
        (
            Pong(TXID, Endpoint.parse("[2001:db8::7]:4660")),
            "02" + TXID_HEX + "06 20010db8000000000000000000000007 1234",
        ),
        (
            Candidates(generation=1, session=b"sessionA", candidates=(HOST,)),
            "03 85 aa67656e65726174696f6e 01 a773657373696f6e c40873657373696f6e41 a5796f757273 c400"
            "aa63616e64696461746573 91 85 a474797065 a4686f7374 a761646472657373 a93139322e302e322e31"
            "a4706f7274 cdca6c a87072696f72697479 ce7effffff aa666f756e646174696f6e a168"
            "a86665617475726573 90",
        ),
        (
            PathChanged(generation=3, session=b"sessionA", yours=b"sessionB", path="relay"),
            "05 86 aa67656e65726174696f6e 03 a773657373696f6e c40873657373696f6e41 a5796f757273"
            "c40873657373696f6e42 a470617468 a572656c6179 a8656e64706f696e74 a0 a46d696e65 a0",
        ),
    ],
)
def test_each_plaintext_has_its_bytes(message: Message, expected: str) -> None:
    assert messages.encode(message).hex() == expected.replace(" ", "")


def test_a_whole_message_has_its_bytes() -> None:
    datagram = ALICE_TO_BOB.seal(Ping(TXID, 12), NONCE)
    direction = ALICE.public().raw > BOB.public().raw
    nonce = NONCE[:-1] + bytes([NONCE[-1] & ~1 | direction])
    box = boxes.seal(ALICE_TO_BOB.shared, nonce, bytes.fromhex("01" + TXID_HEX))
    assert datagram.hex() == "524c59f09f949101" + ALICE.public().raw.hex() + nonce.hex() + box.hex()
    assert len(datagram) == sealed.OVERHEAD_BYTES + 12 == 8 + 32 + 24 + 16 + 1 + 12
    # The same box by the textbook: crypto_box over the two keys, nothing precomputed.
    from nacl.public import Box
    from nacl.public import PrivateKey as NaclPrivate
    from nacl.public import PublicKey as NaclPublic

    textbook = Box(NaclPrivate(BOB.raw), NaclPublic(ALICE.public().raw))
    assert textbook.decrypt(box, nonce) == bytes.fromhex("01" + TXID_HEX)


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_each_message_comes_back_as_it_went(message: Message) -> None:
    datagram = ALICE_TO_BOB.seal(message, NONCE)
    assert is_sealed(datagram)
    assert sealed.sender_untrusted(datagram) == ALICE.public()
    assert BOB_TO_ALICE.open_untrusted(datagram) == message


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_a_message_turned_back_on_its_sender_is_refused(message: Message) -> None:
    datagram = ALICE_TO_BOB.seal(message, NONCE)
    turned = SEALED_MAGIC + BOB.public().raw + datagram[40:]
    assert boxes.open_untrusted(ALICE_TO_BOB.shared, turned[40:64], turned[64:])  # the box itself opens
    with pytest.raises(RemoteProtocolError, match="turned back"):
        ALICE_TO_BOB.open_untrusted(turned)


def test_no_other_key_makes_or_reads_one() -> None:
    datagram = ALICE_TO_BOB.seal(Ping(TXID), NONCE)
    mallory_and_bob = sealed.Channel.between(MALLORY, BOB.public())
    with pytest.raises(RemoteProtocolError):
        mallory_and_bob.open_untrusted(datagram)
    forged = mallory_and_bob.seal(Ping(TXID), NONCE)
    with pytest.raises(RemoteProtocolError):
        BOB_TO_ALICE.open_untrusted(SEALED_MAGIC + ALICE.public().raw + forged[40:])


@pytest.mark.parametrize("at", range(0, sealed.OVERHEAD_BYTES + 12, 7))
def test_one_changed_bit_is_found(at: int) -> None:
    datagram = bytearray(ALICE_TO_BOB.seal(Ping(TXID, 12), NONCE))
    datagram[at] ^= 0x10
    with pytest.raises(RemoteProtocolError):  # noqa: PT012 - either step may refuse it
        if sealed.sender_untrusted(bytes(datagram)) != ALICE.public():
            raise RemoteProtocolError("another sender")
        BOB_TO_ALICE.open_untrusted(bytes(datagram))


def test_a_pong_is_never_longer_than_its_ping() -> None:
    seen = Endpoint.parse("[2001:db8::7]:4660")
    for size in (0, 12, messages.MIN_BODY_BYTES, 1371):
        ping = Ping(TXID, max(size, messages.MIN_BODY_BYTES))
        assert len(messages.encode(Pong(TXID, seen, ping.body_bytes))) == len(messages.encode(ping))


@pytest.mark.parametrize("mtu", [1280, 1420, 8920])
def test_a_full_size_ping_is_as_long_as_wireguards_datagram(mtu: int) -> None:
    ping = Ping(TXID, sealed.full_size_body_bytes(mtu))
    assert len(ALICE_TO_BOB.seal(ping, NONCE)) == mtu + 32


def stamped(**more: object) -> dict[str, object]:
    return {"generation": 1, "session": SESSION, **more}


def candidate(**more: object) -> dict[str, object]:
    return {"type": "host", "address": "192.0.2.1", "port": 1, "priority": 1, "foundation": "h", **more}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (3, stamped(candidates=[candidate()] * (MAX_CANDIDATES + 1))),
        (3, stamped(candidates=[candidate(port=0)])),
        (3, stamped(candidates=[candidate(port=65536)])),
        (3, stamped(candidates=[candidate(address="192.0.2.256")])),
        (3, stamped(candidates=[candidate(address="fe80::1%eth0")])),
        (3, stamped(candidates=[candidate(address="a" * 40)])),
        (3, stamped(candidates=[candidate(priority=0)])),
        (3, stamped(candidates=[candidate(priority=1 << 31)])),
        (3, stamped(candidates=[candidate(foundation="f" * 33)])),
        (3, stamped(features=["x"] * 33)),
        (3, stamped(session=b"short")),
        (3, stamped(yours=b"short")),
        (3, stamped(generation=-1)),
        (3, stamped(generation=1 << 32)),
        (3, {"generation": 1}),
        (3, []),
        (5, stamped(path="sideways")),
        (5, stamped(path="direct", endpoint="192.0.2.1")),
        (5, stamped(path="direct", endpoint="[fe80::1%1]:1")),
        (5, stamped(path="direct", mine="here:1")),
        (6, stamped(address="192.0.2.1", base=0, step=1, count=1)),
        (6, stamped(address="192.0.2.1", base=1, step=1, count=33)),
        (6, stamped(address="192.0.2.1", base=1, step=1025, count=1)),
        (6, stamped(address="nowhere", base=1, step=1, count=1)),
        (7, stamped(address="nowhere")),
        (7, stamped(address="fe80::1%eth0")),
        (7, stamped()),
    ],
)
def test_lies_in_a_field_are_refused(kind: int, body: object) -> None:
    with pytest.raises(RemoteProtocolError):
        messages.decode_untrusted(bytes([kind]) + msgspec.msgpack.encode(body))


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\x00",
        b"\x07",
        b"\x08",
        b"\xff" * 40,
        b"\x01" + bytes(11),
        b"\x02" + bytes(12),
        b"\x02" + TXID + b"\x04" + bytes(5),
        b"\x02" + TXID + b"\x06" + bytes(17),
        b"\x02" + TXID + b"\x05" + bytes(30),
        b"\x03",
        b"\x03\xc1",
        b"\x03" + b"\x91" * 2000,
        b"\x03" + bytes(messages.MAX_MAP_BYTES + 1),
    ],
)
def test_what_is_too_short_or_too_long_or_unknown_is_refused(plaintext: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        messages.decode_untrusted(plaintext)


def test_what_a_later_version_adds_is_passed_over() -> None:
    body = stamped(candidates=[candidate(type="quantum", colour="blue")], mood={"a": [1, 2]}, features=["x"])
    message = messages.decode_untrusted(b"\x03" + msgspec.msgpack.encode(body))
    assert isinstance(message, Candidates)
    assert [messages.is_known_type(one.type) for one in message.candidates] == [False]
    assert messages.is_known_type("srflx")


def test_a_prediction_stays_within_the_ports_that_there_are() -> None:
    prediction = PortPrediction(
        generation=1, session=SESSION, address="192.0.2.1", base=65533, step=1, count=32
    )
    assert [str(one) for one in prediction.endpoints()] == [
        "192.0.2.1:65533",
        "192.0.2.1:65534",
        "192.0.2.1:65535",
    ]
    still = PortPrediction(generation=1, session=SESSION, address="192.0.2.1", base=1000, step=0, count=32)
    assert [str(one) for one in still.endpoints()] == ["192.0.2.1:1000"]


@pytest.mark.parametrize("datagram", [b"", SEALED_MAGIC, SEALED_MAGIC + bytes(72), b"x" * 200, bytes(200)])
def test_what_cannot_be_one_is_refused_before_anything_is_computed(datagram: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        sealed.sender_untrusted(datagram)
    with pytest.raises(RemoteProtocolError):
        sealed.sender_untrusted(SEALED_MAGIC + bytes(sealed.MAX_BYTES))


def test_wireguard_and_stun_are_not_sealed_messages() -> None:
    for first in (b"\x01\0\0\0", b"\x04\0\0\0", b"\0\x01\0\0\x21\x12\xa4\x42"):
        assert not is_sealed(first + bytes(140))


@given(st.binary(max_size=400))
def test_garbage_in_a_box_raises_one_kind_of_error(plaintext: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        messages.decode_untrusted(plaintext)


@given(st.binary(max_size=200), st.sampled_from([3, 4, 5, 6]))
def test_garbage_in_a_map_raises_one_kind_of_error(body: bytes, kind: int) -> None:
    with contextlib.suppress(RemoteProtocolError):
        messages.decode_untrusted(bytes([kind]) + body)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=40) | st.binary(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["generation", "session", "yours", "candidates", "type", "address", "port", "path"]
            )
            | st.text(max_size=5),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(json_like, st.sampled_from([3, 4, 5, 6]))
def test_maps_of_anything_raise_one_kind_of_error(body: object, kind: int) -> None:
    with contextlib.suppress(RemoteProtocolError):
        messages.decode_untrusted(bytes([kind]) + msgspec.msgpack.encode(body))


@given(st.binary(max_size=200))
def test_garbage_after_the_magic_raises_one_kind_of_error(rest: bytes) -> None:
    datagram = SEALED_MAGIC + ALICE.public().raw + rest
    with contextlib.suppress(RemoteProtocolError):
        assert sealed.sender_untrusted(datagram) == ALICE.public()
        BOB_TO_ALICE.open_untrusted(datagram)


endpoints = st.builds(
    Endpoint,
    st.ip_addresses().filter(lambda one: getattr(one, "scope_id", None) is None),
    st.integers(0, 65535),
)


@given(st.binary(min_size=12, max_size=12), endpoints, st.integers(31, 2000))
def test_every_pong_comes_back(txid: bytes, seen: Endpoint, size: int) -> None:
    assert messages.decode_untrusted(messages.encode(Pong(txid, seen, size))) == Pong(txid, seen, size)


def test_fields_that_the_format_has_no_room_for_are_refused_at_home() -> None:
    with pytest.raises(ValueError, match="txid"):
        messages.encode(Ping(b"short"))
    with pytest.raises(ValueError, match="txid"):
        messages.encode(Pong(bytes(13), Endpoint(ip_address("192.0.2.1"), 1)))
    many = tuple(
        WireCandidate(type="t" * 32, address="2001:db8::" + "f" * 4, port=1, priority=1, foundation="f" * 400)
        for _ in range(32)
    )
    with pytest.raises(ValueError, match="allowed"):
        messages.encode(Candidates(generation=1, session=SESSION, candidates=many))


def test_the_longest_map_fits() -> None:
    longest = tuple(
        WireCandidate(
            type="x" * 32, address=ip_address(2**128 - 1 - k).exploded, port=65535, priority=2**31 - 1,
            foundation="f" * 32,
        )
        for k in range(MAX_CANDIDATES)
    )  # fmt: skip
    whole = Candidates(
        generation=2**32 - 1, session=SESSION, yours=SESSION, candidates=longest, features=("f" * 32,) * 32
    )
    assert BOB_TO_ALICE.open_untrusted(ALICE_TO_BOB.seal(whole, NONCE)) == whole


def test_a_key_that_nobody_can_hold_makes_no_channel() -> None:
    with pytest.raises(RemoteProtocolError, match="small-order"):
        sealed.Channel.between(ALICE, PublicKey(bytes(32)))
