"""One that sends more frames than may be dealt with at once: it goes on in turns, and the others aren't kept
waiting."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import pairwise

import pytest
import trio
import trio.testing

from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.manager.handover import Handover
from relayd.manager.manager import Manager
from relayd.netio.poller import Poller
from relayd.relay import turns
from relayd.relay.bounds import Bounds
from relayd.relay.connection import TURN_RUNS, Connection
from relayd.relay.dataplane import DataPlane
from relayd.relay.rates import KeyRates
from relayd.relay.turns import SHORT_READ_BYTES
from relayd.wire import frames
from tests.helpers.identities import ALICE, BOB
from tests.helpers.running_relay import SOON_S

A, B = ALICE.public(), BOB.public()
ROUND_BYTES = 256 << 10
BOUNDS = Bounds(
    round_bytes=ROUND_BYTES,
    queue_bytes=1 << 20,
    queue_age_s=60.0,
    memory_bytes=1 << 30,
    rates=KeyRates(),
    stalled_s=30.0,
)
TINY = frames.encode(0x77)
"""Of a type that nobody knows."""


ENDS = 0x78
"""A type that ends its connection, as a malformed Ping does."""


class Rig:
    """A data plane, and its agents' ends."""

    def __init__(self) -> None:
        self.handled: list[PublicKey] = []
        self.closed: list[PublicKey] = []
        self.plane = DataPlane(
            Poller(),
            BOUNDS,
            Handover(Manager.none(), b"test 1"),
            on_control=self._on_control,
            on_closed=lambda connection, _reason, _say: self.closed.append(connection.key),
        )
        self._ours: list[socket.socket] = []

    def _on_control(self, connection: Connection, kind: int, _body: memoryview) -> None:
        self.handled.append(connection.key)
        if kind == ENDS:
            self.plane.close(connection, "test")

    def agent(self, key: PublicKey) -> tuple[socket.socket, Connection]:
        relays, agents = socket.socketpair()
        relays.setblocking(False)
        agents.setblocking(False)
        self._ours += [relays, agents]
        endpoint = Endpoint.parse("192.0.2.1:1")
        return agents, self.plane.adopt(relays, key, endpoint, handshake=None)

    async def until(self, count: int) -> None:
        """Serve until so many frames have been handled, and the plane is idle."""
        with trio.fail_after(SOON_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(self.plane.poller.run)
                while len(self.handled) < count:  # noqa: ASYNC110
                    await trio.sleep(0.001)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    def close(self) -> None:
        for sock in self._ours:
            sock.close()
        self.plane.turns.close()
        self.plane.poller.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


async def test_thousands_of_tiny_frames_in_one_read_keep_nobody_waiting(rig: Rig) -> None:
    greedy, _ = rig.agent(A)
    other, _ = rig.agent(B)
    greedy.send(TINY * 5000)
    other.send(TINY)
    await rig.until(5001)
    assert len(rig.handled) == 5001
    assert rig.handled.index(B) <= 2 * TURN_RUNS


async def test_of_many_that_do_so_one_has_a_turn_at_a_time(rig: Rig) -> None:
    crowd = [rig.agent(PublicKey(bytes([number + 1]) * 32))[0] for number in range(20)]
    for one in crowd:
        one.send(TINY * 1000)
    rig.plane.poller.after_batch.append(lambda: batches.append(len(rig.handled)))
    batches: list[int] = []
    await rig.until(20_000)
    # The first read of each is a turn too.
    assert batches[0] == 20 * TURN_RUNS
    assert max(later - before for before, later in pairwise(batches)) == TURN_RUNS


async def test_who_is_paused_has_no_turn_and_one_place_afterwards(rig: Rig) -> None:
    """A limit on what its key may send: it pauses while it waits for its turn, and is read again before that
    comes."""
    greedy, connection = rig.agent(A)
    other, second = rig.agent(B)
    for agent, one in ((greedy, connection), (other, second)):
        agent.send(TINY * 4 * TURN_RUNS)
        one.on_event(1)
    connection.paused = True
    rig.plane.turns._on_ring(1)
    assert rig.handled == [A] * TURN_RUNS + [B] * TURN_RUNS
    connection.paused = False
    for _ in range(2):
        rig.plane.turns.behind(connection)
    for _ in range(3):
        rig.plane.turns._on_ring(1)
    assert rig.handled[2 * TURN_RUNS :] == [B] * TURN_RUNS + [A] * TURN_RUNS + [B] * TURN_RUNS


async def test_what_is_behind_goes_on_in_order_and_to_the_end(rig: Rig) -> None:
    greedy, connection = rig.agent(A)
    other, _ = rig.agent(B)
    greedy.send(b"".join(frames.encode_data(B, number.to_bytes(2, "big")) + TINY for number in range(2000)))
    greedy.close()
    await rig.until(2000)
    got = other.recv(1 << 20)
    assert got == b"".join(frames.encode_data(A, number.to_bytes(2, "big")) for number in range(2000))
    assert (rig.handled, rig.closed) == ([A] * 2000, [A])
    assert not connection.behind_bytes


async def test_who_is_ended_by_one_of_many_frames_has_no_turn_any_more(rig: Rig) -> None:
    for key, ends_at in ((A, 10), (B, TURN_RUNS + 10)):
        greedy, connection = rig.agent(key)
        greedy.send(TINY * ends_at + frames.encode(ENDS) + TINY * 4 * TURN_RUNS)
        await rig.until(len(rig.handled) + ends_at)
        assert rig.closed[-1] == key
        assert not connection.behind_bytes
    assert rig.plane.round_bytes == ROUND_BYTES


async def test_a_frame_that_is_cut_behind_many_is_finished(rig: Rig) -> None:
    greedy, connection = rig.agent(A)
    whole = frames.encode_data(A, bytes(3000))
    greedy.send(TINY * (TURN_RUNS + 1) + whole[:-1])
    await rig.until(TURN_RUNS + 1)
    assert (len(connection.partial), connection.behind_bytes) == (len(whole) - 1, 0)
    greedy.send(whole[-1:] + TINY)
    await rig.until(TURN_RUNS + 2)
    assert greedy.recv(1 << 20) == whole


async def test_reads_are_short_while_much_is_kept_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_KEPT_BYTES", 1000)
    plane = rig.plane
    greedy, connection = rig.agent(A)
    leaves, gone = rig.agent(B)
    for agent, one in ((greedy, connection), (leaves, gone)):
        agent.send(TINY * 1000)
        one.on_event(1)
        assert plane.round_bytes == SHORT_READ_BYTES
    plane.close(gone, "test")
    assert plane.round_bytes == SHORT_READ_BYTES
    await rig.until(1000 + TURN_RUNS)
    assert plane.round_bytes == ROUND_BYTES
