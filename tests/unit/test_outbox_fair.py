"""The fair outbox of a relay's connection: senders share what the link takes, and the greedy one pays."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relayd.keys import PublicKey
from relayd.netio.outbox import Outbox
from relayd.wire.frames import encode, encode_data
from tests.helpers.outbox_frames import SMALLEST, drain, frame, number_of, run_of

SENDERS = [PublicKey(bytes([number]) * 32) for number in range(1, 22)]


def from_sender(key: PublicKey, number: int, size: int = 1489) -> bytes:
    return encode_data(key, number.to_bytes(4, "big").ljust(size - 37, b"."))


def whole_frames(stream: bytes) -> list[tuple[bytes, int]]:
    """(sender, number) of each frame."""
    found = []
    while stream:
        size = int.from_bytes(stream[:4], "big") + 4
        assert len(stream) >= size
        found.append((stream[5:37], number_of(stream[:size])))
        stream = stream[size:]
    return found


def test_one_sender_at_line_rate_leaves_the_others_their_share() -> None:
    """G17 at one shared destination: its link takes a tenth of what one sender offers; the others ask for
    less than their share, and get all of it."""
    outbox = Outbox(max_age_s=0.5, fair=True)
    greedy, others = SENDERS[0], SENDERS[1:]
    link_bytes = 60 * 1489
    got: Counter[bytes] = Counter()
    delays = []
    sent_at: dict[tuple[bytes, int], float] = {}
    for step in range(1000):
        now = step * 0.010
        outbox.put(b"".join(from_sender(greedy, step * 600 + n) for n in range(600)), now)
        for key in others:
            for number in (2 * step, 2 * step + 1):
                sent_at[key.raw, number] = now
                outbox.put(from_sender(key, number), now)
        wire, room = b"", link_bytes
        while room and (pieces := outbox.chunks(now)):
            part = b"".join(pieces)[:room]
            outbox.sent(len(part))
            wire += part
            room -= len(part)
        # Whole frames each time: link_bytes is a multiple of their size.
        for sender, number in whole_frames(wire):
            got[sender] += 1
            if (sender, number) in sent_at:
                delays.append(now - sent_at[sender, number])
    assert sum(got.values()) > 59_000
    for key in others:
        assert got[key.raw] > 0.99 * 2000
    assert got[greedy.raw] > 15_000
    assert max(delays) < 0.1


def test_equal_senders_share_alike_whatever_their_frames_size() -> None:
    outbox = Outbox(fair=True, max_age_s=60.0)
    sizes = dict(zip(SENDERS[:4], (64, 512, 1489, 60_000), strict=True))
    got: Counter[bytes] = Counter()
    for step in range(40):
        for key, size in sizes.items():
            for _ in range(max(1, 200_000 // size)):
                outbox.put(from_sender(key, step, size), 0.0)
        part = b"".join(outbox.chunks(0.0))
        outbox.sent(len(part))
        for sender, _ in whole_frames(part):
            got[sender] += sizes[PublicKey(sender)]
    least, most = min(got.values()), max(got.values())
    assert least > 0.9 * most


def test_who_lost_frames_is_known_and_the_relays_own_frames_do_not_grow_old() -> None:
    outbox = Outbox(max_age_s=0.5, fair=True)
    outbox.put(from_sender(SENDERS[0], 1), 0.0)
    outbox.put(from_sender(SENDERS[1], 2), 0.4)
    outbox.put(encode(0x35, b"health"), 0.0)
    outbox.expire(0.6)
    assert outbox.losers == {SENDERS[0].raw}
    assert outbox.queued_frames == 2


def test_a_single_sender_is_served_as_ever() -> None:
    fair, plain = Outbox(fair=True), Outbox()
    for outbox in (fair, plain):
        outbox.keep([run_of(range(50)), frame(50, 300)], 250, 0.0)
        outbox.put(run_of(range(51, 70)), 0.0)
    assert drain(fair, 0.0, 777) == drain(plain, 0.0, 777)


def test_shed_takes_from_whom_holds_most() -> None:
    outbox = Outbox(fair=True)
    outbox.put(from_sender(SENDERS[0], 1) * 100, 0.0)
    outbox.put(from_sender(SENDERS[1], 1) * 10, 0.0)
    before = outbox.queued_bytes
    outbox.shed(50_000)
    assert before - outbox.queued_bytes >= 50_000
    assert outbox.losers == {SENDERS[0].raw}
    outbox.shed(1 << 30)
    assert not outbox
    assert outbox.memory_bytes == 0


class FairAgainstAModel(RuleBasedStateMachine):
    """Several senders: each one's frames stay in order, whole, and are sent or counted as dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(max_bytes=SMALLEST, max_age_s=0.5, fair=True)
        self.now = 0.0
        self.next = 0
        self.wire = b""

    def make(self, sender: int, size: int, count: int) -> bytes:
        first, self.next = self.next, self.next + count
        return b"".join(from_sender(SENDERS[sender], number, size) for number in range(first, self.next))

    @rule(sender=st.integers(0, 4), size=st.integers(41, 4000), count=st.integers(1, 40))
    def put(self, sender: int, size: int, count: int) -> None:
        self.outbox.put(self.make(sender, size, count), self.now)

    @rule(
        sender=st.integers(0, 4), size=st.integers(41, 4000), count=st.integers(1, 40), part=st.floats(0, 1)
    )
    def send_directly(self, sender: int, size: int, count: int, part: float) -> None:
        if self.outbox:
            return
        run = self.make(sender, size, count)
        sent = int(len(run) * part)
        self.wire += run[:sent]
        self.outbox.keep([run], sent, self.now)

    @rule(seconds=st.floats(0, 0.4))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(excess=st.integers(1, 20_000))
    def shed(self, excess: int) -> None:
        self.outbox.shed(excess)

    @rule(part=st.floats(0, 1))
    def send(self, part: float) -> None:
        offered = b"".join(self.outbox.chunks(self.now))
        taken = offered[: int(len(offered) * part)]
        self.outbox.sent(len(taken))
        self.wire += taken

    @invariant()
    def bounds_hold(self) -> None:
        assert self.outbox.queued_bytes <= SMALLEST + 4000
        assert self.outbox.queued_bytes <= self.outbox.memory_bytes

    def teardown(self) -> None:
        self.wire += drain(self.outbox, self.now - 1000.0)
        assert self.outbox.memory_bytes == 0
        sent = whole_frames(self.wire)
        for key in SENDERS[:5]:
            numbers = [number for sender, number in sent if sender == key.raw]
            assert numbers == sorted(set(numbers))
        dropped = self.outbox.dropped_full + self.outbox.dropped_old + self.outbox.dropped_memory
        assert len(sent) + dropped == self.next


TestFairAgainstAModel = FairAgainstAModel.TestCase
TestFairAgainstAModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
