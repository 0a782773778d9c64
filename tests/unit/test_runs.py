"""The hot scanner against a reference that reads one frame at a time and is too simple to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.errors import RemoteProtocolError
from relayd.keys import PublicKey
from relayd.wire import frames
from relayd.wire.runs import COLUMN_BLOCK, TRY_COLUMNS_AFTER, Run, scan

SENDER = bytes(range(200, 232))
KEYS = [PublicKey(bytes([number]) * 32) for number in range(4)] + [PublicKey(b"\0" * 31 + b"\1")]
KEYED = (frames.DATA, frames.BIMODAL_HINT)

Frame = tuple[int, bytes]
"""Type and body."""


def reference(stream: bytes) -> tuple[list[Frame], int]:
    """All whole frames of `stream`, and where the first partial one begins."""
    found: list[Frame] = []
    position = 0
    while len(stream) - position >= 4:
        length = int.from_bytes(stream[position : position + 4], "big")
        if not 0 < length <= 65536:
            raise RemoteProtocolError(str(length))
        if len(stream) - position < 4 + length:
            break
        found.append((stream[position + 4], stream[position + 5 : position + 4 + length]))
        position += 4 + length
    return found, position


def rewritten(frame: Frame) -> Frame:
    """What the relay makes of one frame."""
    kind, body = frame
    return (kind, SENDER + body[32:]) if kind in KEYED and len(body) >= 32 else frame


def unrolled(buffer: bytes | bytearray, runs: list[Run]) -> list[Frame]:
    """The frames of all runs, one by one, as they stand in `buffer`."""
    return [
        (buffer[at + 4], bytes(buffer[at + 5 : at + size]))
        for _, _, start, stop, size in runs
        for at in range(start, stop, size)
    ]


def flow(key: PublicKey, size: int, count: int) -> bytes:
    """A bulk flow: `count` frames whose payloads differ."""
    return b"".join(
        frames.encode_data(key, number.to_bytes(4, "big") + b"p" * size) for number in range(count)
    )


one_frame = st.one_of(
    st.tuples(st.sampled_from(KEYS), st.binary(max_size=70)).map(lambda it: frames.encode_data(*it)),
    st.sampled_from(KEYS).map(frames.encode_hint),
    st.just(frames.KEEPALIVE_FRAME),
    st.tuples(st.integers(0, 255), st.binary(max_size=60)).map(lambda it: frames.encode(*it)),
    st.tuples(st.sampled_from(KEYS), st.integers(0, 90), st.integers(1, 400)).map(lambda it: flow(*it)),
)
streams = st.lists(one_frame, max_size=8).map(b"".join)


@settings(deadline=None)
@given(streams, st.integers(0, 50), st.integers(0, 60))
def test_whole_stream_gives_the_frames_of_the_reference(stream: bytes, before: int, cut: int) -> None:
    stream = stream[: len(stream) - cut] if cut else stream
    expected, rest = reference(stream)
    # What lies around the bytes to scan must be neither read nor written.
    buffer = bytearray(b"\xee" * before + stream + b"\xee" * 80)
    runs: list[Run] = []
    assert scan(buffer, before, before + len(stream), SENDER, runs) == before + rest
    assert unrolled(buffer, runs) == [rewritten(frame) for frame in expected]
    assert buffer[:before] == b"\xee" * before
    assert buffer[before + rest :] == stream[rest:] + b"\xee" * 80


@settings(deadline=None)
@given(streams, st.integers(1, 5))
def test_a_scan_that_stops_after_some_runs_goes_on_where_it_was(stream: bytes, most: int) -> None:
    at_once, in_parts = bytearray(stream), bytearray(stream)
    expected: list[Run] = []
    rest = scan(at_once, 0, len(stream), SENDER, expected)
    found: list[Run] = []
    position = 0
    while True:
        some: list[Run] = []
        position = scan(in_parts, position, len(stream), SENDER, some, most)
        found += some
        if len(some) < most:
            break
    assert (found, position, in_parts) == (expected, rest, at_once)


@settings(deadline=None)
@given(streams)
def test_without_replacement_not_a_byte_changes(stream: bytes) -> None:
    buffer = bytearray(stream)
    runs: list[Run] = []
    scan(buffer, 0, len(buffer), None, runs)
    assert buffer == stream
    assert unrolled(buffer, runs) == reference(stream)[0]


@settings(deadline=None)
@given(streams)
def test_runs_carry_the_key_that_stood_there(stream: bytes) -> None:
    buffer = bytearray(stream)
    runs: list[Run] = []
    scan(buffer, 0, len(buffer), SENDER, runs)
    for kind, key, start, stop, size in runs:
        assert (stop - start) % size == 0
        if kind in KEYED and size >= frames.KEYED_BYTES:
            for at in range(start, stop, size):
                assert stream[at + 5 : at + 37] == key
        else:
            assert key == b""
            assert stop - start == size


@settings(deadline=None)
@given(streams, st.data())
def test_any_split_of_the_stream_gives_the_same_frames(stream: bytes, data: st.DataObject) -> None:
    expected, _ = reference(stream)
    found: list[Frame] = []
    held = b""
    position = 0
    while position < len(stream):
        step = data.draw(st.integers(1, max(1, len(stream) - position)))
        buffer = bytearray(held + stream[position : position + step])
        position += step
        runs: list[Run] = []
        rest = scan(buffer, 0, len(buffer), SENDER, runs)
        found += unrolled(buffer, runs)
        held = bytes(buffer[rest:])
    assert found == [rewritten(frame) for frame in expected]


def test_byte_by_byte_gives_the_same_frames() -> None:
    stream = (
        flow(KEYS[0], 10, 3)
        + frames.KEEPALIVE_FRAME
        + frames.encode_hint(KEYS[1])
        + frames.encode(0x99, b"?")
    )
    found: list[Frame] = []
    held = b""
    for byte in stream:
        buffer = bytearray(held + bytes([byte]))
        runs: list[Run] = []
        rest = scan(buffer, 0, len(buffer), SENDER, runs)
        found += unrolled(buffer, runs)
        held = bytes(buffer[rest:])
    assert held == b""
    assert found == [rewritten(frame) for frame in reference(stream)[0]]


@pytest.mark.parametrize("count", [1, 2, TRY_COLUMNS_AFTER, COLUMN_BLOCK + TRY_COLUMNS_AFTER + 1, 2000])
@pytest.mark.parametrize("broken_at", [None, "key", "length", "type"])
def test_long_run_ends_exactly_where_a_prefix_differs(count: int, broken_at: str | None) -> None:
    other = {
        None: b"",
        "key": frames.encode_data(KEYS[1], b"p" * 64),
        "length": frames.encode_data(KEYS[0], b"p" * 65),
        "type": frames.encode(0x77, KEYS[0].raw + b"p" * 64),
    }[broken_at]
    half = frames.encode_data(KEYS[0], b"p" * 64) * count
    buffer = bytearray(half + other + half)
    expected, _ = reference(bytes(buffer))
    runs: list[Run] = []
    assert scan(buffer, 0, len(buffer), SENDER, runs) == len(buffer)
    assert len(runs) == (1 if broken_at is None else 3)
    assert unrolled(buffer, runs) == [rewritten(frame) for frame in expected]


@pytest.mark.parametrize("length", [0, 65537, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("tail", [b"", b"\x02", b"\x02" + b"x" * 80])
def test_impossible_length_is_an_error_after_what_came_before(length: int, tail: bytes) -> None:
    good = flow(KEYS[0], 5, 2)
    buffer = bytearray(good + length.to_bytes(4, "big") + tail)
    runs: list[Run] = []
    with pytest.raises(RemoteProtocolError, match=f"length {length} "):
        scan(buffer, 0, len(buffer), SENDER, runs)
    assert len(unrolled(buffer, runs)) == 2


def test_largest_length_is_no_error() -> None:
    buffer = bytearray(frames.encode_data(KEYS[0], b"x" * frames.MAX_PAYLOAD))
    runs: list[Run] = []
    assert scan(buffer, 0, len(buffer), None, runs) == len(buffer)
    assert [run[4] for run in runs] == [65540]


@given(st.binary(max_size=300))
def test_garbage_is_frames_or_an_error_and_nothing_else(garbage: bytes) -> None:
    buffer = bytearray(garbage)
    try:
        expected, rest = reference(garbage)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            scan(buffer, 0, len(buffer), None, [])
        return
    runs: list[Run] = []
    assert scan(buffer, 0, len(buffer), None, runs) == rest
    assert unrolled(buffer, runs) == expected
