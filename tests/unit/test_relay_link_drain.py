"""relay_link while its relay drains: a second connection before the first goes, and not a frame lost.

Real sockets on loopback, the relay's part by the pure machine, the clock stands still.
"""

from __future__ import annotations

from structlog.testing import capture_logs
from trio.testing import MockClock

from relayd.wire.frames import DATA, encode, encode_data, encode_error
from relayd.wire.identity import REPLACED
from relayd.wire.identity_frames import PING, PONG, Welcome, encode_drain
from tests.helpers.identities import GATE, RELAY
from tests.helpers.link_rig import PEER, SECURE, pinned, running, welcomed
from tests.helpers.tiny_relay import TinyRelay, settle, until


async def test_drain_makes_the_next_connection_before_the_old_one_goes(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            old = await welcomed(relay, rig)
            await old.send(encode_drain(100))
            await settle()
            assert rig.link.status()["draining"]
            mock_clock.jump(25.0)  # at the latest, a quarter of the time that the relay gives
            new = await relay.accept()
            await new.admit(RELAY.private, GATE.admit, Welcome())
            await new.pong()
            await settle()
            rig.send(encode_data(PEER, b"by the old one still"))
            assert (await old.frames_so_far())[-1] == (DATA, PEER.raw + b"by the old one still")
            await old.deliver(PEER, b"from the old one")
            await new.deliver(PEER, b"from the new one")
            await until(lambda: len(rig.delivered) == 2)
            mock_clock.jump(35.0)  # 60 of 100: all others have their new connection too
            await until(lambda: not rig.link.status()["draining"])
            rig.send(encode_data(PEER, b"by the new one"))
            assert (DATA, PEER.raw + b"by the new one") in await new.frames_so_far()
            await old.deliver(PEER, b"a late one")
            await until(lambda: len(rig.delivered) == 3)
            assert rig.link.connected
            assert rig.link.drops() == {}
            assert rig.link.dials == 2
    assert [line["event"] for line in lines].count("link.connected") == 2


async def test_an_old_connection_that_dies_first_hands_over_at_once(mock_clock: MockClock) -> None:
    """As when the relay itself gives our key to the new connection."""
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            old = await welcomed(relay, rig)
            await old.send(encode_drain(100))
            await settle()
            mock_clock.jump(25.0)
            new = await relay.accept()
            await new.admit(RELAY.private, GATE.admit, Welcome())
            await old.send(encode_error(REPLACED))
            old.sock.close()
            await until(lambda: not rig.link.status()["draining"])
            rig.send(encode_data(PEER, b"goes on"))
            await settle()
            assert (DATA, PEER.raw + b"goes on") in await new.frames_so_far()
            assert (rig.link.connected, rig.link.dials, rig.link.status()["reason"]) == (True, 2, "")
    assert "link.displaced" not in [line["event"] for line in lines]


async def test_a_drained_relay_without_a_successor_is_used_to_its_end(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=pinned(relay), refuse_from=2) as rig:
            old = await welcomed(relay, rig)
            await old.send(encode_drain(20))
            for _ in range(30):
                await settle()
                mock_clock.jump(0.5)
                for kind, body in await old.frames_so_far():
                    if kind == PING:
                        await old.send(encode(PONG, body))
            assert rig.link.connected
            assert 3 < rig.link.dials < 20
            rig.send(encode_data(PEER, b"still"))
            await settle()
            assert (DATA, PEER.raw + b"still") in await old.frames_so_far()
            old.sock.close()
            await until(lambda: not rig.link.connected)
            dials = rig.link.dials
            await settle()
            mock_clock.jump(1.0)  # as after any other fault: the tries meanwhile count for nothing
            await settle()
            assert rig.link.dials == dials + 1


async def test_a_relay_that_asks_each_connection_to_leave_is_not_dialled_without_end(
    mock_clock: MockClock,
) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            sessions = [await welcomed(relay, rig)]
            for _ in range(10):
                await sessions[-1].send(encode_drain(0))
                await settle()
                if not relay.has_waiting():
                    break
                sessions.append(await welcomed(relay, rig))
            assert len(sessions) == 2  # the first may well be the last
            for _ in range(60):
                mock_clock.jump(1.0)
                await settle()
                if relay.has_waiting():
                    sessions.append(await welcomed(relay, rig))
                    await sessions[-1].send(encode_drain(20))
                    await settle()
                for session in sessions[-3:]:
                    for kind, body in await session.frames_so_far():
                        if kind == PING:
                            await session.send(encode(PONG, body))
                assert len(rig.link._legs) <= 2
            assert rig.link.connected
            assert 4 < rig.link.dials < 10
    assert [line["event"] for line in lines].count("link.connected") < 10
