"""The relay's key and token on the disk: made once, by one process, for nobody else to read."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from relayd import secret_file
from relayd.errors import ConfigError, HostError
from relayd.keys import PrivateKey
from relayd.relay.admission import parse_tokens
from relayd.secret_file import RELAY_KEY, RELAY_TOKEN, new_token, read_or_make, relay_key
from tests.helpers.identities import ALICE


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def tokens_in(directory: Path) -> tuple[str, ...]:
    path = directory / RELAY_TOKEN
    return read_or_make(path, make=new_token, parse=lambda text: parse_tokens(text, source=str(path)))


def test_a_key_is_made_once_and_is_the_same_ever_after(tmp_path: Path) -> None:
    state = tmp_path / "var" / "relayd"
    key = relay_key(state)
    assert relay_key(state) == key
    assert (state / RELAY_KEY).read_text() == key.to_base64() + "\n"
    assert relay_key(tmp_path / "other") != key


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_can_read_it_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        relay_key(tmp_path / "state")
        tokens_in(tmp_path / "state")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "state") == 0o700
    assert mode_of(tmp_path / "state" / RELAY_KEY) == mode_of(tmp_path / "state" / RELAY_TOKEN) == 0o600


def test_a_made_key_is_clamped_as_wg_genkey_does() -> None:
    for _ in range(20):
        raw = PrivateKey.from_base64(secret_file.new_key()).raw
        assert (raw[0] & 7, raw[31] >> 6) == (0, 1)


def test_a_token_is_made_once_and_more_can_be_added(tmp_path: Path) -> None:
    (token,) = tokens_in(tmp_path)
    assert tokens_in(tmp_path) == (token,)
    path = tmp_path / RELAY_TOKEN
    path.write_text(f"a-newer-token-by-hand\n{token}\n")
    assert tokens_in(tmp_path) == ("a-newer-token-by-hand", token)


def test_nothing_is_left_beside_it(tmp_path: Path) -> None:
    relay_key(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RELAY_KEY]


@pytest.mark.parametrize("content", [b"", b"\n", b"nonsense\n", b"AAAA\n", b"A" * 43 + b"=\n", b"\xff" * 45])
def test_a_malformed_key_is_an_error_and_is_never_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / RELAY_KEY
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no WireGuard key") as caught:
        relay_key(tmp_path)
    assert caught.value.source == str(path)
    assert "move it away" in str(caught.value)
    assert path.read_bytes() == content


def test_an_error_never_quotes_a_secret(tmp_path: Path) -> None:
    path = tmp_path / RELAY_KEY
    path.write_text(ALICE.to_base64() + ALICE.to_base64())
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        relay_key(tmp_path)
    assert ALICE.to_base64()[:12] not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_a_key_that_every_user_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    relay_key(tmp_path)
    (tmp_path / RELAY_KEY).chmod(mode)
    with pytest.raises(ConfigError, match=f"open to every user .mode 0{mode:o}"):
        relay_key(tmp_path)


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relay_key(tmp_path)
    path = tmp_path / RELAY_KEY
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr("relayd.secret_file.os.geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="belongs to user"):
        relay_key(tmp_path)


def test_a_directory_that_every_user_can_write_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o1777)
    with pytest.raises(ConfigError, match="can be written by every user"):
        relay_key(state)
    assert list(state.iterdir()) == []


def test_what_is_no_file_is_refused_and_waited_on_by_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RELAY_KEY, 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        relay_key(tmp_path)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_or_make(tmp_path, make=new_token, parse=str)


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / RELAY_KEY
    path.write_bytes(b"A" * (secret_file.MAX_BYTES + 1))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="longer than"):
        relay_key(tmp_path)


def test_processes_that_start_at_once_end_with_one_key(tmp_path: Path) -> None:
    state = tmp_path / "state"
    together = threading.Barrier(8)
    keys: list[PrivateKey] = []

    def start() -> None:
        together.wait()
        keys.append(relay_key(state))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert set(keys) == {relay_key(state)}
    assert [path.name for path in state.iterdir()] == [RELAY_KEY]


def test_who_comes_second_takes_the_firsts_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Between the second's look and its link, the first has made the file.
    first = ALICE.to_base64() + "\n"
    path = tmp_path / RELAY_KEY
    real_link = os.link

    def link(source: Path, target: Path) -> None:
        path.write_text(first)
        path.chmod(0o600)
        real_link(source, target)

    monkeypatch.setattr("relayd.secret_file.os.link", link)
    assert relay_key(tmp_path) == ALICE
    assert path.read_text() == first
    assert [one.name for one in tmp_path.iterdir()] == [RELAY_KEY]


def test_a_key_that_is_gone_as_soon_as_it_is_made_is_a_host_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.secret_file.os.link", lambda source, target: None)
    with pytest.raises(HostError, match="was removed as soon as it was made"):
        relay_key(tmp_path)


def test_a_key_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_link, real_fsync = os.link, os.fsync

    def fsync(fd: int) -> None:
        status = os.fstat(fd)
        events.append("sync directory" if stat.S_ISDIR(status.st_mode) else f"sync {status.st_size} bytes")
        real_fsync(fd)

    def link(source: Path, target: Path) -> None:
        events.append("link")
        real_link(source, target)

    monkeypatch.setattr("relayd.secret_file.os.fsync", fsync)
    monkeypatch.setattr("relayd.secret_file.os.link", link)
    relay_key(tmp_path)
    assert events == ["sync 45 bytes", "link", "sync directory"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_is_a_host_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("relayd.secret_file.os.link", link)
    with pytest.raises(HostError, match=f"cannot make .*{RELAY_KEY}: {os.strerror(number)}"):
        relay_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_path_through_a_file_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot read"):
        relay_key(tmp_path / "file")
