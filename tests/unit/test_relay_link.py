"""relay_link: one connection at a time over real sockets on loopback, under a clock that stands still."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from relayd.agent.relay_link import LinkSettings, RelayLink
from relayd.coordination.model import RelayAddress
from relayd.keys import PublicKey
from relayd.netio.poller import Poller
from relayd.wire.frames import (
    BIMODAL_HINT,
    DATA,
    KEEPALIVE,
    KEYED_BYTES,
    REGISTER,
    RELAY_PROBE,
    encode,
    encode_data,
    encode_error,
    encode_hint,
    encode_relay_probe,
)
from relayd.wire.runs import Run
from tests.helpers.tiny_relay import Session, TinyRelay, dial_unmarked, settle, until

OWN = PublicKey(b"o" * 32)
PEER = PublicKey(b"p" * 32)


class Bench:
    """A link with its poller, and what it handed on."""

    def __init__(self, relay: RelayAddress, settings: LinkSettings, refuse: int = 0) -> None:
        """The first `refuse` dials fail."""
        self.poller = Poller()
        self.delivered: list[tuple[bytes, bytes]] = []
        self.dialled: list[socket.socket] = []
        self.dials_refused = 0
        self._refuse = refuse
        self.link = RelayLink(
            self.poller, relay, OWN, self._on_runs, settings, dial=self._dial, uniform=lambda low, high: high
        )

    def send(self, *frames: bytes) -> None:
        self.link.send(frames, sum(map(len, frames)))

    async def _dial(self, relay: RelayAddress, *, timeout_s: float) -> socket.socket:
        if self.dials_refused < self._refuse:
            self.dials_refused += 1
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError("nobody there")
        sock = await dial_unmarked(relay, timeout_s=timeout_s)
        self.dialled.append(sock)
        return sock

    def _on_runs(self, buffer: bytearray, runs: Sequence[Run], now: float) -> None:
        for _, key, first, stop, size in runs:
            for start in range(first, stop, size):
                self.delivered.append((key, bytes(buffer[start + KEYED_BYTES : start + size])))


@asynccontextmanager
async def running(
    relay: TinyRelay, settings: LinkSettings | None = None, refuse: int = 0
) -> AsyncIterator[Bench]:
    bench = Bench(relay.address, settings or LinkSettings(), refuse)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.poller.run)
            await nursery.start(bench.link.run)
            yield bench
            nursery.cancel_scope.cancel()
    finally:
        bench.poller.close()


async def connected(relay: TinyRelay, bench: Bench) -> Session:
    """The relay's end of a link that has just come up."""
    session = await relay.accept()
    await session.register(OWN)
    await until(lambda: bench.link.connected)
    return session


