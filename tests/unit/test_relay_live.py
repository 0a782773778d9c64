"""What a reload changes in a relay that runs: each setting that is `live` is in force without a restart."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from relayd.config import RelayConfig
from relayd.config.settings import RELAY
from relayd.netio.outbox import Outbox
from relayd.relay import reload
from relayd.relay.connection import ARENA_BYTES
from relayd.relay.dataplane import LARGEST_PARTIAL
from relayd.signals import Signals
from relayd.wire import frames
from tests.helpers.identities import ALICE, BOB
from tests.helpers.running_relay import SOON_S, Client, Running, relay
from tests.unit.test_relay_tls import certificate, over_tls

A, B = ALICE.public(), BOB.public()


class Live:
    """A relay, and what SIGHUP would tell it."""

    def __init__(self, running: Running, signals: Signals) -> None:
        self.running, self.signals, self.config = running, signals, running.config

    def change(self, **settings: object) -> None:
        """As `Reload` does with a configuration in which these are different."""
        live = {one.name for one in RELAY.settings if one.live}
        assert settings.keys() <= live
        self.config = structs.replace(self.config, **settings)
        for use in self.signals.on_config:
            use(self.config)

    async def until(self, field: str, value: object) -> None:
        """Wait until the status says so."""
        await eventually(partial(self._says, field, value))

    async def _says(self, field: str, value: object) -> bool:
        return (await self.running.status())[field] == value


@asynccontextmanager
async def live(directory: Path, **settings: Any) -> AsyncIterator[Live]:
    signals = Signals()
    # A queue that drops nothing for its age: the reader is this busy process itself.
    settings = {"queue_bytes": 4 << 20, "queue_age_ms": 60_000} | settings
    async with relay(directory, signals=signals, **settings) as running:
        yield Live(running, signals)


@pytest.fixture(autouse=True)
def _settles_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "SETTLE_S", 0.0)


async def eventually(true: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(SOON_S):
        while True:
            if await true():
                return
            await trio.sleep(0.02)


async def hello_works(running: Running) -> bool:
    try:
        async with over_tls(running) as (client, _):
            await client.prove(BOB, token=running.token)
    except (trio.BrokenResourceError, AssertionError):
        return False
    return True


async def hello_fails(running: Running) -> bool:
    return not await hello_works(running)


async def has_http(running: Running) -> bool:
    return (await running.status())["http"] is not None


async def test_tls_is_turned_on_renewed_and_off_and_who_is_in_stays(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    async with live(tmp_path) as one, one.running.proved(ALICE) as a:
        assert not await hello_works(one.running)
        one.change(**certificate(tmp_path / "one", "one"))
        await eventually(partial(hello_works, one.running))
        async with over_tls(one.running) as (b, pin):
            await b.prove(BOB, token=one.running.token)
            one.change(**certificate(tmp_path / "other", "other"), tls_only=True)
            with trio.fail_after(SOON_S):
                while True:
                    async with over_tls(one.running) as (_, shown):
                        if shown != pin:
                            break
                    await trio.sleep(0.02)
            async with one.running.connection() as plain:
                await plain.send(frames.encode_register(A))
                assert "speaks TLS only" in await plain.error()
            one.change(tls_cert=None, tls_key=None, tls_only=False)
            await eventually(partial(hello_fails, one.running))
            await b.send(frames.encode_data(A, b"over TLS still"))
            assert await a.frame() == frames.encode_data(B, b"over TLS still")


async def test_a_certificate_that_cannot_be_used_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with live(tmp_path, **certificate(tmp_path, "one")) as one:
        assert await hello_works(one.running)
        one.change(tls_key=str(tmp_path / "nowhere.pem"))
        said = ""
        with trio.fail_after(SOON_S):
            while "tls.kept" not in said:
                await trio.sleep(0.02)
                said += capsys.readouterr().out
        assert "nowhere.pem" in said
        assert await hello_works(one.running)


async def test_fewer_connections_are_let_in_and_who_is_in_stays(tmp_path: Path) -> None:
    async with live(tmp_path) as one, one.running.proved(ALICE) as a, one.running.proved(BOB):
        one.change(max_connections=2)
        async with one.running.connection() as third:
            assert await third.any_frame() == b""
        await a.echo(A)
        assert (await one.running.status())["refused"] == {"too many in all": 1}
        one.change(max_connections=3, max_connections_per_address=2)
        async with one.running.connection() as third:
            assert await third.any_frame() == b""
        one.change(max_connections=3, max_connections_per_address=3, accepts_per_address_s=0.1)
        async with one.running.connection() as third:
            await third.send(frames.encode_register(A))
            async with one.running.connection() as fourth:
                assert await fourth.any_frame() == b""
        refused: Any = (await one.running.status())["refused"]
        assert (refused["too many from one address"], refused["too fast from one address"]) == (1, 1)


async def send_much(client: Client, number: int) -> None:
    """A thousand frames, each of 1 KiB, to oneself, and all of them back."""
    frame = frames.encode_data(A, number.to_bytes(2, "big") + bytes(1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, frame * 1000)
        for _ in range(1000):
            assert await client.frame() == frame


async def test_rates_are_turned_on_and_off_for_connections_that_there_are(tmp_path: Path) -> None:
    async with live(tmp_path) as one, one.running.proved(ALICE) as a:
        await send_much(a, 1)
        assert (await one.running.status())["pauses"] == 0
        one.change(rate_frames_s=2000.0)
        await send_much(a, 2)
        paused: Any = (await one.running.status())["pauses"]
        assert paused > 0
        one.change(rate_frames_s=None)
        await one.until("backlogged", 0)
        paused = (await one.running.status())["pauses"]
        await send_much(a, 3)
        assert (await one.running.status())["pauses"] == paused


def test_a_queue_that_may_hold_less_drops_its_oldest_with_the_next_frame() -> None:
    outbox = Outbox(max_bytes=200_000, max_age_s=60.0)
    frame = frames.encode_data(A, bytes(963))
    for _ in range(150):
        outbox.put(frame, 0.0)
    outbox.bound(max_bytes=100_000, max_age_s=60.0)
    assert outbox.queued_bytes == 150_000
    outbox.put(frame, 0.0)
    assert (outbox.queued_bytes, outbox.dropped_full) == (100_000, 51)
    with pytest.raises(ValueError, match="cannot hold one frame"):
        outbox.bound(max_bytes=1000, max_age_s=60.0)


async def test_who_has_not_proved_its_key_goes_when_a_proof_is_required(tmp_path: Path) -> None:
    async with live(tmp_path) as one, one.running.agent(A) as bare, one.running.proved(BOB) as proved:
        one.change(auth="required")
        assert "wants a proof of identity" in await bare.error()
        await one.until("connections", 1)
        await proved.echo(B)


async def test_how_long_a_drain_lasts_changes(tmp_path: Path) -> None:
    async with live(tmp_path, drain_s=5.0) as one:
        one.change(drain_s=77.0)
        assert one.signals.drain_s == 77.0


async def answers(address: str) -> bytes:
    """The first line of the answer to GET /healthz."""
    host, _, port = address.rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
        return (await stream.receive_some(4096)).split(b"\r\n")[0]


async def test_http_moves_is_known_by_another_name_and_stays_where_it_was_if_it_must(tmp_path: Path) -> None:
    async with live(tmp_path) as one:
        assert (await one.running.status())["http"] is None
        one.change(http="127.0.0.1:0")
        await eventually(partial(has_http, one.running))
        at = (await one.running.status())["http"]
        assert b"421" in await answers(str(at))
        one.change(http_names=("gateway",), http=str(at))
        with trio.fail_after(SOON_S):
            while True:
                try:
                    if b"200" in await answers(str(at)):
                        break
                except OSError:  # between two listeners
                    await trio.sleep(0.02)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            one.change(http=f"127.0.0.1:{taken.getsockname()[1]}")
            await trio.sleep(0.1)
            await one.until("http", at)
        assert b"200" in await answers(str(at))
        one.change(http=None)
        await one.until("http", None)


async def test_a_smaller_round_reads_the_same(tmp_path: Path) -> None:
    async with live(tmp_path) as one, one.running.proved(ALICE) as a:
        one.change(round_bytes=4096, stalled_s=10.0)
        await send_much(a, 1)


def test_the_largest_round_fits_the_arena() -> None:
    (kind,) = (one.kind for one in RELAY.settings if one.name == "round_bytes")
    largest = 384 << 10
    assert kind.read(largest) == largest
    assert largest + LARGEST_PARTIAL <= ARENA_BYTES
    assert RelayConfig().round_bytes <= largest
