"""STUN's codec: RFC 5769's test vectors, what a server answers, and what a stranger can send."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.wire import stun

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
SOURCE = Endpoint.parse("192.0.2.1:32853")
LOCAL = Endpoint.parse("203.0.113.1:3478")
OTHER = Endpoint.parse("203.0.113.1:3479")

RFC5769_IPV4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
RFC5769_IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)


@pytest.mark.parametrize(
    ("message", "mapped"),
    [
        (RFC5769_IPV4, "192.0.2.1:32853"),
        (RFC5769_IPV6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
    ],
    ids=["ipv4", "ipv6"],
)
def test_the_answers_of_rfc_5769_are_read(message: bytes, mapped: str) -> None:
    answer = stun.decode_answer_untrusted(message)
    assert (str(answer.mapped), answer.transaction, answer.error) == (mapped, TRANSACTION, 0)
    assert stun.decode_untrusted(message).fingerprint


@pytest.mark.parametrize("message", [RFC5769_IPV4, RFC5769_IPV6], ids=["ipv4", "ipv6"])
def test_any_changed_bit_of_a_fingerprinted_message_is_noticed(message: bytes) -> None:
    for at in range(len(message) * 8):
        changed = bytearray(message)
        changed[at // 8] ^= 1 << at % 8
        try:
            # Where FINGERPRINT's own type is changed, it is a message without one.
            assert not stun.decode_untrusted(bytes(changed)).fingerprint
        except RemoteProtocolError:
            continue


def test_a_plain_request_in_hex() -> None:
    assert stun.encode_request(TRANSACTION).hex() == "000100002112a442" + TRANSACTION.hex()
    assert stun.encode_request(TRANSACTION, change_port=True).hex() == (
        "000100082112a442" + TRANSACTION.hex() + "0003000400000002"
    )


def answer(
    request: bytes, source: Endpoint = SOURCE, other: Endpoint | None = OTHER, local: Endpoint = LOCAL
) -> stun.Reply:
    reply = stun.answer_untrusted(request, source, local=local, other=other)
    assert reply is not None
    return reply


def test_the_answer_to_a_plain_request_in_hex() -> None:
    plain = answer(stun.encode_request(TRANSACTION), other=None)
    assert plain.data.hex() == "0101000c2112a442" + TRANSACTION.hex() + "002000080001a147e112a643"
    with_other = answer(stun.encode_request(TRANSACTION))
    assert with_other.data.hex() == (
        "010100182112a442" + TRANSACTION.hex() + "002000080001a147e112a643" + "802c000800010d97cb007101"
    )


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(min_size=12, max_size=12))
def test_a_client_reads_in_the_answer_where_it_came_from(
    address: IPv4Address | IPv6Address, port: int, transaction: bytes
) -> None:
    source = Endpoint(address, port)
    read = stun.decode_answer_untrusted(answer(stun.encode_request(transaction), source).data)
    assert (read.mapped, read.other, read.transaction) == (source, OTHER, transaction)


def test_a_wish_for_the_other_port_is_granted_and_named() -> None:
    reply = answer(stun.encode_request(TRANSACTION, change_port=True))
    assert reply.from_other_port
    origin = stun.decode_untrusted(reply.data).find(stun.RESPONSE_ORIGIN)
    assert origin is not None
    assert stun.decode_address_untrusted(origin) == OTHER


@pytest.mark.parametrize(
    ("wish", "origin"),
    [
        ({"change_ip": True}, "192.0.2.99:3478"),
        ({"change_port": True}, "192.0.2.1:3479"),
        ({"change_ip": True, "change_port": True}, "192.0.2.99:3479"),
    ],
)
def test_with_two_addresses_every_wish_is_granted_and_named(wish: dict[str, bool], origin: str) -> None:
    local, other = Endpoint.parse("192.0.2.1:3478"), Endpoint.parse("192.0.2.99:3479")
    reply = stun.answer_untrusted(stun.encode_request(TRANSACTION, **wish), SOURCE, local=local, other=other)
    assert reply is not None
    assert (reply.from_other_address, reply.from_other_port) == ("change_ip" in wish, "change_port" in wish)
    told = stun.decode_untrusted(reply.data).find(stun.RESPONSE_ORIGIN)
    assert told is not None
    assert str(stun.decode_address_untrusted(told)) == origin
    assert stun.decode_answer_untrusted(reply.data).other == other


@pytest.mark.parametrize(
    ("request_", "other"),
    [
        (stun.encode_request(TRANSACTION, change_ip=True), OTHER),
        (stun.encode_request(TRANSACTION, change_ip=True, change_port=True), OTHER),
        (stun.encode_request(TRANSACTION, change_port=True), None),
    ],
    ids=["ip", "both", "no-second-port"],
)
def test_a_wish_that_can_not_be_granted_is_refused(request_: bytes, other: Endpoint | None) -> None:
    reply = answer(request_, other=other)
    assert not reply.from_other_port
    assert stun.decode_answer_untrusted(reply.data).error == 420
    unknown = stun.decode_untrusted(reply.data).find(stun.UNKNOWN_ATTRIBUTES)
    assert unknown == stun.CHANGE_REQUEST.to_bytes(2, "big")


def test_unknown_attributes_that_must_be_understood_are_named_once_each() -> None:
    attributes = [(0x7001, b""), (0x0044, b"\x00\x01\x00\x00"), (0x7001, b"x"), (0x8099, b"skipped")]
    reply = answer(stun.encode(stun.BINDING_REQUEST, TRANSACTION, attributes, fingerprint=True))
    message = stun.decode_untrusted(reply.data)
    assert message.kind == stun.BINDING_ERROR
    assert message.fingerprint
    assert message.find(stun.UNKNOWN_ATTRIBUTES) == bytes.fromhex("00447001")
    assert message.find(stun.ERROR_CODE) == bytes.fromhex("00000414")


def test_credentials_that_nobody_asked_for_are_ignored() -> None:
    attributes = [(stun.USERNAME, b"somebody"), (stun.MESSAGE_INTEGRITY, bytes(20))]
    reply = answer(stun.encode(stun.BINDING_REQUEST, TRANSACTION, attributes, fingerprint=False))
    assert stun.decode_answer_untrusted(reply.data).mapped == SOURCE


def test_a_fingerprint_is_answered_with_one_and_nothing_else_is() -> None:
    for fingerprint in (True, False):
        request = stun.encode(stun.BINDING_REQUEST, TRANSACTION, (), fingerprint=fingerprint)
        assert stun.decode_untrusted(answer(request).data).fingerprint is fingerprint


def test_an_indication_is_not_answered() -> None:
    indication = stun.encode(stun.BINDING_INDICATION, TRANSACTION, (), fingerprint=False)
    assert stun.answer_untrusted(indication, SOURCE, local=LOCAL, other=OTHER) is None


@pytest.mark.parametrize("kind", [stun.BINDING_SUCCESS, stun.BINDING_ERROR, 0x0003, 0x3FFF])
def test_what_is_no_request_for_a_binding_is_ignored_so_that_two_servers_never_talk(kind: int) -> None:
    with pytest.raises(RemoteProtocolError, match="no Binding request"):
        answer(stun.encode(kind, TRANSACTION, (), fingerprint=False))


REQUEST_ATTRIBUTES = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=60)), max_size=12)


@given(REQUEST_ATTRIBUTES, st.booleans(), st.booleans())
def test_an_answer_is_longer_than_its_request_by_no_more_than_stun_needs(
    attributes: list[tuple[int, bytes]], fingerprint: bool, v6: bool
) -> None:
    request = stun.encode(
        stun.BINDING_REQUEST,
        TRANSACTION,
        [(name, value) for name, value in attributes if name != stun.FINGERPRINT],
        fingerprint=fingerprint,
    )
    addresses = [Endpoint(IPv6Address(n), n) for n in (1, 2)] if v6 else [SOURCE, OTHER]
    reply = answer(request, addresses[0], addresses[1], addresses[1])
    # XOR-MAPPED-ADDRESS, OTHER-ADDRESS and RESPONSE-ORIGIN, 12 or 24 bytes each.
    assert len(reply.data) <= len(request) + 3 * (24 if v6 else 12)


@given(st.binary(max_size=120))
def test_garbage_raises_one_error_only(data: bytes) -> None:
    for head in (b"", stun.HEADER.pack(1, max(0, len(data)), 0x2112A442, TRANSACTION)):
        for read in (stun.decode_answer_untrusted, answer):
            try:
                read(head + data)
            except RemoteProtocolError:
                continue


@given(st.sampled_from([RFC5769_IPV4, RFC5769_IPV6]), st.integers(0, 120))
def test_a_cut_or_lengthened_message_is_refused(message: bytes, at: int) -> None:
    for changed in (message[: min(at, len(message) - 1)], message + bytes(at + 1)):
        with pytest.raises(RemoteProtocolError):
            stun.decode_untrusted(changed)


@pytest.mark.parametrize(
    "value", ["", "0001", "00010d96", "00030d96c0000201", "00020d96c0000201", "00010d96c000020100"]
)
def test_an_address_of_another_size_than_its_family_says_is_refused(value: str) -> None:
    with pytest.raises(RemoteProtocolError, match="unknown kind"):
        stun.decode_address_untrusted(bytes.fromhex(value))


def test_an_answer_to_another_port_of_the_same_address_is_granted() -> None:
    assert answer(stun.encode_request(TRANSACTION, response_port=4444)).to_port == 4444
    for wrong in (b"", b"\0\0\0\0", b"\0\1\0\0\0\0"):
        attributes = [(stun.RESPONSE_PORT, wrong)]
        reply = answer(stun.encode(stun.BINDING_REQUEST, TRANSACTION, attributes, fingerprint=False))
        assert stun.decode_answer_untrusted(reply.data).error == 420
