"""What is known of a process's connections when it dies without a word: a page of memory that outlives it.

A memfd, in the manager's descriptor store from the start, and mapped by the process that writes it. It has a
slot for each connection that is in the store too:

    record      which socket it is (SO_COOKIE), and who is at the other end; written once
    received    1 while part of a frame has been read that isn't whole yet
    sent        how many bytes had been written when the last frame was written to its end

`sent` is the only one on a hot path: one store into memory, 40 ns, after a write. It is compared with what
the kernel says of the socket (bytes acknowledged and bytes still queued), so a process that is killed within
a write, before it knows how far that went, leaves no doubt: the numbers differ. `received` is written only
when a read ends within a frame. A process that is killed between such a read and the mark leaves a stream
that goes on in mid-frame; the scanner finds that out at the next header, and ends that one connection.

    header   magic[8] format[8] slots:u32 record_bytes:u32 state:u64
    then     sent:u64 a slot; received:u8 a slot; records: cookie:u64 base:i64 length:u16 facts
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import termios
from dataclasses import dataclass

HEADER = struct.Struct("<8s8sIIQ")
MAGIC = b"relayd\x00\x01"
STATE_AT = HEADER.size - 8

RECORD = struct.Struct("<QqH")
RECORD_BYTES = 512
MAX_FACTS_BYTES = RECORD_BYTES - RECORD.size

SLOTS = 16_384
"""Connections that can live on. LISTEN_FDNAMES has a name for each, and the kernel allows one variable
128 KiB (MAX_ARG_STRLEN): 21,000 names of five characters and a colon."""

SO_COOKIE = 57  # asm-generic/socket.h: a number for a socket that no other one on this host gets until reboot
_BYTES_ACKED = struct.Struct("<120xQ")  # struct tcp_info, linux/tcp.h


class LedgerError(Exception):
    """It isn't one, or of a format that this version doesn't know."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A connection as its process last wrote it down."""

    cookie: int
    base: int
    """What `bytes_written` said of it when it had sent nothing that counts."""
    facts: bytes
    """Who it is, as the process that wrote it would have it."""


class Ledger:
    """The page. Slot 0 stands for all connections that have none: it may be written, and means nothing."""

    def __init__(self, memory: mmap.mmap | bytearray, fd: int, format_: bytes, slots: int) -> None:
        """For `create`, `open` and `unshared`."""
        self.fd = fd
        self.slots = slots
        self._memory = memory
        self._view = memoryview(memory)
        start = HEADER.size
        self.sent = self._view[start : start + 8 * slots].cast("Q")
        """By slot: `bytes_out` of the connection at the end of the last whole frame."""
        start += 8 * slots
        self.received = self._view[start : start + slots]
        self._records = start + slots
        self.format = format_

    @classmethod
    def create(cls, format_: bytes, *, slots: int = SLOTS) -> Ledger:
        """A new one, in which nothing is written. `format_` (at most 8 bytes) says who can read its facts."""
        fd = os.memfd_create("relayd-ledger", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, _size(slots))  # memory is taken when it is written to, not before
            os.pwrite(fd, HEADER.pack(MAGIC, format_, slots, RECORD_BYTES, 0), 0)
            return cls(mmap.mmap(fd, _size(slots)), fd, format_, slots)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def unshared(cls, format_: bytes) -> Ledger:
        """One for a process without a manager: it has slot 0 alone, and outlives nothing."""
        return cls(bytearray(_size(1)), -1, format_, 1)

    @classmethod
    def open(cls, fd: int, format_: bytes) -> Ledger:
        """The one that an earlier process left. Raises LedgerError; `fd` stays the caller's then."""
        try:
            head = os.pread(fd, HEADER.size, 0)
            size = os.fstat(fd).st_size
        except OSError as error:
            raise LedgerError(f"unreadable: {error.strerror}") from error
        if len(head) < HEADER.size:
            raise LedgerError("too short")
        magic, theirs, slots, record_bytes, _ = HEADER.unpack(head)
        if magic != MAGIC or record_bytes != RECORD_BYTES or theirs.rstrip(b"\0") != format_:
            raise LedgerError(f"of another version ({magic[:6]!r} {theirs.rstrip(bytes(1))!r})")
        if slots < 1 or size != _size(slots):
            raise LedgerError(f"{size} bytes can't hold {slots} connections")
        return cls(mmap.mmap(fd, size), fd, format_, slots)

    @property
    def state_id(self) -> int:
        """Which state file belongs to it now; 0: none, the process that wrote it didn't end in order."""
        return int.from_bytes(self._view[STATE_AT : STATE_AT + 8], "little")

    @state_id.setter
    def state_id(self, value: int) -> None:
        self._view[STATE_AT : STATE_AT + 8] = value.to_bytes(8, "little")

    def write(self, slot: int, entry: Entry) -> None:
        """Begin a slot. Raises ValueError when the facts don't fit."""
        if len(entry.facts) > MAX_FACTS_BYTES:
            raise ValueError(f"{len(entry.facts)} bytes of facts, {MAX_FACTS_BYTES} have room")
        self.received[slot] = 0
        self.sent[slot] = 0
        at = self._records + slot * RECORD_BYTES
        facts = RECORD.pack(entry.cookie, entry.base, len(entry.facts)) + entry.facts
        # The cookie last: a slot that is half written has none, and stands for nothing.
        self._view[at + 8 : at + len(facts)] = facts[8:]
        self._view[at : at + 8] = facts[:8]

    def update(self, slot: int, facts: bytes) -> None:
        """Other facts for a slot. Raises ValueError when they don't fit, or aren't as long as the old ones: a
        process may be killed at any moment, and may not leave half of each."""
        entry = self.read(slot)
        if entry is None or len(facts) != len(entry.facts):
            raise ValueError(f"slot {slot} has no facts of {len(facts)} bytes")
        at = self._records + slot * RECORD_BYTES + RECORD.size
        self._view[at : at + len(facts)] = facts

    def read(self, slot: int) -> Entry | None:
        """None: nothing is in that slot, or nothing that makes sense, or there is no such slot."""
        if not 0 < slot < self.slots:
            return None
        at = self._records + slot * RECORD_BYTES
        cookie, base, length = RECORD.unpack_from(self._view, at)
        if not cookie or length > MAX_FACTS_BYTES:
            return None
        at += RECORD.size
        return Entry(cookie, base, bytes(self._view[at : at + length]))

    def clear(self, slot: int) -> None:
        """Nothing is in that slot any more. One that there isn't is clear."""
        if not 0 <= slot < self.slots:
            return
        at = self._records + slot * RECORD_BYTES
        self._view[at : at + 8] = bytes(8)

    def close(self) -> None:
        """Unmap it. What the manager holds stays."""
        self.sent.release()
        self.received.release()
        self._view.release()
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()
            os.close(self.fd)


def _size(slots: int) -> int:
    return HEADER.size + slots * (8 + 1 + RECORD_BYTES)


def cookie_of(sock: socket.socket) -> int:
    """The kernel's own number of a socket, which all descriptors of it share. Raises OSError."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def bytes_written(sock: socket.socket) -> int:
    """How many bytes were ever written into a TCP socket, but for a constant. Raises OSError."""
    acked = _acked(sock)
    while True:
        queued = int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), "little")
        before, acked = acked, _acked(sock)
        if before == acked:  # else some were acknowledged between the two questions
            return acked + queued


def _acked(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    return int(_BYTES_ACKED.unpack(info)[0])