async def test_register_is_first_and_connected_means_that_an_echo_came_back(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as bench:
            session = await relay.accept()
            assert await session.expect(REGISTER) == OWN.raw
            await settle()
            assert bench.link.status()["state"] == "registering"
            mock_clock.jump(0.25)
            await session.echo()
            await until(lambda: bench.link.connected)
            status = bench.link.status()
            assert (status["state"], status["round_trip_ms"], status["dials"]) == ("connected", 250.0, 1)
            assert status["reason"] == ""
            assert status["endpoint"] == str(relay.address)


async def test_keepalive_every_25_seconds_and_echo_every_10(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay):
            session = await relay.accept()
            await session.register(OWN)
            kinds = []
            for _ in range(6):
                await settle()
                mock_clock.jump(5.0)
                await settle()
                if mock_clock.current_time() % 10 == 0:
                    await session.echo()
                    kinds.append(DATA)
                elif mock_clock.current_time() == 25.0:
                    assert await session.expect(KEEPALIVE) == b""
                    kinds.append(KEEPALIVE)
            assert kinds == [DATA, DATA, KEEPALIVE, DATA]


async def test_silent_relay_is_given_up_and_dialled_again(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay) as bench:
            await connected(relay, bench)
            for step_s in (10.0, 2.5, 2.5):
                mock_clock.jump(step_s)
                await settle()
            assert bench.link.status()["state"] == "waiting"
            assert bench.link.status()["reason"] == "2 echoes unanswered"
            mock_clock.jump(1.0)
            await (await relay.accept()).register(OWN)
            await until(lambda: bench.link.connected)
    events = [line["event"] for line in lines]
    assert events == ["link.connected", "link.lost", "link.connected", "link.lost"]
    assert lines[-1]["reason"] == "stopped"


async def test_three_faults_at_once_are_one_dial(mock_clock: MockClock) -> None:
    """A read error, a write error and an echo that times out meet in one round of the loop."""
    with TinyRelay() as relay:
        async with running(relay) as bench:
            session = await connected(relay, bench)
            mock_clock.jump(10.0)
            await settle()
            mock_clock.jump(2.5)
            await settle()
            session.reset()  # the poller has an error to read,
            bench.send(encode_data(PEER, b"x"))  # this write meets it first,
            mock_clock.jump(2.5)  # and the second echo is overdue
            await settle()
            assert bench.link.status()["state"] == "waiting"
            assert bench.link.dials == 1
            bench.send(encode_data(PEER, b"x"))
            await settle()
            mock_clock.jump(1.0)
            second = await relay.accept()
            await settle()
            assert bench.link.dials == 2
            await second.register(OWN)
            await until(lambda: bench.link.connected)
            mock_clock.jump(9.0)
            await settle()
            assert (bench.link.dials, len(bench.dialled), relay.waiting()) == (2, 2, 0)
            assert bench.link.drops()["link_lost"] == 1


async def test_link_never_gives_up_and_its_waits_grow_to_30_seconds(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, refuse=50) as bench:
            for dials, wait_s in enumerate([1.0, 2.0, 4.0, 8.0, 16.0] + [30.0] * 45, start=1):
                await wait_all_tasks_blocked()
                mock_clock.jump(wait_s - 0.5)
                await wait_all_tasks_blocked()
                assert bench.link.dials == dials
                mock_clock.jump(0.5)
            await (await relay.accept()).register(OWN)
            await until(lambda: bench.link.connected)
    assert [line["event"] for line in lines][:2] == ["link.dial_failed", "link.connected"]


async def test_connection_that_dies_young_does_not_reset_the_backoff(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as bench:
            for wait_s in (1.0, 2.0, 4.0):
                session = await connected(relay, bench)
                session.reset()
                await until(lambda: not bench.link.connected)
                await settle()
                mock_clock.jump(wait_s - 0.5)
                await settle()
                assert bench.link.status()["state"] == "waiting"
                mock_clock.jump(0.5)


async def test_thirty_useful_seconds_reset_the_backoff(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, refuse=3) as bench:
            for wait_s in (1.0, 2.0, 4.0):
                await settle()
                mock_clock.jump(wait_s)
            session = await connected(relay, bench)
            for _ in range(3):
                mock_clock.jump(10.0)
                frame = await session.next_frame()
                while frame is not None and frame[0] == KEEPALIVE:
                    frame = await session.next_frame()
                assert frame is not None
                await session.send(encode(*frame))
                await settle()
            session.reset()
            await until(lambda: not bench.link.connected)
            await settle()
            mock_clock.jump(1.0)
            await relay.accept()


async def test_data_of_peers_is_handed_on_and_echoes_are_not(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as bench:
            session = await relay.accept()
            await session.register(OWN)
            forged = encode_data(OWN, b"\x01\x00\x00\x00 not an echo")
            await session.send(encode_data(PEER, b"one") + forged + encode_data(PEER, b"two"))
            await until(lambda: len(bench.delivered) == 2)
            assert bench.delivered == [(PEER.raw, b"one"), (PEER.raw, b"two")]
            assert bench.link.drops() == {"own_key": 1}


async def test_frames_cut_anywhere_arrive_whole(mock_clock: MockClock) -> None:
    payloads = [bytes([index]) * (index * 7) for index in range(1, 20)]
    stream = b"".join(encode_data(PEER, payload) for payload in payloads)
    with TinyRelay() as relay:
        async with running(relay) as bench:
            session = await relay.accept()
            await session.register(OWN)
            for cut in range(0, len(stream), 53):
                await session.send(stream[cut : cut + 53])
                await settle()
            assert [payload for _, payload in bench.delivered] == payloads


async def test_relay_probe_is_answered_with_its_token(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay):
            session = await relay.accept()
            await session.register(OWN)
            await session.send(encode_relay_probe(b"whoareyo"))
            assert await session.expect(RELAY_PROBE) == b"whoareyo"


async def test_unknown_and_useless_frames_are_counted_and_skipped(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as bench:
            session = await relay.accept()
            await session.register(OWN)
            await session.send(
                encode(0x7E, b"what is this")
                + encode(RELAY_PROBE, b"short")
                + encode(DATA, b"too short for a key")
                + encode_hint(PEER)
                + encode(KEEPALIVE)
                + encode_data(PEER, b"after all that")
            )
            await until(lambda: bool(bench.delivered))
            assert bench.delivered == [(PEER.raw, b"after all that")]
            assert bench.link.received["unknown"] == 1
            assert bench.link.received["bimodal_hint"] == 1
            assert bench.link.drops() == {"short_data": 1, "malformed": 1}
            assert bench.link.connected


async def test_what_the_relay_complains_of_is_logged_and_shown(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay) as bench:
            session = await relay.accept()
            await session.register(OWN)
            await session.send(encode_error("replaced by a newer connection") * 50)
            await settle()
            assert bench.link.status()["reason"] == "the relay says: replaced by a newer connection"
            session.sock.close()
            await until(lambda: not bench.link.connected)
            assert bench.link.status()["reason"] == "closed by the relay (replaced by a newer connection)"
    assert [line["event"] for line in lines].count("relay.complained") == 1


async def test_protocol_error_ends_the_connection_after_what_came_before(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as bench:
            session = await relay.accept()
            await session.register(OWN)
            await session.send(encode_data(PEER, b"good") + b"\xff\xff\xff\xff\x02")
            await until(lambda: bench.link.status()["state"] == "waiting")
            assert bench.delivered == [(PEER.raw, b"good")]
            assert str(bench.link.status()["reason"]).startswith("protocol error: a frame of length")


async def test_frames_of_the_last_moment_wait_for_the_connection(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(queue_age_s=3600.0), refuse=1) as bench:
            await settle()
            bench.send(encode_data(PEER, b"initiation"), encode_data(PEER, b"and another one"))
            mock_clock.jump(1.0)
            session = await relay.accept()
            assert await session.expect(REGISTER) == OWN.raw
            await session.echo()
            assert await session.expect(DATA) == PEER.raw + b"initiation"
            assert await session.expect(DATA) == PEER.raw + b"and another one"
            assert bench.link.drops() == {}


async def test_frames_that_waited_too_long_for_a_connection_are_dropped_and_counted(
    mock_clock: MockClock,
) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(queue_age_s=-1.0), refuse=1) as bench:
            await settle()
            bench.send(encode_data(PEER, b"too old"))
            assert bench.link.drops() == {"not_connected": 1}
            mock_clock.jump(1.0)
            session = await connected(relay, bench)
            bench.send(encode_data(PEER, b"fresh"))
            assert await session.expect(DATA) == PEER.raw + b"fresh"
            assert bench.link.drops() == {"not_connected": 1}


async def test_relay_that_does_not_read_costs_the_oldest_frames_and_tears_none(mock_clock: MockClock) -> None:
    with TinyRelay(receive_buffer=64 << 10) as relay:
        async with running(relay, LinkSettings(queue_age_s=3600.0)) as bench:
            session = await connected(relay, bench)
            sent = 0
            while bench.link.drops().get("queue_full", 0) < 1000:
                burst = [
                    encode_data(PEER, index.to_bytes(4, "big") * 363) for index in range(sent, sent + 64)
                ]
                bench.send(*burst)
                sent += 64
            dropped = bench.link.drops()["queue_full"]
            bench.send(encode_hint(PEER))
            numbers = []
            while (frame := await session.next_frame()) is not None and frame[0] != BIMODAL_HINT:
                assert frame[0] == DATA
                assert frame[1][:32] == PEER.raw
                body = frame[1][32:]
                assert body == body[:4] * 363
                numbers.append(int.from_bytes(body[:4], "big"))
            assert numbers == sorted(numbers)
            assert numbers[-1] == sent - 1
            assert len(numbers) == sent - dropped
            await settle()
            bench.send(encode_data(PEER, b"flows again"))
            assert await session.expect(DATA) == PEER.raw + b"flows again"
            assert bench.link.drops() == {"queue_full": dropped}


async def test_buffers_given_to_send_may_be_reused_at_once(mock_clock: MockClock) -> None:
    with TinyRelay(receive_buffer=64 << 10) as relay:
        async with running(relay, LinkSettings(queue_age_s=3600.0, queue_bytes=64 << 20)) as bench:
            session = await connected(relay, bench)
            slot = bytearray(encode_data(PEER, bytes(1400)))
            view = memoryview(slot)
            count = 12_000
            for index in range(count):
                slot[KEYED_BYTES : KEYED_BYTES + 4] = index.to_bytes(4, "big")
                bench.link.send([view], len(view))
            bench.send(encode_hint(PEER))
            numbers = []
            while (frame := await session.next_frame()) is not None and frame[0] != BIMODAL_HINT:
                numbers.append(int.from_bytes(frame[1][32:36], "big"))
            assert numbers == list(range(count))


async def test_changed_own_key_registers_anew_at_once(mock_clock: MockClock) -> None:
    other = PublicKey(b"n" * 32)
    with TinyRelay() as relay:
        async with running(relay) as bench:
            session = await connected(relay, bench)
            bench.link.register_as(OWN)
            bench.link.register_as(other)
            assert await session.next_frame() is None
            await (await relay.accept()).register(other)
            await until(lambda: bench.link.connected)
            assert bench.link.dials == 2


async def test_key_that_changes_during_a_wait_ends_the_wait_once(mock_clock: MockClock) -> None:
    other = PublicKey(b"n" * 32)
    with TinyRelay() as relay:
        async with running(relay, refuse=2) as bench:
            await settle()
            bench.link.register_as(other)
            await settle()
            assert (bench.link.dials, bench.link.status()["state"]) == (2, "waiting")
            mock_clock.jump(2.0)
            await (await relay.accept()).register(other)
