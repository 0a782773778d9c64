"""The journal's protocol, with a socket that stands for journald's."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from relayd.keys import PublicKey
from relayd.observe import journal, log

KEY = PublicKey(bytes(range(32)))


class Journald:
    """Reads what it is sent, as journald does."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.settimeout(5)
        self.streams: list[TextIO] = []
        """To be closed at the end."""

    def entry(self) -> dict[str, str]:
        """The next one."""
        data, rights, _, _ = self.sock.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, _, payload in rights:
            (fd,) = array.array("i", payload)
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            data = os.pread(fd, os.fstat(fd).st_size, 0)
            os.close(fd)
        fields = {}
        while data:
            head, _, data = data.partition(b"\n")
            name, equals, value = head.partition(b"=")
            if not equals:
                size = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + size], data[9 + size :]
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journald]:
    """With standard error that leads to it, as systemd arranges it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    journald = Journald(str(tmp_path / "socket"))
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "socket"))
    yield journald
    journald.sock.close()
    for stream in journald.streams:
        stream.close()
    if structlog.is_configured() and isinstance(
        sink := structlog.get_config()["logger_factory"](), journal.Journal
    ):
        sink.close()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def configure(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, matching: bool = True
) -> Path:
    """Set the log up with a file as standard error, which JOURNAL_STREAM names, or not."""
    path = tmp_path / "stderr"
    with path.open("a") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + (not matching)}")
        kept = os.fdopen(os.dup(stream.fileno()), "a")
    journald.streams.append(kept)
    monkeypatch.setattr("sys.stderr", kept)
    log.configure("auto")
    return path


def test_an_event_has_its_facts_as_fields(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stderr = configure(journald, monkeypatch, tmp_path)
    log.get(peer=KEY).warning("link.lost", reason="silent for 20 s", connected_s=1.5, listen=["a", "b"])
    assert journald.entry() == {
        "MESSAGE": f"link.lost peer='{KEY}' reason='silent for 20 s' connected_s=1.5 listen=[\"a\", \"b\"]",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "relayd",
        "RELAYD_EVENT": "link.lost",
        "RELAYD_PEER": str(KEY),
        "RELAYD_REASON": "silent for 20 s",
        "RELAYD_CONNECTED_S": "1.5",
        "RELAYD_LISTEN": '["a", "b"]',
    }
    log.get().info("relay.started", token="secret")
    assert journald.entry()["RELAYD_TOKEN"] == "<hidden>"
    assert stderr.read_text() == ""


def test_an_exception_keeps_its_lines(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(journald, monkeypatch, tmp_path)
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.get().exception("agent.failed")
    entry = journald.entry()
    assert entry["PRIORITY"] == "3"
    assert entry["MESSAGE"].startswith("agent.failed\nTraceback")
    assert entry["MESSAGE"].endswith("ValueError: no such thing")


def test_what_is_too_long_for_a_datagram_arrives_whole(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(journald, monkeypatch, tmp_path)
    log.get().info("library.logged", message="x" * (4 << 20))
    assert len(journald.entry()["RELAYD_MESSAGE"]) == 4 << 20


def test_a_journal_that_does_not_read_is_not_waited_for_and_what_it_missed_is_counted(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configure(journald, monkeypatch, tmp_path)
    for number in range(2000):
        log.get().info("peer.relayed", number=number)
    read = 0
    journald.sock.setblocking(False)
    with suppress(BlockingIOError):
        while journald.entry():
            read += 1
    assert read < 2000
    journald.sock.settimeout(5)
    log.get().info("peer.relayed")
    assert journald.entry()["RELAYD_LOG_LINES_LOST"] == str(2000 - read)
    log.get().info("peer.relayed")
    assert "RELAYD_LOG_LINES_LOST" not in journald.entry()


def test_redirected_output_goes_where_it_was_redirected_to(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stderr = configure(journald, monkeypatch, tmp_path, matching=False)
    log.get().info("relay.started")
    assert '"event": "relay.started"' in stderr.read_text()


def test_without_a_journal_lines_go_to_standard_error(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "nobody"))
    stderr = configure(journald, monkeypatch, tmp_path)
    log.get().info("relay.started")
    assert '"event": "relay.started"' in stderr.read_text()


@pytest.mark.parametrize("stream", [None, "", "1:2", "nonsense"])
def test_a_stream_that_is_not_the_journal(stream: str | None) -> None:
    assert not journal.is_the_journal(stream, 2)
    assert not journal.is_the_journal(stream, 99_999)
