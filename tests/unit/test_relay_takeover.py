"""G5, G7, G14: nobody takes a key that isn't theirs, whatever they say. On a live relay, real sockets."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from relayd.join import JoinString
from relayd.keys import PublicKey
from relayd.relay import admission, claims
from relayd.wire import frames
from relayd.wire.identity import REPLACED
from relayd.wire.identity_frames import CHALLENGE, HEALTH, PROOF, WELCOME
from tests.helpers.identities import (
    ALICE,
    BOB,
    MALLORY,
    SMALL_ORDER,
    SMALL_ORDER_SECOND_SPELLINGS,
    agent_side,
)
from tests.helpers.running_relay import Client, Running, relay

A, B = ALICE.public(), BOB.public()

BOTH_POLICIES = pytest.mark.parametrize("auth", ["required", "optional"])


@asynccontextmanager
async def alice_talks_to_herself(running: Running) -> AsyncIterator[Client]:
    """An agent that is there before the attack, and must go on being there."""
    async with running.proved(ALICE) as alice:
        yield alice
        await alice.echo(A)


async def challenged(client: Client, key: PublicKey) -> bytes:
    """Register a key that may be anybody's. -> the Challenge"""
    await client.send(frames.encode_register(key))
    frame = await client.any_frame()
    assert frame[4] == CHALLENGE
    return frame


@BOTH_POLICIES
async def test_g5_register_without_proof_takes_nothing(tmp_path: Path, auth: str) -> None:
    async with (
        relay(tmp_path, auth=auth, register_timeout_s=0.5) as running,
        alice_talks_to_herself(running),
        running.proved(BOB) as b,
        running.connection() as thief,
    ):
        await challenged(thief, A)
        await thief.send(frames.encode_data(B, b"from alice?"))
        await b.send(frames.encode_data(A, b"for alice"))
        assert "no proof of identity" in await thief.error()
        await b.echo(B)  # and nothing came from the thief before


@BOTH_POLICIES
async def test_g5_proof_by_another_key_takes_nothing(tmp_path: Path, auth: str) -> None:
    async with (
        relay(tmp_path, auth=auth) as running,
        alice_talks_to_herself(running),
        running.connection() as thief,
    ):
        challenge = await challenged(thief, A)
        mallory = agent_side("mallory", key=MALLORY, token=running.token)
        await thief.send(mallory.on_frame(CHALLENGE, challenge[5:], 0.0).send)
        assert "no proof of key" in await thief.error()


@BOTH_POLICIES
async def test_g5_replayed_proof_takes_nothing(tmp_path: Path, auth: str) -> None:
    async with relay(tmp_path, auth=auth) as running, running.connection() as first:
        alice = agent_side("alice", key=ALICE, token=running.token)
        challenge = await challenged(first, A)
        proof = alice.on_frame(CHALLENGE, challenge[5:], 0.0).send
        await first.send(proof)
        assert (await first.any_frame())[4] == WELCOME
        async with running.connection() as thief:
            await challenged(thief, A)
            await thief.send(proof)
            assert "made for another connection" in await thief.error()
        await first.echo(A)


async def test_g5_proof_made_for_another_relay_takes_nothing(tmp_path: Path) -> None:
    """A relay in the middle, which forwards what an agent proves to it: without the pin the agent talks to
    it, and its proof is worth nothing anywhere else."""
    for name in ("honest", "evil"):
        (tmp_path / name).mkdir()
    async with (
        relay(tmp_path / "honest") as honest,
        relay(tmp_path / "evil") as evil,
        alice_talks_to_herself(honest),
        honest.connection() as thief,
        evil.connection() as victim,
    ):
        await challenged(thief, A)
        alice = agent_side("alice", key=ALICE, token=honest.token)
        other = await challenged(victim, A)
        await thief.send(alice.on_frame(CHALLENGE, other[5:], 0.0).send)
        assert "no proof of key" in await thief.error()


