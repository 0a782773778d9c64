"""The frames that the load sends: rings of them ready to be written, and the check of what comes back.

    payload := block:u32be index:u32be filler

A ring holds a fixed number of frames and is sent again and again. `index` counts the frames of a ring
for one destination and never changes; `block` counts the rings. So a frame's sequence number, block *
(frames per ring and destination) + index, costs next to nothing to write: four bytes at a fixed stride,
once a ring. `filler` is a slice of one random pattern, at an offset that depends on the index, so that
bytes that moved are noticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from struct import Struct

from bench.model import BenchError
from relayd.wire.frames import DATA, HEADER, HEADER_BYTES, KEYED_BYTES

NUMBERS = Struct(">II")
MIN_PAYLOAD = 16
MAX_PAYLOAD = 16 * 1024
"""Far above any tunnel's MTU, and small enough for whole frames in the read buffer."""
_SHIFTS = 251
_PATTERN = Random(0x574B).randbytes(MAX_PAYLOAD + _SHIFTS)


def key_of(number: int) -> bytes:
    """The public key of the load's connection `number`: any 32 bytes will do in Part 1, if all differ."""
    return Random(0x6B657900 + number).randbytes(32)


def filler(index: int, payload: int) -> bytes:
    """What follows the numbers in frame `index` of a ring: `payload` - 8 bytes."""
    shift = index % _SHIFTS
    return _PATTERN[shift : shift + payload - NUMBERS.size]


def frame_bytes(payload: int) -> int:
    """The size on the wire of a Data frame with so much payload."""
    return KEYED_BYTES + payload


def prefix_of(key: bytes, payload: int) -> bytes:
    """The 37 bytes with which each Data frame for (or from) `key` begins."""
    return HEADER.pack(frame_bytes(payload) - 4, DATA) + key


class Ring:
    """Frames of one size, back to back, for one destination or for several in a given order."""

    def __init__(self, destinations: Sequence[bytes], payload: int) -> None:
        """`destinations` names the destination of each frame; each must occur equally often."""
        if not MIN_PAYLOAD <= payload <= MAX_PAYLOAD:
            raise BenchError(f"a payload of {payload} bytes ({MIN_PAYLOAD} to {MAX_PAYLOAD} are possible)")
        counts = Counter(destinations)
        if len(set(counts.values())) != 1:
            raise ValueError("each destination must occur equally often")
        self.size = frame_bytes(payload)
        self.frames = len(destinations)
        self.per_destination = self.frames // len(counts)
        self.block = 0
        seen: Counter[bytes] = Counter()
        parts: list[bytes] = []
        for key in destinations:
            index = seen[key]
            seen[key] += 1
            parts += (prefix_of(key, payload), NUMBERS.pack(0, index), filler(index, payload))
        self.buffer = bytearray().join(parts)
        self.view = memoryview(self.buffer)

    def advance(self) -> None:
        """Number the frames anew, after the last was handed to the kernel (which has copied them)."""
        old = self.block.to_bytes(4, "big")
        self.block += 1
        new = self.block.to_bytes(4, "big")
        for place in range(4):
            if new[place] != old[place]:
                self.buffer[KEYED_BYTES + place :: self.size] = new[place : place + 1] * self.frames


class Check:
    """Compares frames as one receiver gets them with what its sender wrote."""

    def __init__(self, key: bytes, payload: int, per_ring: int) -> None:
        """`key` is what the frames must carry; `per_ring` how many of a ring are for this receiver."""
        self.payload = payload
        self.size = frame_bytes(payload)
        self.per_ring = per_ring
        self.prefix = prefix_of(key, payload)
        self.checked = 0

    def sequence(self, buffer: bytearray, start: int) -> int:
        """The number of the frame at `start`, from 0. Raises BenchError when any byte is not as sent."""
        if not buffer.startswith(self.prefix, start):
            raise BenchError(self._what_is_wrong(buffer, start))
        block, index = NUMBERS.unpack_from(buffer, start + KEYED_BYTES)
        body = start + KEYED_BYTES + NUMBERS.size
        if index >= self.per_ring or not buffer.startswith(filler(index, self.payload), body):
            raise BenchError(
                f"a frame arrived with other bytes than were sent (block {block}, index {index})"
            )
        self.checked += 1
        return int(block * self.per_ring + index)

    def _what_is_wrong(self, buffer: bytearray, start: int) -> str:
        length, kind = HEADER.unpack_from(buffer, start)
        if kind == 0xFF:
            text = bytes(buffer[start + HEADER_BYTES : start + 4 + min(length, 512)])
            return f"the relay answered with an Error: {text.decode(errors='replace')}"
        if (length, kind) != HEADER.unpack_from(self.prefix):
            return f"a frame of type {kind:#04x} and length {length} arrived where one of ours was due"
        return "a frame arrived with another sender's key than its sender's"
