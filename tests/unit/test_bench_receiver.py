"""What the load's receivers notice: loss, to the frame, and everything that must never happen."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from bench.connections import Receiver, await_echo, register
from bench.frames import Check, Ring, key_of
from bench.model import BenchError
from relayd.wire.frames import ERROR, encode, encode_error

PAYLOAD = 64
KEY = key_of(1)
RING = Ring([KEY] * 100, PAYLOAD)
FRAMES = [bytes(RING.view[at : at + RING.size]) for at in range(0, len(RING.buffer), RING.size)]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Receiver]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, Receiver(theirs, Check(KEY, PAYLOAD, 100))


def take(ours: socket.socket, receiver: Receiver, data: bytes, *, every: bool) -> None:
    """Send `data` and have it read: sampled, or every frame of it."""
    if data:
        ours.sendall(data)
    buffer = bytearray(64 * 1024)
    if every:
        receiver.read(buffer, memoryview(buffer))
    else:
        receiver.take(buffer)


@pytest.mark.parametrize("every", [True, False])
def test_all_frames_in_any_pieces_are_counted(pair: tuple[socket.socket, Receiver], every: bool) -> None:
    ours, receiver = pair
    data = b"".join(FRAMES)
    cuts = sorted(random.Random(1).sample(range(len(data)), 30))
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        take(ours, receiver, data[start:stop], every=every)
    assert (receiver.received, receiver.lost) == (100, 0)


@pytest.mark.parametrize("every", [True, False])
def test_lost_frames_are_counted(pair: tuple[socket.socket, Receiver], every: bool) -> None:
    ours, receiver = pair
    take(ours, receiver, b"".join(FRAMES[:10]), every=every)
    take(ours, receiver, b"".join(FRAMES[13:20]), every=every)
    take(ours, receiver, b"".join(FRAMES[21:30]), every=every)
    assert (receiver.received, receiver.lost) == (26, 4)


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize(
    "places",
    [
        pytest.param([0, 1, 2, 2], id="twice"),
        pytest.param([0, 1, 3, 2], id="out of order"),
    ],
)
def test_a_frame_that_comes_twice_or_late_is_an_error(
    pair: tuple[socket.socket, Receiver], every: bool, places: list[int]
) -> None:
    ours, receiver = pair
    for place in places[:-1]:
        take(ours, receiver, FRAMES[place], every=every)
    with pytest.raises(BenchError, match="twice or out of order"):
        take(ours, receiver, FRAMES[places[-1]], every=every)


@pytest.mark.parametrize("every", [True, False])
def test_a_relay_that_closes_is_an_error(pair: tuple[socket.socket, Receiver], every: bool) -> None:
    ours, receiver = pair
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(BenchError, match="closed"):
        take(ours, receiver, b"", every=every)


def test_a_skipped_read_counts_and_the_next_look_finds_the_place() -> None:
    # TCP, since it alone throws bytes away when asked to (MSG_TRUNC).
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as theirs,
    ):
        receiver = Receiver(theirs, Check(KEY, PAYLOAD, 100))
        theirs.settimeout(5.0)
        buffer = bytearray(64 * 1024)
        for start in range(0, 100, 10):
            ours.sendall(b"".join(FRAMES[start : start + 10]))
            wanted = receiver.total + 10 * RING.size
            while receiver.total < wanted:
                receiver.skim(buffer)
    assert (receiver.received, receiver.lost) == (100, 0)
    assert receiver.check.checked == 2  # the first and the last frame of the one read that looked


def test_registration_waits_for_the_echo_and_skips_what_it_does_not_know() -> None:
    ours, relay = socket.socketpair()
    with ours, relay:
        register(ours, KEY)
        asked = relay.recv(4096)
        relay.sendall(encode(0x30, bytes(66)) + asked[37:])  # Register has 37 bytes, the rest is the echo
        await_echo(ours, KEY)


@pytest.mark.parametrize("answer", [encode_error("unknown key"), encode(ERROR)])
def test_registration_tells_of_a_refusal(answer: bytes) -> None:
    ours, relay = socket.socketpair()
    with ours, relay:
        relay.sendall(answer)
        with pytest.raises(BenchError, match="answered Register"):
            await_echo(ours, KEY)


def test_registration_tells_of_a_relay_that_closes() -> None:
    ours, relay = socket.socketpair()
    with ours:
        relay.close()
        with pytest.raises(BenchError, match="closed the connection after Register"):
            await_echo(ours, KEY)
