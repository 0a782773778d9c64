"""What a relay tells those who have proved their keys: PeerGone, Ping, Drain, Health; and whom it closes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from relayd.relay import housekeeping, liveness, notices
from relayd.relay.liveness import ASK_AFTER_S, BUSY_S, IDLE_S, Judgement, judge
from relayd.relay.memory import memory_limit
from relayd.relay.notices import DESTINATIONS, GoneNotices
from relayd.signals import Signals
from relayd.wire import frames
from relayd.wire.identity_frames import (
    DRAIN,
    PING,
    Gone,
    PeerGone,
    decode_drain_untrusted,
    decode_peer_gone_untrusted,
    encode_ping,
    encode_pong,
)
from tests.helpers.identities import ALICE, BOB, MALLORY, agent_side, private
from tests.helpers.running_relay import Client, relay

A, B, M = ALICE.public(), BOB.public(), MALLORY.public()


async def next_of(client: Client, kind: int) -> bytes:
    """The body of the next frame of this type; others are let pass."""
    while frame := await client.frame():
        if frame[4] == kind:
            return frame[5:]
    raise AssertionError("the relay has closed")


# PeerGone -------------------------------------------------------------------------------------------------


async def test_sender_is_told_that_its_destination_is_absent_once_a_second(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.proved(ALICE) as a:
        await a.send(frames.encode_data(B, b"x") * 100, frames.encode_hint(B), frames.encode_data(M, b"x"))
        assert await a.frame() == PeerGone(B, Gone.ABSENT).encode()
        assert await a.frame() == PeerGone(M, Gone.ABSENT).encode()
        await a.echo(A)
        status = await running.status()
        assert status["drops"]["absent"] == 102  # type: ignore[index]


async def test_the_unproved_are_told_nothing_of_part_2(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.agent(A) as a:
        await a.send(frames.encode_data(B, b"x"))
        echo = frames.encode_data(A, b"x")
        await a.send(echo)
        assert await a.frame() == echo


async def test_sender_is_told_that_its_destination_does_not_read(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.proved(ALICE) as a, running.proved(BOB):
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    while True:
                        await a.send(frames.encode_data(B, bytes(60_000)))

                nursery.start_soon(flood)
                gone = decode_peer_gone_untrusted(await next_of(a, 0x33))
                nursery.cancel_scope.cancel()
        assert gone == PeerGone(B, Gone.STALLED)


def test_notices_are_one_a_second_for_each_destination() -> None:
    told = GoneNotices()
    assert told.due(b"a", 10.0)
    assert not told.due(b"a", 10.9)
    assert told.due(b"b", 10.9)
    assert told.due(b"a", 11.0)
    assert not told.due(b"b", 11.5)


def test_notices_are_bounded_whatever_is_sent_to() -> None:
    told = GoneNotices()
    assert sum(told.due(number.to_bytes(4, "big"), 10.0) for number in range(1000)) == DESTINATIONS
    assert told.due(b"another", 10.0 + notices.AGAIN_S)


# Liveness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silent_s", "asked", "answers", "judgement"),
    [
        (0.0, False, True, Judgement.LIVES),
        (ASK_AFTER_S - 0.1, False, True, Judgement.LIVES),
        (ASK_AFTER_S, False, True, Judgement.ASK),
        (ASK_AFTER_S, True, True, Judgement.LIVES),
        (BUSY_S, True, True, Judgement.ASK_KERNEL),
        (IDLE_S, True, True, Judgement.DEAD),
        (IDLE_S, False, True, Judgement.ASK),
        (74.9, False, False, Judgement.LIVES),
        (75.0, False, False, Judgement.DEAD),
        (75.0, False, True, Judgement.DEAD),
    ],
)
def test_who_lives(silent_s: float, asked: bool, answers: bool, judgement: Judgement) -> None:
    assert judge(silent_s=silent_s, asked=asked, answers=answers, silence_s=75.0) is judgement


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a twentieth as long."""
    for name in ("ASK_AFTER_S", "BUSY_S", "IDLE_S"):
        monkeypatch.setattr(liveness, name, getattr(liveness, name) / 20)
    monkeypatch.setattr(housekeeping, "ASK_AFTER_S", ASK_AFTER_S / 20)
    monkeypatch.setattr(housekeeping, "HOUSEKEEPING_S", 0.02)


