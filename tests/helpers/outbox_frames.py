"""Frames with a number in them, for the tests of outboxes."""

from __future__ import annotations

from relayd.keys import PublicKey
from relayd.netio.outbox import Outbox
from relayd.wire.frames import encode_data

KEY = PublicKey(b"k" * 32)
SMALLEST = 65_540
"""The smallest bound that an outbox accepts."""


def frame(number: int, size: int = 100) -> bytes:
    """A frame of `size` bytes that tells its number."""
    return encode_data(KEY, number.to_bytes(4, "big").ljust(size - 37, b"."))


def number_of(whole: bytes) -> int:
    return int.from_bytes(whole[37:41], "big")


def run_of(numbers: range, size: int = 100) -> bytes:
    return b"".join(frame(number, size) for number in numbers)


def drain(outbox: Outbox, now: float, step: int = 1 << 30) -> bytes:
    """All that it gives, taken `step` bytes at a time."""
    out = b""
    while pieces := outbox.chunks(now):
        part = b"".join(pieces)[:step]
        outbox.sent(len(part))
        out += part
    return out
