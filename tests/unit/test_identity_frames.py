"""The wire format of Part 2, pinned in hex, and its parsers against everything that isn't it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.keys import PublicKey
from relayd.tokens import MAX_TOKEN_BYTES
from relayd.wire import identity_frames as frames
from relayd.wire.boxes import NONCE_BYTES, TAG_BYTES, seal, shared_key_untrusted
from relayd.wire.frames import HEADER_BYTES, MAX_ERROR_BYTES
from tests.helpers.identities import ALICE, RELAY, WELCOME, drawn

KEY = PublicKey(bytes(range(32)))
KEY_HEX = bytes(range(32)).hex()
SESSION = bytes(range(32, 64))
SESSION_HEX = SESSION.hex()
AGENT_NONCE = drawn("agent nonce 1")
NONCE = bytes(range(NONCE_BYTES))
SHARED = shared_key_untrusted(ALICE, RELAY.public)

FIXED_PROOF = b"relayd proof v1" + SESSION + AGENT_NONCE + KEY.raw
FIXED_WELCOME = b"relayd welcome v1" + AGENT_NONCE

PROOF = frames.Proof(SESSION, AGENT_NONCE, KEY, b"secret")


def sealed(content: bytes) -> bytes:
    return NONCE + seal(SHARED, NONCE, content)


def decode_proof(body: bytes) -> frames.Proof:
    return frames.decode_proof_untrusted(body, SHARED)


def decode_welcome(body: bytes) -> frames.Welcome:
    return frames.decode_welcome_untrusted(body, SHARED, AGENT_NONCE)


DECODERS: list[Callable[[bytes], object]] = [
    frames.decode_challenge_untrusted,
    decode_proof,
    decode_welcome,
    frames.decode_peer_gone_untrusted,
    frames.decode_drain_untrusted,
    frames.decode_health_untrusted,
    frames.decode_ping_untrusted,
]


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (frames.Challenge(KEY, SESSION).encode(), "00000043 30 01 00" + KEY_HEX + SESSION_HEX),
        (frames.PeerGone(KEY, frames.Gone.ABSENT).encode(), "00000022 33" + KEY_HEX + "00"),
        (frames.PeerGone(KEY, frames.Gone.STALLED).encode(), "00000022 33" + KEY_HEX + "01"),
        (frames.encode_drain(300), "00000003 34 012c"),
        (frames.encode_health(""), "00000001 35"),
        (frames.encode_health("no"), "00000003 35 6e6f"),
        (frames.encode_ping(b"\x01\x02\x03\x04\x05\x06\x07\x08"), "00000009 36 0102030405060708"),
        (frames.encode_pong(b"\x01\x02\x03\x04\x05\x06\x07\x08"), "00000009 37 0102030405060708"),
    ],
)
def test_each_type_has_its_bytes(frame: bytes, expected: str) -> None:
    assert frame == bytes.fromhex(expected)


PROOF_HEX = (
    "000000a731000102030405060708090a0b0c0d0e0f1011121314151617ae4eec83a80a8efe4c95987898d9856f99e9ba"
    "128e0a78fbe8cd5c7776216a68bd45380b797da6acb1beb04d285000762540c169b0492f17bb4e37580b074bc9c10b30"
    "f57cae093425e6a8f91fa3647b4a12405c10e2dd3f27eb5904dbe35ca0b9780d31ca5e71730ba7cb72b899b58d5c845a"
    "db5155b30bab79092cc57a1b8bc204ca28916047f105a3e5b12c4f"
)
WELCOME_HEX = (
    "0000009e32000102030405060708090a0b0c0d0e0f101112131415161774a2a7acd5e954a9dcc653743f4fa14f99e9ba"
    "128e0a78fcffce507e3b327b3eadffe36c24fef41ba258b44f6647a713452fc461297ce5832c87320aff27f4434ecced"
    "226c5d5281cec0a2aee48254481f4b44308f3d16be6fe0f4b56ac8198e88543c1bfe62424b329df0dac6e3cff3dc5b44"
    "59ec25c172c6166055abf5a2620211c9379c"
)


def test_proof_has_its_bytes() -> None:
    assert PROOF.encode(SHARED, NONCE).hex() == PROOF_HEX
    # and what is sealed in them
    assert decode_proof(sealed(FIXED_PROOF + bytes.fromhex("81 a5746f6b656e c406736563726574"))) == PROOF
    assert decode_proof(sealed(FIXED_PROOF + b"\x80")).token == b""


def test_welcome_has_its_bytes() -> None:
    assert WELCOME.encode(SHARED, NONCE, AGENT_NONCE).hex() == WELCOME_HEX
    assert decode_welcome(bytes.fromhex(WELCOME_HEX)[HEADER_BYTES:]) == WELCOME


def test_an_agents_and_a_relays_half_make_the_same_box_key() -> None:
    assert shared_key_untrusted(RELAY.private, ALICE.public()) == SHARED


@given(
    st.builds(
        frames.Welcome,
        relay=st.binary(max_size=frames.MAX_NAME),
        observed=st.sampled_from(["", "192.0.2.1:1", "[2001:db8::1]:65535"]),
        keepalive_s=st.floats(1.0, frames.MAX_KEEPALIVE_S),
        stun=st.lists(st.integers(1, 65535), max_size=5).map(tuple),
        features=st.lists(st.text(min_size=1, max_size=9), max_size=5).map(tuple),
        replicas=st.lists(st.text(min_size=1, max_size=9), max_size=5).map(tuple),
    )
)
def test_welcome_survives_the_round_trip(welcome: frames.Welcome) -> None:
    assert decode_welcome(welcome.encode(SHARED, NONCE, AGENT_NONCE)[HEADER_BYTES:]) == welcome


@given(st.binary(max_size=MAX_TOKEN_BYTES))
def test_proof_survives_the_round_trip(token: bytes) -> None:
    proof = frames.Proof(SESSION, AGENT_NONCE, KEY, token)
    body = proof.encode(SHARED, NONCE)[HEADER_BYTES:]
    assert len(body) <= frames.MAX_PROOF_BYTES
    assert decode_proof(body) == proof


def test_challenge_survives_the_round_trip_with_flags_of_a_later_day() -> None:
    challenge = frames.Challenge(KEY, SESSION, flags=0x80)
    assert frames.decode_challenge_untrusted(challenge.encode()[HEADER_BYTES:]) == challenge


def test_challenge_of_another_version_says_which() -> None:
    with pytest.raises(RemoteProtocolError, match="version 2, this agent knows version 1"):
        frames.decode_challenge_untrusted(b"\x02whatever version 2 has")


def test_peer_gone_for_a_reason_of_a_later_day_is_gone_all_the_same() -> None:
    assert frames.decode_peer_gone_untrusted(KEY.raw + b"\x07") == frames.PeerGone(KEY, 7)


def test_observed_is_an_endpoint() -> None:
    assert WELCOME.observed_endpoint() == Endpoint.parse("192.0.2.1:40000")
    assert frames.Welcome().observed_endpoint() is None


# What isn't it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", DECODERS)
@given(body=st.binary(max_size=200))
def test_garbage_raises_nothing_but_a_protocol_error(decode: Callable[[bytes], object], body: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(body)


@given(st.binary(max_size=300))
def test_garbage_in_a_good_box_raises_nothing_but_a_protocol_error(content: bytes) -> None:
    for decode, fixed in ((decode_proof, FIXED_PROOF), (decode_welcome, FIXED_WELCOME)):
        for plain in (content, fixed + content):
            with contextlib.suppress(RemoteProtocolError):
                decode(sealed(plain))


_Value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(["token", "relay", "observed", "keepalive_s", "stun", "features", "replicas", "new"])


@given(st.dictionaries(_NAMES, _Value, max_size=4))
def test_wrong_values_raise_nothing_but_a_protocol_error(values: dict[str, object]) -> None:
    encoded = msgspec.msgpack.encode(values)
    for decode, fixed in ((decode_proof, FIXED_PROOF), (decode_welcome, FIXED_WELCOME)):
        with contextlib.suppress(RemoteProtocolError):
            decode(sealed(fixed + encoded))


@pytest.mark.parametrize(
    "body",
    [
        frames.Challenge(KEY, SESSION).encode()[HEADER_BYTES:],
        PROOF.encode(SHARED, NONCE)[HEADER_BYTES:],
        WELCOME.encode(SHARED, NONCE, AGENT_NONCE)[HEADER_BYTES:],
        frames.PeerGone(KEY, 1).encode()[HEADER_BYTES:],
        frames.encode_drain(3)[HEADER_BYTES:],
        frames.encode_ping(bytes(8))[HEADER_BYTES:],
    ],
    ids=["challenge", "proof", "welcome", "peer gone", "drain", "ping"],
)
def test_a_byte_less_or_more_is_refused(body: bytes, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    decode = {
        "challenge": frames.decode_challenge_untrusted,
        "proof": decode_proof,
        "welcome": decode_welcome,
        "peer gone": frames.decode_peer_gone_untrusted,
        "drain": frames.decode_drain_untrusted,
        "ping": frames.decode_ping_untrusted,
    }[name]
    decode(body)
    for size in range(len(body)):
        with pytest.raises(RemoteProtocolError):
            decode(body[:size])
    with pytest.raises(RemoteProtocolError):
        decode(body + b"\0")


@given(st.data())
def test_no_bit_of_a_box_can_be_changed(data: st.DataObject) -> None:
    for decode, frame in (
        (decode_proof, PROOF.encode(SHARED, NONCE)),
        (decode_welcome, WELCOME.encode(SHARED, NONCE, AGENT_NONCE)),
    ):
        body = bytearray(frame[HEADER_BYTES:])
        bit = data.draw(st.integers(0, len(body) * 8 - 1))
        body[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError, match="does not open"):
            decode(bytes(body))


def test_unknown_keys_are_ignored() -> None:
    extra = msgspec.msgpack.encode({"token": b"secret", "ticket": {"deep": [1, {"x": None}]}})
    assert decode_proof(sealed(FIXED_PROOF + extra)) == PROOF
    extra = msgspec.msgpack.encode({"relay": b"r", "load": 0.5})
    assert decode_welcome(sealed(FIXED_WELCOME + extra)) == frames.Welcome(relay=b"r")


def test_unknown_keys_can_not_exhaust_the_stack() -> None:
    bottomless = b"\x81\xa1x" + b"\x91" * 850

    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
        else:
            decode_proof(sealed(FIXED_PROOF + bottomless + b"\xc0"))

    # Where C code has a stack of its own (Python 3.12), this is deep, and not too deep.
    with contextlib.suppress(RemoteProtocolError):
        deeper(400)


def test_a_map_is_the_last_thing_in_its_box() -> None:
    with pytest.raises(RemoteProtocolError, match="trailing"):
        decode_proof(sealed(FIXED_PROOF + b"\x80\x80"))
    with pytest.raises(RemoteProtocolError, match="trailing"):
        decode_welcome(sealed(FIXED_WELCOME + b"\x80\x80"))


@pytest.mark.parametrize(
    "values",
    [
        {"keepalive_s": 0},
        {"keepalive_s": 3601},
        {"keepalive_s": float("nan")},
        {"keepalive_s": float("inf")},
        {"stun": [0]},
        {"stun": [65536]},
        {"stun": [1] * 65},
        {"features": ["x" * 65]},
        {"features": ["x"] * 65},
        {"replicas": ["x" * 260]},
        {"relay": bytes(65)},
        {"observed": "nowhere"},
        {"observed": "192.0.2.1:99999"},
        {"observed": "example.net:1"},
    ],
)
def test_a_welcome_out_of_range_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError, match="welcome: "):
        decode_welcome(sealed(FIXED_WELCOME + msgspec.msgpack.encode(values)))


def test_a_good_box_that_is_cut_short_inside_is_refused() -> None:
    for decode, fixed in ((decode_proof, FIXED_PROOF), (decode_welcome, FIXED_WELCOME)):
        for size in range(len(fixed)):
            with pytest.raises(RemoteProtocolError, match="another purpose"):
                decode(sealed(fixed[:size]))


def test_sizes_are_checked_before_a_box_is_opened() -> None:
    for size in range(NONCE_BYTES + TAG_BYTES):
        with pytest.raises(RemoteProtocolError, match="too few for a box"):
            decode_proof(bytes(size))
    with pytest.raises(RemoteProtocolError, match="1025 bytes, 1024 are allowed"):
        decode_proof(bytes(frames.MAX_PROOF_BYTES + 1))
    with pytest.raises(RemoteProtocolError, match="4097 bytes, 4096 are allowed"):
        decode_welcome(bytes(frames.MAX_WELCOME_BYTES + 1))


def test_a_token_past_its_size_is_refused_on_both_sides() -> None:
    with pytest.raises(ValueError, match="257 bytes"):
        frames.Proof(SESSION, AGENT_NONCE, KEY, bytes(257)).encode(SHARED, NONCE)
    with pytest.raises(RemoteProtocolError, match="length <= 256"):
        decode_proof(sealed(FIXED_PROOF + msgspec.msgpack.encode({"token": bytes(257)})))


def test_a_welcome_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ValueError, match="4096 are allowed"):
        frames.Welcome(replicas=("x" * 250,) * 20).encode(SHARED, NONCE, AGENT_NONCE)


@pytest.mark.parametrize("seconds", [-1, 65536])
def test_drain_fits_sixteen_bits(seconds: int) -> None:
    with pytest.raises(ValueError, match="0 to 65535"):
        frames.encode_drain(seconds)


@pytest.mark.parametrize("encode", [frames.encode_ping, frames.encode_pong])
def test_ping_token_has_eight_bytes(encode: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        encode(b"short")


@given(st.binary(max_size=2000))
def test_any_health_text_is_printable_and_bounded(body: bytes) -> None:
    text = frames.decode_health_untrusted(body)
    assert len(text) <= MAX_ERROR_BYTES
    assert text.isprintable()


@given(st.text(max_size=2000))
def test_health_is_cut_on_a_characters_edge(text: str) -> None:
    frame = frames.encode_health(text)
    assert len(frame) <= HEADER_BYTES + MAX_ERROR_BYTES
    assert text.startswith(frame[HEADER_BYTES:].decode())
