"""The wire format of Part 1, pinned in hex: what stands here is what relays and agents in the field say."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.errors import RemoteProtocolError
from relayd.keys import PublicKey
from relayd.wire import frames

KEY = PublicKey(bytes(range(32)))
KEY_HEX = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (frames.encode_register(KEY), "00000021 01" + KEY_HEX),
        (frames.encode_data(KEY, b"\x04\0\0\0hi"), "00000027 02" + KEY_HEX + "04000000 6869"),
        (frames.encode_data(KEY, b""), "00000021 02" + KEY_HEX),
        (frames.KEEPALIVE_FRAME, "00000001 03"),
        (frames.NatProbe(IPv4Address("192.0.2.7"), 51820).encode(), "00000007 04 c0000207 ca6c"),
        (frames.encode_hint(KEY), "00000021 05" + KEY_HEX),
        (frames.encode_relay_probe(b"\x01\x02\x03\x04\x05\x06\x07\x08"), "00000009 06 0102030405060708"),
        (frames.encode_error("no"), "00000003 ff 6e6f"),
    ],
)
def test_each_type_has_its_bytes(frame: bytes, expected: str) -> None:
    assert frame == bytes.fromhex(expected)


def test_largest_datagram_fits_and_one_byte_more_does_not() -> None:
    largest = frames.encode_data(KEY, b"x" * frames.MAX_PAYLOAD)
    assert int.from_bytes(largest[:4], "big") == frames.MAX_LENGTH
    with pytest.raises(ValueError, match="does not fit"):
        frames.encode_data(KEY, b"x" * (frames.MAX_PAYLOAD + 1))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_register_of_any_other_size_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"carries {size} bytes"):
        frames.decode_register_untrusted(bytes(size))


def test_nat_probe_survives_the_round_trip() -> None:
    request = frames.NatProbe(IPv4Address("203.0.113.9"), 1)
    assert frames.decode_nat_probe_untrusted(request.encode()[frames.HEADER_BYTES :]) == request


@given(st.binary(max_size=5))
def test_short_nat_probe_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        frames.decode_nat_probe_untrusted(body)


@given(st.binary(max_size=2000))
def test_any_error_text_is_printable_and_bounded(body: bytes) -> None:
    text = frames.decode_error_untrusted(body)
    assert len(text) <= frames.MAX_ERROR_BYTES
    assert text.isprintable()


@given(st.text(max_size=2000))
def test_error_is_cut_on_a_characters_edge(text: str) -> None:
    frame = frames.encode_error(text)
    assert len(frame) <= frames.HEADER_BYTES + frames.MAX_ERROR_BYTES
    assert text.startswith(frame[frames.HEADER_BYTES :].decode())


def test_probe_token_has_eight_bytes() -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        frames.encode_relay_probe(b"short")
