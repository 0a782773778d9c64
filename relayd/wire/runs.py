"""The hot scanner: a stream's bytes as runs of frames, found and rewritten in place.

A run is a stretch of whole frames with one and the same 37-byte prefix (length, type, key): one
bulk flow of WireGuard. Past its first frame, a frame of a run costs one `startswith` and one 32-byte
slice assignment. The relay (which replaces the destination's key by the sender's) and the agent
(which replaces nothing) use the same scanner.
"""

from __future__ import annotations

from itertools import repeat
from struct import Struct
from typing import TypeAlias

from relayd.errors import RemoteProtocolError
from relayd.keys import KEY_BYTES
from relayd.wire.frames import BIMODAL_HINT, DATA, HEADER, HEADER_BYTES, KEYED_BYTES, LENGTH_BYTES, MAX_LENGTH

Run: TypeAlias = tuple[int, bytes, int, int, int]
"""(kind, key, start, stop, size): `buffer[start:stop]` holds whole frames of `size` bytes each, all of type
`kind` and all for `key`.

`key` is what stood in the frames before rewriting: 32 bytes for Data and BimodalHint, empty for all other
types and for a Data frame that is too short to have one. A run without a key is one frame; its body is
`buffer[start + HEADER_BYTES : stop]`. (A plain tuple: one is made for each run, and a named one takes
four times as long to make.)
"""

KEYED = Struct(f">IB{KEY_BYTES}s")
"""Length, type and key of a frame that has one."""

TRY_COLUMNS_AFTER = 32
"""Frames that must have matched one by one before whole columns are tried."""

COLUMN_BLOCK = 128
"""Frames of the first column-wise block; the fixed cost of one is that of some 60 frames one by one."""


def _replace_columns(
    buffer: bytearray, start: int, count: int, size: int, prefix: bytes, replacement: bytes | None
) -> bool:
    """Whether all `count` frames of `size` bytes from `start` on begin with `prefix`; if so, replace.

    Works on columns: byte i of all the prefixes is one strided slice, so that a frame costs 69 steps of
    a C loop (50 to 115 ns, by stride) and no Python at all, against 250 ns one by one.
    """
    stop = start + count * size
    # The key's bytes tell flows apart, so they are compared first.
    for column in range(KEYED_BYTES - 1, -1, -1):
        if buffer[start + column : stop : size] != prefix[column : column + 1] * count:
            return False
    if replacement is not None:
        for column in range(KEY_BYTES):
            buffer[start + HEADER_BYTES + column : stop : size] = replacement[column : column + 1] * count
    return True


ALL = 1 << 31
"""More runs than any buffer has."""


def scan(
    buffer: bytearray, start: int, stop: int, replacement: bytes | None, runs: list[Run], most: int = ALL
) -> int:
    """Append the runs in `buffer[start:stop]` to `runs`; return where the first partial frame begins.

    After `most` runs it stops; then it returns where they end.

    `replacement`, 32 bytes, is written over the key of every Data and BimodalHint frame; None leaves
    them. Raises RemoteProtocolError at a length of 0 or above MAX_LENGTH; `runs` then holds what came
    before it.
    """
    unpack = KEYED.unpack_from
    position = start
    for _ in repeat(None, most):
        if stop - position < KEYED_BYTES:
            break
        head = unpack(buffer, position)
        length, kind, key = head
        size = length + LENGTH_BYTES
        end = position + size
        if not 0 < length <= MAX_LENGTH:
            raise _bad_length(length)
        if end > stop:
            return position
        if (kind != DATA and kind != BIMODAL_HINT) or size < KEYED_BYTES:
            runs.append((kind, b"", position, end, size))
            position = end
            continue
        first = position
        if end + size <= stop and unpack(buffer, end) == head:
            end = _follow(buffer, first, stop, size, replacement)
        elif replacement is not None:
            buffer[position + HEADER_BYTES : position + KEYED_BYTES] = replacement
        runs.append((kind, key, first, end, size))
        position = end
    else:
        return position
    while stop - position >= HEADER_BYTES:
        # Too little for a key: small frames, or the beginning of one.
        length, kind = HEADER.unpack_from(buffer, position)
        if not 0 < length <= MAX_LENGTH:
            raise _bad_length(length)
        end = position + length + LENGTH_BYTES
        if end > stop:
            return position
        runs.append((kind, b"", position, end, length + LENGTH_BYTES))
        position = end
    if stop - position == LENGTH_BYTES:
        # Nothing but a length: a wrong one need not be followed by a type, ever.
        length = int.from_bytes(buffer[position:stop], "big")
        if not 0 < length <= MAX_LENGTH:
            raise _bad_length(length)
    return position


def _follow(buffer: bytearray, first: int, stop: int, size: int, replacement: bytes | None) -> int:
    """The end of the run of `size`-byte frames that begins at `first`; replaces all its keys."""
    startswith = buffer.startswith
    prefix = bytes(buffer[first : first + KEYED_BYTES])
    position = first
    end = position + size
    columns_at = position + TRY_COLUMNS_AFTER * size
    block = COLUMN_BLOCK
    while end <= stop and startswith(prefix, position):
        if replacement is not None:
            buffer[position + HEADER_BYTES : position + KEYED_BYTES] = replacement
        position = end
        end += size
        if position >= columns_at:
            # A long run so far. Whole blocks, doubling, for as long as they match.
            while (count := min(block, (stop - position) // size)) >= COLUMN_BLOCK and _replace_columns(
                buffer, position, count, size, prefix, replacement
            ):
                position += count * size
                block *= 2
            end = position + size
            block = COLUMN_BLOCK
            columns_at = position + TRY_COLUMNS_AFTER * size
    return position


def _bad_length(length: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"a frame of length {length} (1 to {MAX_LENGTH} are allowed)")
