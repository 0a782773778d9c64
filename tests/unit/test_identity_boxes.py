"""Keys that nobody can own share no secret with anybody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.errors import RemoteProtocolError
from relayd.keys import PublicKey
from relayd.wire import boxes
from tests.helpers.identities import ALICE, BOB, RELAY, SMALL_ORDER, SMALL_ORDER_SECOND_SPELLINGS

SHARED = boxes.shared_key_untrusted(ALICE, BOB.public())
NONCE = bytes(boxes.NONCE_BYTES)


@pytest.mark.parametrize("point", SMALL_ORDER, ids=str)
def test_small_order_points_are_refused(point: PublicKey) -> None:
    with pytest.raises(RemoteProtocolError, match="small-order"):
        boxes.shared_key_untrusted(RELAY.private, point)


@pytest.mark.parametrize("point", SMALL_ORDER_SECOND_SPELLINGS, ids=str)
def test_other_spellings_of_small_order_points_are_refused(point: PublicKey) -> None:
    with pytest.raises(RemoteProtocolError, match="canonical"):
        boxes.shared_key_untrusted(RELAY.private, point)


def test_a_key_has_one_name_alone() -> None:
    # X25519 ignores the top bit: the holder of one private key could prove both names.
    raw = ALICE.public().raw
    second_name = PublicKey(raw[:31] + bytes([raw[31] | 0x80]))
    with pytest.raises(RemoteProtocolError, match="canonical"):
        boxes.shared_key_untrusted(RELAY.private, second_name)


def test_a_box_opens_for_the_other_holder_and_for_nobody_else() -> None:
    box = boxes.seal(SHARED, NONCE, b"content")
    assert len(box) == len(b"content") + boxes.TAG_BYTES
    assert boxes.open_untrusted(boxes.shared_key_untrusted(BOB, ALICE.public()), NONCE, box) == b"content"
    stranger = boxes.shared_key_untrusted(RELAY.private, ALICE.public())
    with pytest.raises(RemoteProtocolError, match="does not open"):
        boxes.open_untrusted(stranger, NONCE, box)


@given(st.binary(max_size=100))
def test_garbage_is_no_box(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        boxes.open_untrusted(SHARED, NONCE, data)