@pytest.mark.usefixtures("quick")
async def test_agent_that_answers_pings_stays_and_one_that_does_not_is_closed(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.proved(ALICE) as a, running.proved(BOB) as b:
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                while True:
                    await a.send(encode_pong(await next_of(a, PING)))

            nursery.start_soon(answer)
            await next_of(b, PING)
            assert await b.frame() == b""
            nursery.cancel_scope.cancel()
        await a.echo(A)


async def test_pings_behind_one_that_ends_the_connection_are_not_answered(tmp_path: Path) -> None:
    """Least of all where the answers don't fit the socket any more."""
    async with (
        relay(tmp_path) as running,
        running.proved(ALICE) as a,
        running.connection() as m,
    ):
        m.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await m.prove(MALLORY, token=running.token)
        ping = encode_ping(b"12345678")
        while not (await running.status())["backlogged"]:
            await m.send(ping * 5000)
        await m.send(frames.encode(PING, b"short") + ping * 100)
        with trio.fail_after(20):
            while (await running.status())["connections"] != 1:  # noqa: ASYNC110
                await trio.sleep(0.02)
        await a.echo(A)


@pytest.mark.usefixtures("quick")
async def test_the_unproved_are_not_pinged_and_may_be_silent_for_longer(tmp_path: Path) -> None:
    async with relay(tmp_path, silence_s=1.5) as running, running.agent(A) as a:
        started = trio.current_time()
        assert await a.frame() == b""
        assert trio.current_time() - started > 1.0


# Slow readers ---------------------------------------------------------------------------------------------


async def test_reader_that_has_stopped_is_closed_though_it_speaks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with (
        relay(tmp_path, stalled_s=1.0) as running,
        running.proved(ALICE) as a,
        running.proved(BOB) as b,
        trio.open_nursery() as nursery,
    ):

        async def flood() -> None:
            while True:
                await a.send(frames.encode_data(B, bytes(60_000)))

        nursery.start_soon(flood)

        # What the one that doesn't read sends arrives, until its connection is closed, with much unread.
        async def speak() -> None:
            while True:
                await b.stream.send_all(frames.KEEPALIVE_FRAME)
                await trio.sleep(0.05)

        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
            await speak()
        assert "has read nothing for 1 s" in capfd.readouterr().out
        nursery.cancel_scope.cancel()


# Memory ---------------------------------------------------------------------------------------------------


async def test_all_queues_together_stay_below_the_ceiling(tmp_path: Path) -> None:
    """G18: readers that don't read cost what the ceiling says, and the others nothing."""
    ceiling = 2 << 20
    async with relay(tmp_path, memory_bytes=ceiling, queue_age_ms=60_000) as running:
        keys = [private(f"stopped {number}") for number in range(6)]
        async with running.proved(ALICE) as a, running.proved(BOB) as b, trio.open_nursery() as nursery:
            ready = [trio.Event() for _ in keys]

            async def stop_reading(number: int) -> None:
                async with running.proved(keys[number]) as stopped:
                    stopped.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    ready[number].set()
                    await trio.sleep_forever()

            for number in range(len(keys)):
                nursery.start_soon(stop_reading, number)
                await ready[number].wait()
            for _ in range(200):
                await a.send(*(frames.encode_data(key.public(), bytes(8000)) for key in keys))
                await a.send(frames.encode_data(B, b"live"))
                assert await b.frame() == frames.encode_data(A, b"live")
            status = await running.status()
            assert ceiling // 2 < status["queued_bytes"] <= ceiling  # type: ignore[operator]
            assert status["drops"]["memory"] > 0  # type: ignore[index]
            nursery.cancel_scope.cancel()


def test_memory_limit_is_the_least_of_all_groups(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    host = memory_limit(tmp_path, tmp_path / "nothing")
    assert memory_limit(tmp_path, own) == host > 1 << 20
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path, own) == host
    (tmp_path / "a" / "memory.max").write_text("65536\n")
    assert memory_limit(tmp_path, own) == 65536
    own.write_text("4:cpu,memory:/c\n5:pids:/c\n")
    (tmp_path / "memory" / "c").mkdir(parents=True)
    (tmp_path / "memory" / "c" / "memory.limit_in_bytes").write_text("32768\n")
    assert memory_limit(tmp_path, own) == 32768


# Drain ----------------------------------------------------------------------------------------------------


async def test_drain_asks_the_proved_carries_on_and_ends_when_they_have_left(tmp_path: Path) -> None:
    signals = Signals()
    async with (
        relay(tmp_path, signals=signals, drain_s=600) as running,
        running.agent(M) as bare,
        running.proved(ALICE) as a,
    ):
        async with running.proved(BOB) as b:
            signals.draining.set()
            for client in (a, b):
                assert decode_drain_untrusted(await next_of(client, DRAIN)) == 600
            await a.send(frames.encode_data(B, b"still here"))
            assert await b.frame() == frames.encode_data(A, b"still here")
            with pytest.raises(OSError, match="refused"):
                async with running.connection():
                    pass
        assert not signals.drained.is_set()
        await a.stream.aclose()
        with trio.fail_after(20):
            await signals.drained.wait()
        await bare.echo(M)


async def test_drain_ends_in_time_though_nobody_leaves(tmp_path: Path) -> None:
    signals = Signals()
    async with relay(tmp_path, signals=signals, drain_s=0.3) as running, running.proved(ALICE):
        signals.draining.set()
        with trio.fail_after(20):
            await signals.drained.wait()


async def test_drain_asks_those_too_who_were_at_the_door_when_it_closed(tmp_path: Path) -> None:
    signals = Signals()
    async with (
        relay(tmp_path, signals=signals, drain_s=600) as running,
        running.proved(ALICE) as a,
        running.connection() as late,
    ):
        await late.send(frames.encode_register(B)[:5])
        with trio.fail_after(20):
            while (await running.status())["unregistered"] != 1:  # noqa: ASYNC110
                await trio.sleep(0.02)
        signals.draining.set()
        await next_of(a, DRAIN)
        await late.send(frames.encode_register(B)[5:])
        agent = agent_side("late", key=BOB, token=running.token)
        agent.hello()
        challenge = await late.any_frame()
        await late.send(agent.on_frame(challenge[4], challenge[5:], 0.0).send)
        assert 590 <= decode_drain_untrusted(await next_of(late, DRAIN)) <= 600
