"""relay_link with relays that prove who they are, and with those that only seem to. Real sockets on loopback,
the relay's part of the handshake by the pure machine, the clock stands still.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from trio.testing import MockClock

from relayd.agent.known_relays import KnownRelays
from relayd.agent.link_settings import LinkSettings
from relayd.agent.relay_session import MAX_ANSWERS_S
from relayd.join import JoinString
from relayd.wire.frames import (
    DATA,
    KEEPALIVE,
    REGISTER,
    encode,
    encode_data,
    encode_error,
    encode_relay_probe,
)
from relayd.wire.identity import CHALLENGE_S, REPLACED
from relayd.wire.identity_frames import (
    CHALLENGE,
    PING,
    PONG,
    PROOF,
    WELCOME,
    Challenge,
    PeerGone,
    Welcome,
    encode_drain,
    encode_health,
    encode_ping,
)
from tests.helpers.identities import GATE, OTHER_RELAY, RELAY, TOKEN, drawn
from tests.helpers.link_rig import OWN, PEER, SECURE, here, pinned, running, trusting, welcomed
from tests.helpers.tiny_relay import TinyRelay, settle, until


async def test_a_join_string_is_all_it_takes(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await relay.accept()
            admitted = await session.admit(RELAY.private, GATE.admit, Welcome(observed="192.0.2.7:4000"))
            assert (admitted.key, admitted.home_key, admitted.admission) == (OWN, OWN, "token")
            await until(lambda: rig.link.connected)
            await settle()
            mock_clock.jump(0.25)
            await session.pong()
            await until(lambda: rig.link.status()["round_trip_ms"] == 250.0)
            status = rig.link.status()
            assert (status["state"], status["trust"]) == ("connected", "pinned")
            assert (status["key"], status["observed"]) == (str(RELAY.public), "192.0.2.7:4000")
            await session.deliver(PEER, b"data")
            await until(lambda: rig.delivered == [(PEER.raw, b"data")])
            rig.send(encode_data(PEER, b"answer"))
            assert await session.expect(DATA) == PEER.raw + b"answer"
    assert [line["event"] for line in lines] == ["link.connected", "link.lost"]


async def test_nothing_flows_before_the_relay_has_proved_itself(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(queue_age_s=3600.0), join=pinned(relay)) as rig:
            session = await relay.accept()
            rig.send(encode_data(PEER, b"secret"))
            await session.deliver(PEER, b"forged")
            await session.send(encode_relay_probe(b"whoareyo"))
            await settle()
            assert await session.frames_so_far() == [(REGISTER, OWN.raw)]
            assert rig.delivered == []
            assert rig.link.status()["state"] == "registering"
            assert not rig.link.connected


async def test_what_waited_leaves_behind_the_welcome_and_data_right_behind_it_is_delivered(
    mock_clock: MockClock,
) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(queue_age_s=3600.0), join=pinned(relay)) as rig:
            session = await relay.accept()
            await session.deliver(PEER, b"too early")
            await until(lambda: rig.link.phase.value == "registering")
            rig.send(encode_data(PEER, b"first"))
            await session.admit(RELAY.private, GATE.admit, Welcome(), behind=encode_data(PEER, b"at once"))
            await until(lambda: rig.delivered == [(PEER.raw, b"at once")])
            assert (DATA, PEER.raw + b"first") in [await session.next_frame(), await session.next_frame()]
            assert rig.link.drops() == {"before_proof": 1}


async def test_another_key_than_the_pinned_one_ends_it_before_any_proof(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await relay.accept()
            await session.expect(REGISTER)
            await session.send(Challenge(OTHER_RELAY.public, drawn("session")).encode())
            assert await session.next_frame() is None
            await until(lambda: rig.link.status()["state"] == "waiting")
    (failed,) = [line for line in lines if line["event"] == "link.register_failed"]
    assert failed["reason"] == (
        f"the relay's key is {OTHER_RELAY.public.short()}, and {RELAY.public.short()} is pinned"
    )


async def test_a_relay_that_shows_the_pinned_key_and_has_not_got_it_is_found_out(
    mock_clock: MockClock,
) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await relay.accept()
            await session.expect(REGISTER)
            await session.send(Challenge(RELAY.public, drawn("session")).encode())
            await session.expect(PROOF)
            await session.send(encode(WELCOME, drawn("no box", 24) + bytes(100)))
            assert await session.next_frame() is None
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert "no proof of the relay's key" in str(rig.link.status()["reason"])


@pytest.mark.parametrize("insecure", [False, True])
async def test_a_relay_without_a_challenge_is_left_after_5_s_when_its_key_is_pinned(
    mock_clock: MockClock, insecure: bool
) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(insecure=insecure), join=pinned(relay)) as rig:
            session = await relay.accept()
            await session.expect(REGISTER)
            await settle()
            mock_clock.jump(CHALLENGE_S - 0.1)
            await settle()
            assert rig.link.status()["state"] == "registering"
            mock_clock.jump(0.2)
            assert await session.next_frame() is None
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert rig.link.status()["reason"] == (
                "the relay sent no Challenge within 5 s: it doesn't prove who it is, and key "
                f"{RELAY.public.short()} is pinned"
            )


async def test_a_relay_that_proves_nothing_is_left_unless_that_is_allowed(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE) as rig:
            session = await relay.accept()
            await session.expect(REGISTER)
            await settle()
            mock_clock.jump(CHALLENGE_S + 0.1)
            assert await session.next_frame() is None
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert "--insecure-relay allows that" in str(rig.link.status()["reason"])


async def test_an_insecure_link_takes_a_proof_when_there_is_one(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(insecure=True), join=trusting(relay)) as rig:
            session = await relay.accept()
            await session.admit(RELAY.private, GATE.admit, Welcome())
            await until(lambda: rig.link.connected)
            assert rig.link.status()["trust"] == "first use"


async def test_a_proof_that_comes_late_still_counts(mock_clock: MockClock) -> None:
    """A relay that serves bare Registers too: the echo is back before the agent's Proof has arrived."""
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(insecure=True), join=trusting(relay)) as rig:
            session = await relay.accept()
            register = await session.expect(REGISTER)
            await session.echo()
            await until(lambda: rig.link.connected)
            assert rig.link.status()["trust"] == "unproved"
            await session.admit(RELAY.private, GATE.admit, Welcome(), register=register)
            await until(lambda: rig.link.status()["trust"] == "first use")
            assert await session.expect(PING)
            assert rig.link.dials == 1


