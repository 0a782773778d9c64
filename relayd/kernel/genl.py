"""Generic netlink, as much of it as reading takes: one request, the messages of its answer.

Calls that write go by pyroute2 (`rtnl`, `netlink`). This is for what an agent reads every second.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncGenerator

import trio

from relayd.kernel import nlmsg
from relayd.kernel.nlmsg import KernelError, attribute, attributes_of

GENL_HEADER = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_FAMILY_ID = struct.Struct("=H")

# linux/netlink.h, linux/genetlink.h
_NETLINK_GENERIC, _GENL_ID_CTRL = 16, 16
_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 3, 1, 2


async def dump(family: str, command: int, version: int, attributes: bytes) -> AsyncGenerator[bytes, None]:
    """The bodies of the answer to one dump request: a generic netlink header, then attributes.

    Raises KernelError (ENOENT: the kernel has no such family), InterruptedDumpError, at the end, and OSError
    where there is no netlink. To be bounded by the caller.
    """
    with trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as sock:
        # Asking for the family loads its module.
        name = attribute(_CTRL_FAMILY_NAME, family.encode() + b"\0")
        await sock.send(_request(_GENL_ID_CTRL, nlmsg.REQUEST, 1, _GETFAMILY, 1, name))
        number = 0
        for _, _, body in nlmsg.messages(await sock.recv(nlmsg.BUFFER_BYTES), 1):
            for kind, start, end in attributes_of(body, GENL_HEADER.size, len(body)):
                if kind == _CTRL_FAMILY_ID and end - start == _FAMILY_ID.size:
                    (number,) = _FAMILY_ID.unpack_from(body, start)
        if not number:
            raise KernelError(errno.ENOENT)
        await sock.send(_request(number, nlmsg.REQUEST | nlmsg.DUMP, 2, command, version, attributes))
        answer = nlmsg.Dump(2)
        while not answer.done:
            for _, body in answer.take(await sock.recv(nlmsg.BUFFER_BYTES)):
                yield body
    answer.check()


def _request(kind: int, flags: int, sequence: int, command: int, version: int, attributes: bytes) -> bytes:
    return nlmsg.message(kind, flags, sequence, GENL_HEADER.pack(command, version, 0) + attributes)
