"""Moments at the door that come seldom: the list changes, or time runs out, while somebody waits there."""

from __future__ import annotations

import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from relayd.keys import PublicKey
from relayd.relay import refusals, reload
from relayd.relay.admission import Gate
from relayd.wire import frames
from relayd.wire.identity import Refusal
from relayd.wire.identity_frames import CHALLENGE
from tests.helpers.identities import ALICE, BOB, agent_side, private
from tests.helpers.running_relay import SOON_S, Client, Running, relay

A, B = ALICE.public(), BOB.public()


async def answer_probes(client: Client) -> None:
    """As an agent of the field that is alive: RelayProbe comes back."""
    while frame := await client.frame():
        if frame[4] == frames.RELAY_PROBE:
            await client.send(frame)


async def refused(running: Running, reason: str) -> None:
    """Come back when somebody has been refused for `reason`."""
    with trio.fail_after(SOON_S):
        while not (await running.status())["refused"].get(reason):  # type: ignore[attr-defined]  # noqa: ASYNC110
            await trio.sleep(0.02)


async def test_who_waits_for_a_key_does_not_get_it_by_its_being_taken_off_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "LOOK_S", 0.02)
    monkeypatch.setattr(reload, "SETTLE_S", 0.02)
    listed = tmp_path / "listed"
    listed.write_text(f"{A}\n{B}\n")
    async with (
        relay(tmp_path, allow_list=str(listed)) as running,
        running.agent(B) as b,
        running.agent(A) as holder,
        running.connection() as waiting,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer_probes, holder)
        await waiting.send(frames.encode_register(A))
        assert (await waiting.any_frame())[4] == CHALLENGE
        with trio.fail_after(SOON_S):
            while (await running.status())["unregistered"] != 1:  # noqa: ASYNC110
                await trio.sleep(0.02)
        listed.write_text(f"{B}\n")
        assert "not on this relay's list" in await waiting.error()
        await b.echo(B)
        status = await running.status()
        assert [peer["key"] for peer in status["peers"]] == [str(B)]  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


async def test_a_proof_whose_time_ends_while_it_is_looked_at_ends_that_connection_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy host: the deadline passes between a good Proof and what is to come of it."""
    timeout_s = 0.3
    admit = Gate.admit

    def admit_slowly(gate: Gate, key: PublicKey, token: bytes) -> str:
        if key == A:
            time.sleep(timeout_s)
        return admit(gate, key, token)

    monkeypatch.setattr(Gate, "admit", admit_slowly)
    async with (
        relay(tmp_path, register_timeout_s=timeout_s) as running,
        running.proved(BOB) as b,
        running.agent(A),
        running.connection() as late,
    ):
        agent = agent_side("late", key=ALICE, token=running.token)
        await late.send(agent.hello())
        challenge = await late.any_frame()
        await late.send(agent.on_frame(challenge[4], challenge[5:], 0.0).send)
        await refused(running, Refusal.TIMEOUT.value)
        await b.echo(B)


async def test_a_health_probe_of_a_relay_that_speaks_tls_only_is_no_refusal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with relay(tmp_path, tls_self_signed=True, tls_only=True) as running:
        for _ in range(3):
            async with running.connection():
                pass
        async with running.connection() as plain:
            await plain.send(frames.encode_register(A))
            assert "relayds://" in await plain.error()
        assert (await running.status())["refused"] == {Refusal.PROTOCOL.value: 1}
    assert capfd.readouterr().out.count("agent.refused") == 1


async def test_strangers_who_are_refused_again_and_again_fill_no_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    mock_clock: MockClock,
) -> None:
    monkeypatch.setattr(refusals, "LINES_AT_ONCE", 2.0)
    monkeypatch.setattr(refusals, "LINES_S", 1.0)

    async def strangers(count: int) -> None:
        for _ in range(count):
            async with running.connection() as one:
                await one.send(b"GET / HTTP/1.1\r\n\r\n")
                assert "must be Register" in await one.error()

    async with relay(tmp_path) as running:
        await strangers(5)
        mock_clock.jump(1.0)
        await strangers(1)
        assert (await running.status())["refused"] == {Refusal.PROTOCOL.value: 6}
    lines = [line for line in capfd.readouterr().out.splitlines() if "agent.refused" in line]
    assert ["suppressed=3" in line for line in lines] == [False, False, True]


async def test_agents_of_one_site_that_all_come_at_once_are_no_crowd_at_the_door(tmp_path: Path) -> None:
    """Those who register without a proof are in as soon as they have said so: none has to wait, and go for
    another."""
    keys = [private(f"site {number}").public() for number in range(300)]
    async with relay(tmp_path) as running, AsyncExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", running.port))) for _ in keys]
        for sock, key in zip(socks, keys, strict=True):  # before the relay has its turn
            sock.sendall(frames.encode_register(key))
        with trio.fail_after(SOON_S):
            while (status := await running.status())["accepted"] != len(keys):  # noqa: ASYNC110
                await trio.sleep(0.02)
            while (status := await running.status())["unregistered"]:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert (status["connections"], status["refused"]) == (len(keys), {})
