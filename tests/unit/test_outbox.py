"""The bounded queue of frames: order, what is dropped, and that a frame half on the wire stays whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relayd.netio.delays import BOUNDS_S, Delays
from relayd.netio.outbox import Outbox
from tests.helpers.outbox_frames import SMALLEST, drain, frame, number_of, run_of


def split(stream: bytes) -> list[int]:
    """The numbers of the frames in `stream`, which must be whole."""
    numbers = []
    while stream:
        size = int.from_bytes(stream[:4], "big") + 4
        assert len(stream) >= size, "the stream ends in the middle of a frame"
        numbers.append(number_of(stream[:size]))
        stream = stream[size:]
    return numbers


@pytest.mark.parametrize("step", [1, 37, 99, 100, 101, 1000])
def test_what_goes_in_comes_out_in_order(step: int) -> None:
    outbox = Outbox()
    outbox.put(run_of(range(3)), 0.0)
    outbox.put(frame(3, 64), 0.0)
    outbox.put(memoryview(run_of(range(4, 9))), 0.0)
    assert outbox.queued_frames == 9
    assert split(drain(outbox, 0.0, step)) == list(range(9))
    assert not outbox
    assert outbox.queued_bytes == outbox.queued_frames == 0


def test_full_queue_drops_the_oldest_and_counts_them() -> None:
    outbox = Outbox(max_bytes=SMALLEST)
    outbox.put(run_of(range(600)), 0.0)
    outbox.put(run_of(range(600, 700)), 0.0)
    kept = split(drain(outbox, 0.0))
    assert kept == list(range(700 - len(kept), 700))
    assert len(kept) == SMALLEST // 100
    assert outbox.dropped_full == 700 - len(kept)
    assert outbox.dropped_old == 0


def test_stale_frames_go_and_fresh_ones_stay() -> None:
    outbox = Outbox(max_age_s=0.5)
    outbox.put(run_of(range(3)), 10.0)
    outbox.put(frame(3), 10.4)
    assert split(drain(outbox, 10.6)) == [3]
    assert outbox.dropped_old == 3


def test_frame_as_old_as_allowed_stays() -> None:
    outbox = Outbox(max_age_s=0.5)
    outbox.put(frame(0), 10.0)
    assert split(drain(outbox, 10.5)) == [0]


@pytest.mark.parametrize("sent", [1, 50, 99, 101, 199, 250])
def test_half_sent_frame_is_finished_whatever_is_dropped_behind_it(sent: int) -> None:
    outbox = Outbox(max_bytes=SMALLEST, max_age_s=0.5)
    first, second = run_of(range(3)), frame(3)
    outbox.keep([first, second], sent, 0.0)
    wire = (first + second)[:sent]
    outbox.put(run_of(range(4, 700)), 0.0)
    assert outbox.dropped_full > 0
    outbox.expire(99.0)
    wire += drain(outbox, 99.0)
    assert split(wire) == list(range(-(-sent // 100)))


def test_keep_after_nothing_was_sent_keeps_everything() -> None:
    outbox = Outbox()
    outbox.keep([run_of(range(2)), frame(2)], 0, 0.0)
    assert split(drain(outbox, 0.0)) == [0, 1, 2]


def test_keep_on_a_frames_edge_leaves_no_rest() -> None:
    outbox = Outbox(max_age_s=0.5)
    outbox.keep([run_of(range(3))], 200, 0.0)
    assert split(drain(outbox, 0.0)) == [2]


def test_keep_behind_queued_frames_is_a_bug() -> None:
    outbox = Outbox()
    outbox.put(frame(0), 0.0)
    with pytest.raises(ValueError, match="come first"):
        outbox.keep([frame(1)], 10, 0.0)


def test_clear_tells_what_it_lost() -> None:
    outbox = Outbox()
    outbox.keep([run_of(range(4))], 150, 0.0)
    assert outbox.clear() == 2
    assert not outbox
    assert outbox.chunks(0.0) == []


def test_bound_too_small_for_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        Outbox(max_bytes=SMALLEST - 1)


@given(st.lists(st.integers(41, 3000), min_size=1, max_size=60))
def test_chunks_are_bounded(sizes: list[int]) -> None:
    outbox = Outbox()
    for number, size in enumerate(sizes):
        outbox.put(frame(number, size) * 5, 0.0)
    pieces = outbox.chunks(0.0)
    assert len(pieces) <= 512
    assert sum(map(len, pieces)) <= (256 << 10) + 5 * 3000


class AgainstAModel(RuleBasedStateMachine):
    """Anything that a socket and a clock can do. The wire must always be whole frames, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(max_bytes=SMALLEST, max_age_s=0.5)
        self.now = 0.0
        self.next = 0
        self.wire = b""

    @rule(size=st.integers(41, 4000), count=st.integers(1, 40))
    def put(self, size: int, count: int) -> None:
        run = run_of(range(self.next, self.next + count), size)
        self.next += count
        self.outbox.put(run, self.now)

    @rule(size=st.integers(41, 4000), count=st.integers(1, 40), part=st.floats(0, 1))
    def send_directly(self, size: int, count: int, part: float) -> None:
        if self.outbox:
            return
        run = run_of(range(self.next, self.next + count), size)
        self.next += count
        sent = int(len(run) * part)
        self.wire += run[:sent]
        self.outbox.keep([run], sent, self.now)

    @rule(seconds=st.floats(0, 0.4))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.outbox.expire(self.now)

    @rule(part=st.floats(0, 1))
    def send(self, part: float) -> None:
        offered = b"".join(self.outbox.chunks(self.now))
        taken = offered[: int(len(offered) * part)]
        self.outbox.sent(len(taken))
        self.wire += taken

    @invariant()
    def bounds_hold(self) -> None:
        # The rest of a half-sent frame is the one thing that can't be dropped.
        assert self.outbox.queued_bytes <= SMALLEST + 4000

    def teardown(self) -> None:
        waiting = self.outbox.queued_frames
        self.wire += drain(self.outbox, self.now - 1000.0)
        numbers = split(self.wire)
        assert numbers == sorted(set(numbers))
        dropped = self.outbox.dropped_full + self.outbox.dropped_old
        assert len(numbers) + dropped == self.next
        assert waiting <= len(numbers)


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_waited_is_told_with_how_long_it_did() -> None:
    delays = Delays()
    outbox = Outbox(delays=delays)
    outbox.put(run_of(range(5)), 10.0)
    outbox.put(frame(5), 10.030)
    pieces = outbox.chunks(10.040)
    outbox.sent(sum(map(len, pieces)))
    assert dict(zip(BOUNDS_S, delays.frames, strict=False)) == dict.fromkeys(BOUNDS_S, 0) | {0.05: 5, 0.01: 1}
    assert delays.sum_s == pytest.approx(5 * 0.040 + 0.010)


@pytest.mark.parametrize("step", [1, 37, 99, 100, 101, 1000])
def test_a_frame_is_told_of_once_however_it_is_cut(step: int) -> None:
    delays = Delays()
    outbox = Outbox(delays=delays)
    outbox.put(run_of(range(7)), 0.0)
    drain(outbox, 0.1, step)
    assert sum(delays.frames) == 7


def test_dropped_frames_and_those_that_did_not_wait_are_not_told_of() -> None:
    delays = Delays()
    outbox = Outbox(delays=delays, max_age_s=0.5)
    outbox.keep([run_of(range(10))], 550, 0.0)  # five on the wire, the sixth half, four wait
    drain(outbox, 0.1)
    assert sum(delays.frames) == 4
    outbox.put(frame(0), 1.0)
    outbox.expire(2.0)
    assert sum(delays.frames) == 4


def test_a_wait_longer_than_all_bounds_has_its_bucket() -> None:
    delays = Delays()
    delays.add(60.0, 2)
    assert delays.frames[-1] == 2
    assert delays.status()["sum_ms"] == 120_000.0
