"""Files that are read again while the relay runs: who is let in, and by which token."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from relayd.errors import HostError
from relayd.relay import credentials, reload
from relayd.signals import Signals
from tests.helpers.identities import ALICE, BOB, MALLORY
from tests.helpers.running_relay import SOON_S, relay

A, B, M = ALICE.public(), BOB.public(), MALLORY.public()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_S", 0.02)
    monkeypatch.setattr(reload, "SETTLE_S", 0.01)


def write(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.touch(0o600)
    beside.write_text(text)
    beside.replace(path)


@pytest.mark.usefixtures("soon")
async def test_key_that_is_taken_off_the_list_is_disconnected_and_the_others_stay(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    write(allowed, f"{A}\n{B}\n")
    async with (
        relay(tmp_path, allow_list=str(allowed)) as running,
        running.connection() as a,
        running.connection() as b,
        running.connection() as m,
    ):
        await a.prove(ALICE, token="")
        await b.prove(BOB, token="")
        write(allowed, f"{A}\n{M}\n")
        assert "not on this relay's list any more" in await b.error()
        await a.echo(A)
        await m.prove(MALLORY, token="")


@pytest.mark.usefixtures("soon")
async def test_broken_list_keeps_the_old_one_and_says_where(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    allowed = tmp_path / "allowed"
    write(allowed, f"{A}\n")
    async with relay(tmp_path, allow_list=str(allowed)) as running, running.connection() as a:
        await a.prove(ALICE, token="")
        said = ""
        for broken in (f"{B}\nnonsense\n", None):
            if broken is None:
                allowed.unlink()
            else:
                write(allowed, broken)
            with trio.fail_after(20):
                while "admission.kept" not in (more := capfd.readouterr().out):
                    said += more
                    await trio.sleep(0.01)
            said += more
            await a.echo(A)
            async with running.connection() as b:
                with pytest.raises(AssertionError, match="not on this relay's list"):
                    await b.prove(BOB, token="")
        assert "allowed:2: not a WireGuard key" in said
        assert "No such file" in said


@pytest.mark.usefixtures("soon")
async def test_new_token_is_good_at_once_and_the_old_one_no_more(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    write(tokens, "the-old-token-0001\n")
    async with relay(tmp_path, token_file=str(tokens)) as running, running.connection() as old:
        await old.prove(ALICE, token="the-old-token-0001")
        write(tokens, "the-new-token-0002\n")
        with trio.fail_after(20):
            while True:
                async with running.connection() as new:
                    try:
                        await new.prove(BOB, token="the-new-token-0002")
                    except AssertionError:
                        await trio.sleep(0.02)
                    else:
                        break
        async with running.connection() as late:
            with pytest.raises(AssertionError, match="not one of"):
                await late.prove(MALLORY, token="the-old-token-0001")
        await old.echo(A)


async def test_sighup_reads_them_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_S", 600.0)
    allowed = tmp_path / "allowed"
    write(allowed, f"{A}\n")
    signals = Signals()
    async with (
        relay(tmp_path, signals=signals, allow_list=str(allowed)) as running,
        running.connection() as a,
    ):
        await a.prove(ALICE, token="")
        write(allowed, f"{B}\n")
        for ask in signals.on_reload:
            ask()
        assert "not on this relay's list any more" in await a.error()


async def until_said(capfd: pytest.CaptureFixture[str], event: str) -> str:
    """Wait for an event in the relay's log. -> what it has said since the last time"""
    said = ""
    with trio.fail_after(SOON_S):
        while event not in said:
            said += capfd.readouterr().out
            await trio.sleep(0.01)
    return said


@pytest.mark.usefixtures("soon")
async def test_a_file_that_is_mended_by_chmod_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens"
    write(tokens, "the-old-token-0001\n")
    async with relay(tmp_path, token_file=str(tokens)) as running:
        tokens.chmod(0o644)
        assert "chmod 600" in await until_said(capfd, "admission.kept")
        tokens.chmod(0o600)
        await until_said(capfd, "admission.reloaded")
        async with running.connection() as a:
            await a.prove(ALICE, token="the-old-token-0001")


@pytest.mark.usefixtures("soon")
async def test_a_file_that_could_not_be_read_for_a_while_is_read_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As while there are no descriptors left: a key that is taken off the list in that time goes all the
    same."""
    allowed = tmp_path / "allowed"
    write(allowed, f"{A}\n")
    read, tries = credentials._read_list, 0

    def read_in_need(path: Path) -> str:
        nonlocal tries
        if (tries := tries + 1) in (2, 3, 4):
            raise HostError(f"cannot read {path}: {os.strerror(errno.EMFILE)}")
        return read(path)

    monkeypatch.setattr(credentials, "_read_list", read_in_need)
    async with relay(tmp_path, allow_list=str(allowed)) as running, running.connection() as a:
        await a.prove(ALICE, token="")
        write(allowed, f"{B}\n")
        assert "not on this relay's list any more" in await a.error()
    assert capfd.readouterr().out.count("Too many open files") == 1
