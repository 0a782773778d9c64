"""relay_link: one connection at a time over real sockets on loopback, under a clock that stands still."""

from __future__ import annotations

from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from relayd.agent.link_settings import LinkSettings
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
from tests.helpers.identities import private
from tests.helpers.link_rig import OWN, OWN_PRIVATE, PEER, connected, running
from tests.helpers.tiny_relay import Session, TinyRelay, settle, until


async def test_register_is_first_and_connected_means_that_an_echo_came_back(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as rig:
            session = await relay.accept()
            assert await session.expect(REGISTER) == OWN.raw
            await settle()
            assert rig.link.status()["state"] == "registering"
            mock_clock.jump(0.25)
            await session.echo()
            await until(lambda: rig.link.connected)
            status = rig.link.status()
            assert (status["state"], status["round_trip_ms"], status["dials"]) == ("connected", 250.0, 1)
            assert status["reason"] == ""
            assert status["endpoint"] == str(relay.address)


async def echoed_until(end: float, session: Session, clock: MockClock) -> list[tuple[float, int]]:
    """Send all that comes back until the clock says `end`. -> (when, type) of each frame"""
    seen = []
    while clock.current_time() < end:
        await settle()
        clock.jump(0.5)
        await settle()
        for kind, body in await session.frames_so_far():
            seen.append((clock.current_time(), kind))
            await session.send(encode(kind, body))
    return seen


async def test_keepalive_every_25_seconds_and_echo_every_8(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay):
            session = await relay.accept()
            await session.register(OWN)
            seen = await echoed_until(27.0, session, mock_clock)
            assert seen == [(8.0, DATA), (16.0, DATA), (24.0, DATA), (25.0, KEEPALIVE)]


async def test_silent_relay_is_given_up_and_dialled_again(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay) as rig:
            await connected(relay, rig)
            for step_s in (8.0, 2.0, 2.0):
                mock_clock.jump(step_s)
                await settle()
            assert rig.link.status()["state"] == "waiting"
            assert rig.link.status()["reason"] == "2 echoes unanswered"
            mock_clock.jump(1.0)
            await (await relay.accept()).register(OWN)
            await until(lambda: rig.link.connected)
    events = [line["event"] for line in lines]
    assert events == ["link.connected", "relay.unproved", "link.lost", "link.connected", "link.lost"]
    assert lines[-1]["reason"] == "stopped"


async def test_g13_three_faults_at_once_are_one_dial(mock_clock: MockClock) -> None:
    """A read error, a write error and an echo that times out meet in one round of the loop."""
    with TinyRelay() as relay:
        async with running(relay) as rig:
            session = await connected(relay, rig)
            mock_clock.jump(8.0)
            await settle()
            mock_clock.jump(2.0)
            await settle()
            session.reset()  # the poller has an error to read,
            rig.send(encode_data(PEER, b"x"))  # this write meets it first,
            mock_clock.jump(2.0)  # and the second echo is overdue
            await settle()
            assert rig.link.status()["state"] == "waiting"
            assert rig.link.dials == 1
            rig.send(encode_data(PEER, b"x"))
            await settle()
            mock_clock.jump(1.0)
            second = await relay.accept()
            await settle()
            assert rig.link.dials == 2
            await second.register(OWN)
            await until(lambda: rig.link.connected)
            mock_clock.jump(7.0)
            await settle()
            assert (rig.link.dials, len(rig.dialled), relay.waiting()) == (2, 2, 0)
            assert rig.link.drops()["link_lost"] == 1


async def test_link_never_gives_up_and_its_waits_grow_to_30_seconds(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, refuse=50) as rig:
            for dials, wait_s in enumerate([1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 16.0] + [30.0] * 43, start=1):
                await wait_all_tasks_blocked()
                mock_clock.jump(wait_s - 0.5)
                await wait_all_tasks_blocked()
                assert rig.link.dials == dials
                mock_clock.jump(0.5)
            await (await relay.accept()).register(OWN)
            await until(lambda: rig.link.connected)
    assert [line["event"] for line in lines][:2] == ["link.dial_failed", "link.connected"]


async def test_connection_that_dies_young_does_not_reset_the_backoff(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as rig:
            for wait_s in (1.0, 1.0, 1.0, 2.0, 4.0):
                session = await connected(relay, rig)
                session.reset()
                await until(lambda: not rig.link.connected)
                await settle()
                mock_clock.jump(wait_s - 0.5)
                await settle()
                assert rig.link.status()["state"] == "waiting"
                mock_clock.jump(0.5)


async def test_thirty_useful_seconds_reset_the_backoff(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, refuse=3) as rig:
            for wait_s in (1.0, 1.0, 1.0):
                await settle()
                mock_clock.jump(wait_s)
            session = await connected(relay, rig)
            for _ in range(3):
                mock_clock.jump(10.0)
                frame = await session.next_frame()
                while frame is not None and frame[0] == KEEPALIVE:
                    frame = await session.next_frame()
                assert frame is not None
                await session.send(encode(*frame))
                await settle()
            session.reset()
            await until(lambda: not rig.link.connected)
            await settle()
            mock_clock.jump(1.0)
            await relay.accept()


async def test_data_of_peers_is_handed_on_and_echoes_are_not(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as rig:
            session = await relay.accept()
            await session.register(OWN)
            forged = encode_data(OWN, b"\x01\x00\x00\x00 not an echo")
            await session.send(encode_data(PEER, b"one") + forged + encode_data(PEER, b"two"))
            await until(lambda: len(rig.delivered) == 2)
            assert rig.delivered == [(PEER.raw, b"one"), (PEER.raw, b"two")]
            assert rig.link.drops() == {"own_key": 1}


async def test_frames_cut_anywhere_arrive_whole(mock_clock: MockClock) -> None:
    payloads = [bytes([index]) * (index * 7) for index in range(1, 20)]
    stream = b"".join(encode_data(PEER, payload) for payload in payloads)
    with TinyRelay() as relay:
        async with running(relay) as rig:
            session = await relay.accept()
            await session.register(OWN)
            for cut in range(0, len(stream), 53):
                await session.send(stream[cut : cut + 53])
                await settle()
            assert [payload for _, payload in rig.delivered] == payloads


async def test_relay_probe_is_answered_with_its_token(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay):
            session = await relay.accept()
            await session.register(OWN)
            await session.send(encode_relay_probe(b"whoareyo"))
            assert await session.expect(RELAY_PROBE) == b"whoareyo"


async def test_g23_unknown_and_useless_frames_are_counted_and_skipped(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as rig:
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
            await until(lambda: bool(rig.delivered))
            assert rig.delivered == [(PEER.raw, b"after all that")]
            received = rig.link.status()["received"]
            assert received == {"echo": 1, "unknown": 1, "keepalive": 1, "bimodal_hint": 1}
            assert rig.link.drops() == {"short_data": 1, "malformed": 1}
            assert rig.link.connected


async def test_what_the_relay_complains_of_is_logged_and_shown(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay) as rig:
            session = await relay.accept()
            await session.register(OWN)
            await session.send(encode_error("replaced by a newer connection") * 50)
            await settle()
            assert rig.link.status()["reason"] == "the relay says: replaced by a newer connection"
            session.sock.close()
            await until(lambda: not rig.link.connected)
            reason = str(rig.link.status()["reason"])
            assert reason.startswith("closed by the relay (replaced by a newer connection)")
    assert [line["event"] for line in lines].count("relay.complained") == 1


async def test_protocol_error_ends_the_connection_after_what_came_before(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as rig:
            session = await relay.accept()
            await session.register(OWN)
            await session.send(encode_data(PEER, b"good") + b"\xff\xff\xff\xff\x02")
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert rig.delivered == [(PEER.raw, b"good")]
            assert str(rig.link.status()["reason"]).startswith("protocol error: a frame of length")


async def test_frames_of_the_last_moment_wait_for_the_connection(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(insecure=True, queue_age_s=3600.0), refuse=1) as rig:
            await settle()
            rig.send(encode_data(PEER, b"initiation"), encode_data(PEER, b"and another one"))
            mock_clock.jump(1.0)
            session = await relay.accept()
            assert await session.expect(REGISTER) == OWN.raw
            await session.echo()
            assert await session.expect(DATA) == PEER.raw + b"initiation"
            assert await session.expect(DATA) == PEER.raw + b"and another one"
            assert rig.link.drops() == {}


async def test_frames_that_waited_too_long_for_a_connection_are_dropped_and_counted(
    mock_clock: MockClock,
) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(insecure=True, queue_age_s=-1.0), refuse=1) as rig:
            await settle()
            rig.send(encode_data(PEER, b"too old"))
            assert rig.link.drops() == {"not_connected": 1}
            mock_clock.jump(1.0)
            session = await connected(relay, rig)
            rig.send(encode_data(PEER, b"fresh"))
            assert await session.expect(DATA) == PEER.raw + b"fresh"
            assert rig.link.drops() == {"not_connected": 1}


async def test_relay_that_does_not_read_costs_the_oldest_frames_and_tears_none(mock_clock: MockClock) -> None:
    with TinyRelay(receive_buffer=64 << 10) as relay:
        async with running(relay, LinkSettings(insecure=True, queue_age_s=3600.0)) as rig:
            session = await connected(relay, rig)
            sent = 0
            while rig.link.drops().get("queue_full", 0) < 1000:
                burst = [
                    encode_data(PEER, index.to_bytes(4, "big") * 363) for index in range(sent, sent + 64)
                ]
                rig.send(*burst)
                sent += 64
            dropped = rig.link.drops()["queue_full"]
            rig.send(encode_hint(PEER))
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
            rig.send(encode_data(PEER, b"flows again"))
            assert await session.expect(DATA) == PEER.raw + b"flows again"
            assert rig.link.drops() == {"queue_full": dropped}


async def test_buffers_given_to_send_may_be_reused_at_once(mock_clock: MockClock) -> None:
    with TinyRelay(receive_buffer=64 << 10) as relay:
        async with running(
            relay, LinkSettings(insecure=True, queue_age_s=3600.0, queue_bytes=64 << 20)
        ) as rig:
            session = await connected(relay, rig)
            slot = bytearray(encode_data(PEER, bytes(1400)))
            view = memoryview(slot)
            count = 12_000
            for index in range(count):
                slot[KEYED_BYTES : KEYED_BYTES + 4] = index.to_bytes(4, "big")
                rig.link.send([view], len(view))
            rig.send(encode_hint(PEER))
            numbers = []
            while (frame := await session.next_frame()) is not None and frame[0] != BIMODAL_HINT:
                numbers.append(int.from_bytes(frame[1][32:36], "big"))
            assert numbers == list(range(count))


async def test_changed_own_key_registers_anew_at_once(mock_clock: MockClock) -> None:
    other = private("the agent, later")
    with TinyRelay() as relay:
        async with running(relay) as rig:
            session = await connected(relay, rig)
            rig.link.register_as(OWN_PRIVATE)
            rig.link.register_as(other)
            assert await session.next_frame() is None
            await (await relay.accept()).register(other.public())
            await until(lambda: rig.link.connected)
            assert rig.link.dials == 2


async def test_key_that_changes_during_a_wait_ends_the_wait_once(mock_clock: MockClock) -> None:
    other = private("the agent, later")
    with TinyRelay() as relay:
        async with running(relay, refuse=2) as rig:
            await settle()
            rig.link.register_as(other)
            await settle()
            assert (rig.link.dials, rig.link.status()["state"]) == (2, "waiting")
            mock_clock.jump(2.0)
            await (await relay.accept()).register(other.public())


async def test_other_times_hold_for_the_connection_that_there_is(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay) as rig:
            session = await relay.accept()
            await session.register(OWN)
            await until(lambda: rig.link.connected)
            rig.link.use(LinkSettings(insecure=True, keepalive_s=5.0, probe_s=2.0))
            seen = await echoed_until(5.5, session, mock_clock)
            assert seen == [(2.0, DATA), (4.0, DATA), (5.0, KEEPALIVE)]
