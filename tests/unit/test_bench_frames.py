"""What the load sends and how it checks what comes back; and when each write is due."""

from __future__ import annotations

import itertools

import pytest

from bench.agent_load import RING, DatagramRing, own_drops
from bench.frames import Check, Ring, key_of
from bench.model import BenchError
from bench.schedule import Schedule, even_order, weighted_order
from relayd.keys import PublicKey
from relayd.wire.frames import DATA, encode_error
from relayd.wire.runs import Run, scan

A, B = key_of(1), key_of(2)


def runs_of(ring: Ring) -> list[Run]:
    runs: list[Run] = []
    assert scan(ring.buffer, 0, len(ring.buffer), None, runs) == len(ring.buffer)
    return runs


def test_a_ring_is_whole_data_frames_for_its_destination() -> None:
    ring = Ring([A] * 5, 1452)
    assert runs_of(ring) == [(DATA, A, 0, 5 * ring.size, ring.size)]
    assert ring.size == 1452 + 37


def test_keys_differ_and_are_keys() -> None:
    keys = {PublicKey(key_of(number)) for number in range(2000)}
    assert len(keys) == 2000


def test_numbers_go_on_when_the_ring_is_sent_again() -> None:
    ring = Ring([A] * 4, 64)
    check = Check(A, 64, 4)
    numbers: list[int] = []
    for _ in range(300):  # past one byte of the block's number
        numbers += [check.sequence(ring.buffer, place * ring.size) for place in range(4)]
        ring.advance()
    assert numbers == list(range(1200))
    assert check.checked == 1200


def test_each_receiver_of_a_shuffled_ring_has_numbers_of_its_own() -> None:
    order = [A, B, B, A, A, B]
    ring = Ring(order, 64)
    for key in (A, B):
        check = Check(key, 64, 3)
        places = [place for place, who in enumerate(order) if who == key]
        assert [check.sequence(ring.buffer, place * ring.size) for place in places] == [0, 1, 2]


def test_destinations_must_occur_equally_often() -> None:
    with pytest.raises(ValueError, match="equally often"):
        Ring([A, A, B], 64)


@pytest.mark.parametrize("payload", [15, 16 * 1024 + 1])
def test_a_payload_that_cannot_be_measured_is_refused(payload: int) -> None:
    with pytest.raises(BenchError, match=str(payload)):
        Ring([A], payload)


@pytest.mark.parametrize("place", [0, 3, 4, 5, 36, 45, 100])
def test_a_frame_with_one_byte_changed_is_refused(place: int) -> None:
    ring = Ring([A] * 2, 64)
    ring.buffer[ring.size + place] ^= 1
    check = Check(A, 64, 2)
    assert check.sequence(ring.buffer, 0) == 0
    with pytest.raises(BenchError, match=r"other bytes|another sender|type 0x"):
        check.sequence(ring.buffer, ring.size)


def test_a_frame_with_another_key_is_told_as_such() -> None:
    with pytest.raises(BenchError, match="another sender"):
        Check(B, 64, 1).sequence(Ring([A], 64).buffer, 0)


def test_the_text_of_an_error_frame_is_told() -> None:
    buffer = bytearray(encode_error("not admitted")) + bytes(200)
    with pytest.raises(BenchError, match="not admitted"):
        Check(A, 64, 1).sequence(buffer, 0)


def test_writes_are_spread_evenly_and_found_again_by_their_numbers() -> None:
    schedule = Schedule(rate=1000, burst=2, order=even_order(5))
    assert schedule.interval_ns == 2e6
    assert schedule.writes_in(1.0) == 500
    done = [0] * 5
    for write in range(50):
        pair = schedule.order[write % 5]
        for sequence in range(done[pair], done[pair] + 2):
            assert schedule.write_of(schedule.positions(pair), sequence) == write
        done[pair] += 2


def test_an_extra_pair_has_its_share_of_every_round() -> None:
    order = weighted_order(pairs=50, extra=50, weight=25)
    assert sorted(order) == [*range(50), *[50] * 25]
    gaps = [i for i, pair in enumerate(order) if pair == 50]
    assert {b - a for a, b in itertools.pairwise(gaps)} == {3}
    schedule = Schedule(rate=15_000, burst=1, order=order)
    places = schedule.positions(50)
    assert [schedule.write_of(places, number) for number in range(26)] == [*gaps, len(order) + gaps[0]]


def test_datagrams_are_numbered_on() -> None:
    ring = DatagramRing(100)
    for block in range(3):
        for index in (0, 1, RING - 1):
            assert int.from_bytes(ring.buffer[index * 100 : index * 100 + 8], "big") == block * RING + index
        ring.advance()


def test_own_drops_are_read_from_the_right_line() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"  # noqa: E501
        "  1: 0100007F:3039 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 17\n"
        "  2: 00000000:3039 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 99\n"
    )
    assert own_drops(12345, table) == 17
    assert own_drops(1, table) == 0