async def test_g5_relay_in_the_middle_that_forwards_everything_learns_and_changes_nothing(
    tmp_path: Path,
) -> None:
    """It forwards Challenge, Proof and Welcome as they are: then it is a wire. If it shows a key of its own,
    the agent that pins the honest relay's refuses it."""
    (tmp_path / "evil").mkdir()
    async with (
        relay(tmp_path) as honest,
        relay(tmp_path / "evil") as evil,
        honest.connection() as wire,
        evil.connection() as bait,
    ):
        await wire.prove(ALICE, token=honest.token)
        pinned = (await wire_key(honest), await wire_key(evil))
        alice = agent_side("pins", key=ALICE, token=honest.token, pin=pinned[0])
        step = alice.on_frame(CHALLENGE, (await challenged(bait, A))[5:], 0.0)
        assert not step.send
        assert "is pinned" in str(step.outcome)


async def wire_key(running: Running) -> PublicKey:
    async with running.connection() as client:
        return (await client.prove(BOB, token=running.token)).relay_key


@pytest.mark.parametrize("point", [*SMALL_ORDER, *SMALL_ORDER_SECOND_SPELLINGS], ids=lambda key: key.short())
async def test_g5_small_order_points_and_second_spellings_prove_nothing(
    tmp_path: Path, point: PublicKey
) -> None:
    """With a small-order point as key everybody knows the shared secret (all zeros): anybody could prove
    it."""
    async with relay(tmp_path, auth="required") as running, running.connection() as thief:
        await challenged(thief, point)
        await thief.send(frames.encode(PROOF, secrets.token_bytes(200)))
        error = await thief.error()
        assert "small-order" in error or "canonical" in error


async def test_g5_guessed_tokens_let_nobody_in(tmp_path: Path) -> None:
    async with relay(tmp_path, auth="required") as running:
        right = running.token
        for guess in ("", "x" * 32, right[:-1], right + "x", right.swapcase(), right[::-1]):
            async with running.connection() as thief:
                with pytest.raises(AssertionError, match="token"):
                    await thief.prove(MALLORY, token=guess)
        assert (await running.status())["refused"] == {"not admitted": 6}


async def test_g7_two_agents_with_one_key_are_told_and_each_switch_takes_a_dial(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required") as running,
        running.proved(ALICE) as first,
        running.proved(ALICE) as second,
    ):
        # Once is a restart, or a move to another network: nobody is told of anything but the end.
        assert await first.error() == REPLACED
        async with running.proved(ALICE) as third:
            for client in (second, third):
                frame = await client.frame()
                assert (frame[4], frame[5:].decode()) == (HEALTH, claims.TWO_AGENTS)
            assert await second.error() == REPLACED
            await third.echo(A)


async def test_g7_two_agents_that_pause_between_their_turns_are_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As agents do that were told. Here none pauses, but no two displacements count as close."""
    monkeypatch.setattr(admission, "FLAPPING_S", 0.0)
    async with (
        relay(tmp_path, auth="required") as running,
        running.proved(ALICE) as first,
        running.proved(ALICE) as second,
        running.proved(ALICE) as third,
    ):
        assert await first.error() == REPLACED
        assert await second.error() == REPLACED
        async with running.proved(ALICE) as fourth:
            for client in (third, fourth):
                frame = await client.frame()
                assert (frame[4], frame[5:].decode()) == (HEALTH, claims.TWO_AGENTS)


def test_g14_a_clock_ten_years_off_changes_nothing(tmp_path: Path) -> None:
    """The relay's wall clock says another decade than the agent's. (That of monotonic time has no skew.)"""
    for years in (-10, 10):
        directory = tmp_path / str(years)
        directory.mkdir()
        program = (
            "import datetime, sys, time\n"
            f"skew, real = {years} * 365.25 * 86400, time.time\n"
            "time.time = lambda: real() + skew\n"
            "from relayd.cli import main\n"
            "sys.exit(main())\n"
        )
        command = [sys.executable, "-c", program, "serve", "--listen", "127.0.0.1:0", "--http", "off"]
        command += ["--control", str(directory / "c"), "--state", str(directory / "s"), "--log", "json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                trio.run(admitted, process, directory)
            finally:
                process.kill()


async def admitted(process: subprocess.Popen[str], directory: Path) -> None:
    assert process.stdout is not None
    join = JoinString.parse(process.stdout.readline())
    running = Running(config=None, port=join.port)  # type: ignore[arg-type]
    async with running.connection() as client:
        await client.prove(ALICE, token=join.token, pin=join.key)
        await client.echo(A)
