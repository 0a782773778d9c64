"""Netlink's messages as bytes: headers, attributes, answers (netlink(7)). Pure.

For what comes in great numbers, and where pyroute2's objects cost too much: 0.2 to 0.5 ms each.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""

_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with itself, type
_CODE = struct.Struct("=i")

# linux/netlink.h
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP, DUMP_INTERRUPTED = 0x1, 0x4, 0x300, 0x10
REPLACE, CREATE = 0x100, 0x400
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

BUFFER_BYTES = 64 << 10
"""A message of a dump has at most 32 KiB (netlink_dump in net/netlink/af_netlink.c)."""


class KernelError(Exception):
    """The kernel's answer is this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


class InterruptedDumpError(Exception):
    """What was dumped changed meanwhile: what came doesn't belong together, and is to be read again."""


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One message; its length is a multiple of four, as those of all that come here are."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(data: bytes, sequence: int) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, body) of each message that answers `sequence`. Raises KernelError for an error."""
    for answers, kind, flags, body in split(data):
        if answers == sequence:
            if kind in (ERROR, DONE) and (code := code_of(body)):
                raise KernelError(code)
            yield kind, flags, body


class Dump:
    """The answer to one dump request, which comes in several reads."""

    def __init__(self, sequence: int) -> None:
        self._sequence = sequence
        self._interrupted = False
        self.done = False
        """Whether all of it has been taken."""

    def take(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(type, body) of each message of the dump in one read. Raises KernelError for an error."""
        for kind, flags, body in messages(data, self._sequence):
            self._interrupted = self._interrupted or bool(flags & DUMP_INTERRUPTED)
            if kind == DONE:
                self.done = True
            else:
                yield kind, body

    def check(self) -> None:
        """At the end. Raises InterruptedDumpError."""
        if self._interrupted:
            raise InterruptedDumpError


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(sequence, type, flags, body) of each message. Raises KernelError for what can't be one."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, answers, _ = HEADER.unpack_from(data, offset)
        body = data[offset + HEADER.size : offset + length]
        if length < HEADER.size or len(body) < length - HEADER.size:
            raise KernelError(errno.EBADMSG)
        yield answers, kind, flags, body
        offset += (length + 3) & ~3


def code_of(body: bytes) -> int:
    """The errno that an ERROR or a DONE brings; 0: it went well."""
    return -int(_CODE.unpack_from(body)[0]) if len(body) >= _CODE.size else 0


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes_of(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start, end) of the value of each attribute between `start` and `end`; a cut one ends it."""
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            return
        yield kind & _TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3
