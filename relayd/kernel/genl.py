"""Generic netlink, as much of it as reading takes: one request, the messages of its answer.

Calls that write go by pyroute2 (`rtnl`, `netlink`). This is for what an agent reads every second.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncGenerator, Iterator

import trio

GENL_HEADER = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with itself, type
_CODE = struct.Struct("=i")
_FAMILY_ID = struct.Struct("=H")

# linux/netlink.h, linux/genetlink.h
_NETLINK_GENERIC, _GENL_ID_CTRL = 16, 16
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10
_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 3, 1, 2
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_BUFFER_BYTES = 64 << 10
"""A message of a dump has at most 32 KiB (netlink_dump in net/netlink/af_netlink.c)."""


class KernelError(Exception):
    """The kernel's answer is this errno."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


class InterruptedDumpError(Exception):
    """What was dumped changed meanwhile: what came doesn't belong together, and is to be read again."""


async def dump(family: str, command: int, version: int, attributes: bytes) -> AsyncGenerator[bytes, None]:
    """The bodies of the answer to one dump request: a generic netlink header, then attributes.

    Raises KernelError (ENOENT: the kernel has no such family), InterruptedDumpError, at the end, and OSError
    where there is no netlink. To be bounded by the caller.
    """
    with trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as sock:
        # Asking for the family loads its module.
        name = attribute(_CTRL_FAMILY_NAME, family.encode() + b"\0")
        await sock.send(_request(_GENL_ID_CTRL, _REQUEST, 1, _GETFAMILY, 1, name))
        number = 0
        for _, _, body in _messages(await sock.recv(_BUFFER_BYTES), 1):
            for kind, start, end in attributes_of(body, GENL_HEADER.size, len(body)):
                if kind == _CTRL_FAMILY_ID and end - start == _FAMILY_ID.size:
                    (number,) = _FAMILY_ID.unpack_from(body, start)
        if not number:
            raise KernelError(errno.ENOENT)
        await sock.send(_request(number, _REQUEST | _DUMP, 2, command, version, attributes))
        interrupted = done = False
        while not done:
            for kind, flags, body in _messages(await sock.recv(_BUFFER_BYTES), 2):
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if kind == _DONE:
                    done = True
                else:
                    yield body
    if interrupted:
        raise InterruptedDumpError


def _request(kind: int, flags: int, sequence: int, command: int, version: int, attributes: bytes) -> bytes:
    body = GENL_HEADER.pack(command, version, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _messages(data: bytes, sequence: int) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, body) of each message that answers `sequence`. Raises KernelError for an error."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, answers, _ = _HEADER.unpack_from(data, offset)
        body = data[offset + _HEADER.size : offset + length]
        if length < _HEADER.size or len(body) < length - _HEADER.size:
            raise KernelError(errno.EBADMSG)
        if answers == sequence:
            if kind in (_ERROR, _DONE) and len(body) >= _CODE.size:
                (code,) = _CODE.unpack_from(body)
                if code:
                    raise KernelError(-code)
            yield kind, flags, body
        offset += (length + 3) & ~3


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