async def test_the_first_key_is_remembered_and_another_one_is_warned_of(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "relays.json"
    for relay_key, trust, event in (
        (RELAY, "first use", "relay.key_trusted"),
        (RELAY, "remembered", None),
        (OTHER_RELAY, "changed", "relay.key_changed"),
        (OTHER_RELAY, "remembered", None),
    ):
        with capture_logs() as lines, TinyRelay() as relay:
            join = JoinString("relay.example.net", 3478, token=TOKEN)
            known = KnownRelays(path, in_thread=here)
            async with running(relay, SECURE, join=join, known=known) as rig:
                session = await relay.accept()
                await session.admit(relay_key.private, GATE.admit, Welcome())
                await settle()
                assert rig.link.status()["trust"] == trust
        told = [line for line in lines if str(line["event"]).startswith("relay.key")]
        assert [line["event"] for line in told] == ([event] if event else [])
        if trust == "changed":
            assert (told[0]["log_level"], told[0]["previous"]) == ("warning", RELAY.public)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_wrong_token_is_told_in_the_relays_words(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await relay.accept()
            await session.expect(REGISTER)
            await session.send(Challenge(RELAY.public, drawn("session")).encode())
            await session.expect(PROOF)
            await session.send(encode_error("the token is not one of this relay's"))
            assert await session.next_frame() is None
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert rig.link.status()["reason"] == "the relay says: the token is not one of this relay's"


async def test_a_silent_relay_is_found_by_its_pings(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await welcomed(relay, rig)
            for _ in range(24):
                await settle()
                mock_clock.jump(0.5)
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert rig.link.status()["reason"] == "2 pings unanswered"
            kinds = [kind for kind, _ in await session.frames_so_far()]
            assert [kind for kind in kinds if kind != KEEPALIVE] == [PING, PING]


async def test_pings_of_the_relay_are_answered_but_not_a_flood_of_them(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await welcomed(relay, rig)
            await session.send(encode_ping(b"12345678"))
            assert await session.expect(PONG) == b"12345678"
            await session.send(encode_ping(b"flooding") * 1000)
            await until(lambda: "ping_flood" in rig.link.drops())
            await settle()
            answers = len(await session.frames_so_far())
            assert answers + 1 == MAX_ANSWERS_S
            assert rig.link.drops()["ping_flood"] == 1000 - answers


async def test_health_is_told_when_it_changes(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await welcomed(relay, rig)
            await session.send(encode_health("two agents with one key") * 3)
            await until(lambda: rig.link.status()["health"] == "two agents with one key")
            await session.send(encode_health(""))
            await until(lambda: rig.link.status()["health"] == "")
    events = [line["event"] for line in lines]
    assert events == ["link.connected", "relay.unwell", "relay.well", "link.lost"]


async def test_peer_gone_is_handed_on(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await welcomed(relay, rig)
            await session.send(PeerGone(PEER, 1).encode())
            await until(lambda: rig.gone == [PeerGone(PEER, 1)])


@pytest.mark.parametrize(
    "frame",
    [encode_ping(b"12345678"), encode_health("ill"), encode_drain(5), PeerGone(PEER, 0).encode()],
)
async def test_a_relay_that_proved_nothing_has_no_such_say(mock_clock: MockClock, frame: bytes) -> None:
    with TinyRelay() as relay:
        async with running(relay) as rig:
            session = await relay.accept()
            await session.register(OWN)
            await until(lambda: rig.link.connected)
            await settle()
            mock_clock.jump(CHALLENGE_S + 0.1)
            await settle()
            await session.send(frame)
            await until(lambda: rig.link.status()["received"].get("unknown") == 1)  # type: ignore[attr-defined]
            assert rig.gone == []
            assert rig.link.connected
            assert rig.link.dials == 1


async def test_the_loser_of_two_agents_with_one_key_stays_away_for_30_s_and_says_so(
    mock_clock: MockClock,
) -> None:
    with TinyRelay() as relay, capture_logs() as lines:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await welcomed(relay, rig)
            await session.send(encode_error(REPLACED))
            session.sock.close()
            await until(lambda: rig.link.status()["state"] == "waiting")
            await settle()
            mock_clock.jump(30.0)
            await settle()
            assert (rig.link.dials, relay.waiting()) == (1, 0)
            assert "second agent" in rig.link.reason
            mock_clock.jump(1.0)
            await relay.accept()
            assert rig.link.dials == 2
    (told,) = [line for line in lines if line["event"] == "link.displaced"]
    assert told["log_level"] == "error"
    assert "second agent" in str(told["reason"])


async def test_sealed_messages_are_diverted_wherever_they_are_in_a_run(mock_clock: MockClock) -> None:
    message = b"RLY\xf0\x9f\x94\x91\x01" + bytes(92)
    data = b"\x04\x00\x00\x00" + bytes(96)
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await welcomed(relay, rig)
            payloads = [data, data, message, data, message, message, data]
            await session.send(b"".join(encode_data(PEER, payload) for payload in payloads))
            await session.send(encode_data(PEER, message) + encode_data(PEER, b"") + encode_data(PEER, data))
            await until(lambda: len(rig.delivered) == 6)
            assert rig.messages == [(PEER.raw, message)] * 4
            assert rig.delivered == [(PEER.raw, data)] * 4 + [(PEER.raw, b""), (PEER.raw, data)]


@pytest.mark.parametrize("kind", [CHALLENGE, WELCOME, REGISTER, PROOF])
async def test_a_second_handshake_frame_ends_the_connection(mock_clock: MockClock, kind: int) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=pinned(relay)) as rig:
            session = await welcomed(relay, rig)
            await session.send(encode(kind, bytes(66)))
            assert await session.next_frame() is None
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert rig.link.status()["reason"]


@pytest.mark.parametrize(
    ("agents", "first_s", "second_s"), [(2, 1.0, 1.0), (165, 5.0, 5.0), (9999, 30.0, 30.0)]
)
async def test_the_first_wait_grows_with_the_number_of_agents(
    mock_clock: MockClock, agents: int, first_s: float, second_s: float
) -> None:
    with TinyRelay() as relay:
        async with running(relay, refuse=3, agents=agents) as rig:
            for dials, wait_s in enumerate((first_s, second_s), start=1):
                await settle()
                mock_clock.jump(wait_s - 0.1)
                await settle()
                assert rig.link.dials == dials
                mock_clock.jump(0.1)
            await settle()
            assert rig.link.dials == 3


async def test_a_relay_that_proved_nothing_is_left_as_soon_as_it_has_to(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, LinkSettings(insecure=True), join=trusting(relay)) as rig:
            session = await relay.accept()
            await session.register(OWN)
            await until(lambda: rig.link.connected)
            rig.link.use(LinkSettings(insecure=True, keepalive_s=3.0))
            assert rig.link.connected
            rig.link.use(LinkSettings(insecure=False))
            await until(lambda: not rig.link.connected)
            assert "it has proved nothing" in str(rig.link.status()["reason"])
            mock_clock.jump(1.0)
            again = await relay.accept()
            await again.admit(RELAY.private, GATE.admit, Welcome())
            await until(lambda: rig.link.connected)
            rig.link.use(LinkSettings(insecure=False, queue_bytes=70_000))
            await settle()
            assert rig.link.connected


async def test_a_relay_is_another_one_whatever_it_says_if_it_has_another_key(mock_clock: MockClock) -> None:
    """Else one could say that it is the very process which another address leads to, and that is left."""
    instances = []
    for identity in (RELAY, RELAY, OTHER_RELAY):
        with TinyRelay() as relay:
            join = replace(relay.join, key=identity.public, token=TOKEN)
            async with running(relay, SECURE, join=join) as rig:
                session = await relay.accept()
                await session.admit(identity.private, GATE.admit, Welcome(relay=b"the same"))
                await until(lambda: rig.link.connected)
                instances.append(rig.link.instance)
    assert instances[0] == instances[1] != instances[2]
