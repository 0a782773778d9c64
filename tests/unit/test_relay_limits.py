"""What a relay takes: connections, their pace, bytes of one key, descriptors; and files read again."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio import Process

from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.relay.door_limits import FULL, TOO_FAST, TOO_MANY_HERE, Counting, DoorLimits
from relayd.relay.rates import BucketOf
from relayd.relay.waiting_room import WaitingRoom, place_of
from relayd.token_bucket import TokenBucket
from relayd.wire import frames
from tests.helpers.identities import ALICE, BOB, MALLORY
from tests.helpers.running_relay import SOON_S, Client, Running, relay

A, B, M = ALICE.public(), BOB.public(), MALLORY.public()
LIMITS = DoorLimits(
    max_unregistered=10,
    max_unregistered_per_address=5,
    max_connections=4,
    max_connections_per_address=3,
    accepts_s=100.0,
    accepts_per_address_s=2.0,
)


# The parts ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 100)), max_size=50))
def test_a_bucket_never_gives_more_than_its_rate_and_one_burst(steps: list[tuple[float, float]]) -> None:
    bucket = TokenBucket(10.0, 20.0, 0.0)
    now = given_ = 0.0
    for wait_s, amount in steps:
        now += wait_s
        if bucket.try_take(amount, now):
            given_ += amount
        assert given_ <= 20.0 + 10.0 * now + 1e-6


def test_an_overdrawn_bucket_says_when_it_is_good_again() -> None:
    bucket = TokenBucket(10.0, 20.0, 0.0)
    assert bucket.take(20.0, 0.0) == 0.0
    assert bucket.take(5.0, 0.0) == 0.5
    assert not bucket.try_take(1.0, 0.5)
    assert bucket.try_take(1.0, 0.61)


def test_buckets_are_bounded_and_the_least_used_goes() -> None:
    buckets: BucketOf[int] = BucketOf(1.0, 1.0, max_keys=3)
    for key in (1, 2, 3, 1, 4):
        buckets.of(key, 0.0).take(1.0, 0.0)
    assert len(buckets) == 3
    assert buckets.of(1, 0.0).level(0.0) == -1.0
    assert buckets.of(2, 0.0).level(0.0) == 1.0


def test_an_ipv6_network_is_one_place_and_mapped_addresses_are_ipv4() -> None:
    assert place_of(Endpoint.parse("[2001:db8::1]:1").address) == place_of(
        Endpoint.parse("[2001:db8::ffff:2]:2").address
    )
    assert place_of(Endpoint.parse("[2001:db8:0:1::1]:1").address) != "2001:db8::/64"
    assert place_of(Endpoint.of_socket(("::ffff:192.0.2.1", 1)).address) == "192.0.2.1"


def test_the_oldest_of_a_place_goes_before_anybody_elses() -> None:
    room: WaitingRoom[int] = WaitingRoom(seats=4, seats_per_place=2)
    assert [room.enter(number, "a") for number in (1, 2)] == [None, None]
    assert room.enter(3, "b") is None
    assert room.enter(4, "a") == 1
    assert room.enter(5, "c") is None
    assert room.enter(6, "d") == 2
    assert room.oldest() == 3
    assert len(room) == 4


def test_connections_are_counted_by_place_and_in_all() -> None:
    counting = Counting(LIMITS, 0.0)
    for _ in range(3):
        assert counting.refusal("a", 0.0) == ""
        counting.came("a")
    assert counting.refusal("a", 0.0) == TOO_MANY_HERE
    assert counting.refusal("b", 0.0) == ""
    counting.came("b")
    assert counting.refusal("c", 0.0) == FULL
    counting.went("a")
    assert counting.refusal("a", 0.0) == ""


def test_a_place_that_comes_too_fast_is_refused_and_no_other() -> None:
    counting = Counting(LIMITS, 0.0)
    assert [counting.refusal("a", 0.0) for _ in range(9)] == [""] * 8 + [TOO_FAST]
    assert counting.refusal("b", 0.0) == ""
    assert counting.refusal("a", 0.5) == ""


def test_what_a_key_has_used_up_stays_used_up_over_a_restart() -> None:
    bucket = TokenBucket(rate_per_s=100.0, burst=50.0, now=0.0)
    bucket.take(70.0, 0.0)
    assert bucket.spent(0.1) == 60.0
    after = TokenBucket(rate_per_s=100.0, burst=50.0, now=7.0)
    after.take(bucket.spent(0.1), 7.0)
    assert after.level(7.0) == -10.0
    assert after.spent(8.0) == 0.0


# On a live relay ------------------------------------------------------------------------------------------


async def refused(running: Running) -> dict[str, int]:
    return (await running.status())["refused"]  # type: ignore[return-value]


async def test_more_connections_than_allowed_from_one_address_are_closed_unheard(tmp_path: Path) -> None:
    async with relay(tmp_path, max_connections_per_address=1) as running, running.proved(ALICE, "127.0.0.2"):
        async with running.connection("127.0.0.2") as second, running.proved(BOB, "127.0.0.3") as b:
            assert await second.frame() == b""
            await b.echo(B)
        assert await refused(running) == {TOO_MANY_HERE: 1}


async def test_full_relay_turns_newcomers_away_and_keeps_who_is_there(tmp_path: Path) -> None:
    async with relay(tmp_path, max_connections=2) as running:
        async with running.proved(ALICE) as a, running.connection() as silent, running.proved(BOB) as b:
            assert await silent.frame() == b""
            async with running.connection() as third:
                assert await third.frame() == b""
            await a.echo(A)
            await b.echo(B)
        assert await refused(running) == {FULL: 2}


async def test_ended_connections_make_room(tmp_path: Path) -> None:
    async with relay(tmp_path, max_connections=1) as running:
        for key in (ALICE, BOB, ALICE):
            async with running.proved(key) as client:
                await client.echo(key.public())
            with trio.fail_after(20):
                while (await running.status())["connections"]:  # noqa: ASYNC110
                    await trio.sleep(0.01)


async def test_too_fast_from_one_address_is_closed_unheard(tmp_path: Path) -> None:
    async with relay(tmp_path, accepts_per_address_s=0.5) as running, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(running.connection("127.0.0.2"))
        third = await stack.enter_async_context(running.connection("127.0.0.2"))
        assert await third.frame() == b""
        await (await stack.enter_async_context(running.proved(ALICE, "127.0.0.3"))).echo(A)
        assert await refused(running) == {TOO_FAST: 1}


async def test_a_key_that_sends_more_than_it_may_is_slowed_down_and_loses_nothing(tmp_path: Path) -> None:
    rate = 1 << 20
    async with (
        relay(tmp_path, rate_bytes_s=float(rate), queue_age_ms=60_000) as running,
        running.proved(ALICE) as a,
        running.proved(BOB) as b,
    ):
        total = 100
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                for number in range(total):
                    await a.send(frames.encode_data(B, number.to_bytes(4, "big") + bytes(16_000)))

            nursery.start_soon(flood)
            got = [int.from_bytes((await b.frame())[37:41], "big") for _ in range(total)]
        assert got == list(range(total))
        status = await running.status()
        assert status["pauses"] > 0  # type: ignore[operator]
        # All but the burst came at the rate.
        assert trio.current_time() - started > 0.8 * (total * 16_041 - rate / 4) / rate


async def test_a_limit_on_frames_slows_small_ones_down(tmp_path: Path) -> None:
    async with relay(tmp_path, rate_frames_s=1000.0) as running, running.proved(ALICE) as a:
        started = trio.current_time()
        for _ in range(4):
            await a.send(frames.encode_data(B, b"") * 500)
            await a.echo(A)
        # An echo comes back before what was read with it has been paid for: the last 500 may be free, and a
        # burst.
        assert trio.current_time() - started > 0.8


# Descriptors ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def of_forty_descriptors(directory: Path, *flags: str) -> AsyncIterator[tuple[Running, Process]]:
    """In a process of its own, since the limit is one of the whole process."""
    command = [sys.executable, "-m", "relayd", "serve", "--listen", "127.0.0.1:0", "--log", "json", "--open"]
    command += ["--control", str(directory / "c.sock"), "--state", str(directory), "--http", "off", *flags]
    process = await trio.lowlevel.open_process(
        ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.receive_some(4096)
        port = JoinString.parse(line.decode()).port
        yield Running(config=None, port=port), process  # type: ignore[arg-type]
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


async def until_it_says(process: Process, event: bytes) -> None:
    """Come back when that is in its log."""
    assert process.stderr is not None
    log = b""
    with trio.fail_after(SOON_S):
        while event not in log:
            log += await process.stderr.receive_some(65536)


async def test_out_of_descriptors_newcomers_are_turned_away_and_the_others_stay(tmp_path: Path) -> None:
    async with (
        of_forty_descriptors(tmp_path) as (running, process),
        running.connection() as a,
        AsyncExitStack() as stack,
    ):
        await a.prove(ALICE, token="")
        crowd = [await stack.enter_async_context(running.connection()) for _ in range(60)]
        turned_away = trio.Event()

        async def wait_for_the_end(one: Client) -> None:
            if await one.frame() == b"":
                turned_away.set()

        # Before the crowd's time to register is over, which would end them all the same.
        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                for one in crowd:
                    nursery.start_soon(wait_for_the_end, one)
                await turned_away.wait()
                nursery.cancel_scope.cancel()
        await a.echo(A)
        await until_it_says(process, b"descriptors_exhausted")


async def test_out_of_descriptors_in_a_tls_handshake_ends_that_connection_only(tmp_path: Path) -> None:
    """Its plain text takes two more, at a moment when only one is left."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with (
        of_forty_descriptors(tmp_path, "--tls-self-signed") as (running, process),
        running.connection() as a,
        AsyncExitStack() as stack,
    ):
        await a.prove(ALICE, token="")
        newcomers = []
        with trio.fail_after(SOON_S):
            while (left := 40 - len(os.listdir(f"/proc/{process.pid}/fd"))) > 1:
                newcomers += [await stack.enter_async_context(running.connection()) for _ in range(left - 1)]
                await trio.sleep(0.05)
        stream = trio.SSLStream(newcomers[-1].stream, context, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(SOON_S):
            assert await stream.receive_some(1) == b""
        await until_it_says(process, b"descriptors_exhausted")
        await a.echo(A)
