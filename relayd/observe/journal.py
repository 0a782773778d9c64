"""Lines for systemd's journal, with their facts as fields of their own (systemd's "native journal protocol").

    journalctl -u relayd RELAYD_EVENT=agent.left RELAYD_KEY=CgoKCgoK

A datagram a line, never waited for, as in `log`. One that is too long for a datagram goes as a sealed memfd.
See https://systemd.io/JOURNAL_NATIVE_PROTOCOL/.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import re
import select
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

SOCKET = "/run/systemd/journal/socket"
VARIABLE = "JOURNAL_STREAM"
IDENTIFIER = "relayd"

PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}  # syslog(3)

PREFIX = "RELAYD_"
"""Of our fields: an EVENT, a KEY or a UNIT may be somebody else's."""

MAX_NAME = 64
"""Of a field, in the journal."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def is_the_journal(stream: str | None, fd: int | None) -> bool:
    """Whether descriptor `fd` leads to the journal: `stream` is JOURNAL_STREAM's value, device:inode.

    The variable alone says nothing: a program whose output was redirected inherits it (systemd.exec(5)).
    """
    if not stream or fd is None:
        return False
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def encode(fields: Mapping[str, str]) -> bytes:
    """One line of the journal. Fields with line breaks have their length in front."""
    data = bytearray()
    for name, value in fields.items():
        raw = value.encode("utf-8", "backslashreplace")
        if b"\n" in raw:
            data += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
        else:
            data += name.encode() + b"=" + raw + b"\n"
    return bytes(data)


def fields_of(event: Mapping[str, Any]) -> dict[str, str]:
    """An event of the log (its values plain) as fields."""
    facts = {name: value for name, value in event.items() if name not in ("event", "level", "timestamp")}
    trace = facts.pop("exception", None)
    text = " ".join([str(event["event"]), *(f"{name}={_shown(value)}" for name, value in facts.items())])
    fields = {
        "MESSAGE": f"{text}\n{trace}" if trace else text,
        "PRIORITY": str(PRIORITIES.get(str(event.get("level")), PRIORITIES["info"])),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        f"{PREFIX}EVENT": str(event["event"]),
    }
    for name, value in facts.items():
        field = (PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper()))[:MAX_NAME]
        fields[field] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return fields


def _shown(value: object) -> str:
    if isinstance(value, str) and value and re.search(r"[\s'\"=]", value) is None:
        return value
    return repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Journal:
    """The journal's socket, and how many lines it didn't take."""

    is_terminal = False

    def __init__(self, path: str) -> None:
        """Raises OSError when nobody listens there."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLOUT)
        self._lost = 0
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            raise

    def msg(self, line: bytes) -> None:
        """Send one encoded line, or count it as lost."""
        try:
            self._sock.send(line, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS) or not self._send_sealed(line):
                self._lost += 1

    debug = info = warning = warn = error = critical = fatal = exception = msg

    def tell_lost_lines(self, _logger: object, _name: str, event: MutableMapping[str, Any]) -> Any:
        """Add the number of lines that were lost to the first that follows them."""
        if self._lost and self._poll.poll(0):
            event["log_lines_lost"], self._lost = self._lost, 0
        return event

    def close(self) -> None:
        """No more lines."""
        self._sock.close()

    def _send_sealed(self, line: bytes) -> bool:
        fd = os.memfd_create("relayd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with suppress(OSError):
                with os.fdopen(os.dup(fd), "wb") as file:
                    file.write(line)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                self._sock.sendmsg([b""], rights, socket.MSG_NOSIGNAL)
                return True
            return False
        finally:
            os.close(fd)


def as_journal(_logger: object, _name: str, event: MutableMapping[str, Any]) -> bytes:
    """structlog's last processor for the journal."""
    return encode(fields_of(event))
