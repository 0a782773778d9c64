"""Part 2 on a live relay: who is let in, who gives way, and what is said to whom."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import msgspec
import pytest
import trio

from relayd.config import RelayConfig
from relayd.errors import ConfigError, HostError
from relayd.join import JoinString
from relayd.relay import claims
from relayd.relay.credentials import load_credentials
from relayd.relay.show_join import show_join
from relayd.wire import frames
from relayd.wire.identity import REPLACED
from relayd.wire.identity_frames import HEALTH, encode_ping, encode_pong
from tests.helpers.identities import ALICE, BOB, MALLORY, agent_side
from tests.helpers.running_relay import relay

A, B = ALICE.public(), BOB.public()


async def test_proved_agents_reach_each_other(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required") as running,
        running.proved(ALICE) as a,
        running.proved(BOB) as b,
    ):
        await a.send(frames.encode_data(B, b"hello"))
        assert await b.frame() == frames.encode_data(A, b"hello")
        peers = (await running.status())["peers"]
        assert [peer["proved"] for peer in peers] == [True, True]  # type: ignore[attr-defined]


async def test_what_follows_the_proof_in_the_same_segment_is_forwarded(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required") as running,
        running.proved(BOB) as b,
        running.connection() as a,
    ):
        agent = agent_side("impatient", key=ALICE, token=running.token)
        await a.send(agent.hello())
        challenge = await a.any_frame()
        proof = agent.on_frame(challenge[4], challenge[5:], 0.0).send
        await a.send(proof, frames.encode_data(B, b"early"), frames.encode_data(B, b"too")[:20])
        assert await b.frame() == frames.encode_data(A, b"early")


async def test_welcome_says_where_the_agent_is_seen(tmp_path: Path) -> None:
    async with relay(tmp_path, auth="required") as running, running.connection() as a:
        welcomed = await a.prove(ALICE, token=running.token)
        assert welcomed.welcome.observed == "{}:{}".format(*a.stream.socket.getsockname())
        assert welcomed.relay_key == load_credentials(running.config).identity.public
        assert welcomed.welcome.keepalive_s == running.config.silence_s / 3


async def test_required_routes_nothing_for_a_bare_register(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required", register_timeout_s=0.5) as running,
        running.proved(BOB) as b,
        running.connection() as bare,
    ):
        await bare.send(frames.encode_register(A), frames.encode_data(B, b"from nobody"))
        await b.send(frames.encode_data(A, b"to nobody"))
        assert "no proof of identity within 0.5 s" in await bare.error()
        await b.echo(B)


@pytest.mark.parametrize("token", ["", "not the right token"])
async def test_wrong_token_is_refused_and_told(tmp_path: Path, token: str) -> None:
    async with relay(tmp_path, auth="required") as running, running.connection() as a:
        with pytest.raises(AssertionError, match="token"):
            await a.prove(ALICE, token=token)
        assert (await running.status())["refused"] == {"not admitted": 1}


async def test_optional_lets_in_a_bare_register_and_a_proof_all_the_same(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.agent(A) as a, running.proved(BOB) as b:
        await a.send(frames.encode_data(B, b"x"))
        assert await b.frame() == frames.encode_data(A, b"x")


async def test_late_proof_makes_a_bare_connection_a_proved_one(tmp_path: Path) -> None:
    """Policy `optional`: an agent with Part 2 is served from its Register on, and proves its key then."""
    async with relay(tmp_path) as running, running.connection() as a:
        await a.prove(ALICE, token=running.token)
        await a.send(encode_ping(b"12345678"))
        assert await a.frame() == encode_pong(b"12345678")
        assert (await running.status())["peers"][0]["proved"]  # type: ignore[index]


async def test_bad_proof_ends_a_bare_connection(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.connection() as a:
        await a.send(frames.encode_register(A), frames.encode(0x31, bytes(200)))
        assert "no proof of key" in await a.error()
        assert await a.frame() == b""


# Who gives way --------------------------------------------------------------------------------------------


async def test_proved_newcomer_displaces_a_proved_holder_at_once(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required") as running,
        running.proved(ALICE) as old,
        running.proved(ALICE) as new,
    ):
        assert await old.error() == REPLACED
        assert await old.frame() == b""
        await new.echo(A)


async def test_proved_newcomer_displaces_an_unproved_holder_at_once(tmp_path: Path) -> None:
    # Its Register is bare at first, and the holder is asked; it doesn't answer, and need not.
    async with relay(tmp_path) as running, running.agent(A) as old, running.proved(ALICE) as new:
        assert await old.error() == REPLACED
        await new.echo(A)


async def test_unproved_newcomer_never_displaces_a_proved_holder(tmp_path: Path) -> None:
    async with relay(tmp_path, register_timeout_s=0.5) as running, running.proved(ALICE) as holder:
        async with running.connection() as thief:
            await thief.send(frames.encode_register(A))
            assert "no proof" in await thief.error()
        await holder.echo(A)


async def test_key_that_was_proved_is_not_had_by_a_bare_register_when_its_agent_is_away(
    tmp_path: Path,
) -> None:
    async with relay(tmp_path, register_timeout_s=0.5) as running:
        async with running.proved(ALICE):
            pass
        async with running.connection() as thief:
            await thief.send(frames.encode_register(A), frames.encode_data(A, b"mine?"))
            assert "no proof" in await thief.error()


async def test_proof_that_comes_while_a_living_holder_is_asked_counts(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.agent(A) as holder, running.connection() as new:
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                while (frame := await holder.frame())[4:5] != b"\x06":
                    pass
                await holder.send(frame)

            nursery.start_soon(answer)
            await new.prove(ALICE, token=running.token)
        assert await holder.error() == REPLACED
        await new.echo(A)


async def test_displaced_agent_loses_nothing_that_it_has_sent_or_that_waits_for_it(tmp_path: Path) -> None:
    """Make before break: the agent moves, and neither direction has a gap."""
    async with (
        relay(tmp_path, auth="required", queue_age_ms=60_000) as running,
        running.proved(BOB) as b,
        running.proved(ALICE) as old,
    ):
        # More than the kernel takes: the rest waits in the relay.
        total = 16
        old.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        for number in range(total):
            await b.send(frames.encode_data(A, number.to_bytes(4, "big") + bytes(60_000)))
        await b.echo(B)
        async with running.proved(ALICE) as new:
            await old.send(frames.encode_data(B, b"sent before it noticed"))
            assert await b.frame() == frames.encode_data(A, b"sent before it noticed")
            seen = []
            while (frame := await old.frame())[4] == frames.DATA:
                seen.append(int.from_bytes(frame[37:41], "big"))
            assert frames.decode_error_untrusted(frame[5:]) == REPLACED
            assert len(seen) < total
            while len(seen) < total:
                seen.append(int.from_bytes((await new.frame())[37:41], "big"))
            assert seen == list(range(total))


async def test_two_agents_with_one_key_are_both_told(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required") as running,
        running.proved(ALICE),
        running.proved(ALICE) as second,
        running.proved(ALICE) as third,
    ):
        for client in (second, third):
            frame = await client.frame()
            assert frame[4] == HEALTH
            assert frame[5:].decode() == claims.TWO_AGENTS
        assert await second.error() == REPLACED


@pytest.mark.parametrize("kind", [frames.REGISTER, 0x31, 0x30, 0x32])
async def test_handshake_frame_after_the_handshake_ends_the_connection(tmp_path: Path, kind: int) -> None:
    async with relay(tmp_path, auth="required") as running, running.proved(ALICE) as a:
        await a.send(frames.encode(kind, bytes(32)))
        assert "after the handshake" in await a.error()


async def test_pings_of_the_unproved_are_not_answered(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.agent(A) as a:
        await a.send(encode_ping(b"12345678"))
        await a.echo(A)
        assert (await running.status())["unknown_frames"] == 1


# Key, tokens, list, join string ---------------------------------------------------------------------------


async def test_key_and_token_are_made_once_and_nobody_else_can_read_them(tmp_path: Path) -> None:
    async with relay(tmp_path) as running:
        first = load_credentials(running.config)
        for name in ("relay.key", "relay.token"):
            assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600
    async with relay(tmp_path) as running:
        assert load_credentials(running.config) == first


async def test_join_string_is_printed_at_start_and_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with relay(tmp_path, host="relay.example.net") as running:
        line = capfd.readouterr().out.splitlines()[-1]
        join = JoinString.parse(line)
        assert (join.host, join.port, join.token) == ("relay.example.net", running.port, running.token)
        assert join.key == load_credentials(running.config).identity.public
        show_join(running.config)
        assert capfd.readouterr().out.strip() == line
        # A certificate is the relay's to read, which may be another user.
        over_tls = msgspec.structs.replace(running.config, tls_cert="/nowhere/a", tls_key="/nowhere/b")
        show_join(over_tls)
        assert capfd.readouterr().out.strip() == line.replace("relayd://", "relayds://")
        async with running.connection() as a:
            await a.prove(ALICE, token=join.token, pin=join.key)


async def test_either_of_two_tokens_lets_in_and_the_join_string_has_the_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text("# new\nthe-new-token-0002\nthe-old-token-0001\n")
    async with relay(tmp_path, auth="required", token_file=str(tokens)) as running:
        assert JoinString.parse(capfd.readouterr().out.splitlines()[-1]).token == "the-new-token-0002"
        for token in ("the-old-token-0001", "the-new-token-0002"):
            async with running.connection() as a:
                await a.prove(ALICE, token=token)


async def test_with_a_list_alone_no_token_is_needed_and_none_is_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(f"{A} # alice\n")
    async with relay(tmp_path, auth="required", allow_list=str(allowed)) as running:
        assert not JoinString.parse(capfd.readouterr().out.splitlines()[-1]).token
        assert not (tmp_path / "state" / "relay.token").exists()
        async with running.connection() as a, running.connection() as m:
            await a.prove(ALICE, token="")
            with pytest.raises(AssertionError, match="not on this relay's list"):
                await m.prove(MALLORY, token="")


async def test_open_lets_in_every_proved_key_and_nobody_else(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required", open=True, register_timeout_s=0.5) as running,
        running.connection() as m,
        running.connection() as bare,
    ):
        await m.prove(MALLORY, token="")
        await bare.send(frames.encode_register(A))
        assert "no proof" in await bare.error()


async def test_broken_list_at_start_is_an_error_with_its_line(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(f"{A}\nnonsense\n")
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="allowed:2: not a WireGuard key")):
        async with relay(tmp_path, allow_list=str(allowed)):
            pass
    assert not (tmp_path / "state").exists()


async def test_show_join_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no relay has been started"):
        show_join(RelayConfig(state_dir=str(tmp_path / "nowhere")))
    assert not (tmp_path / "nowhere").exists()
