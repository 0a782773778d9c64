"""Linux's batch calls for datagrams, `recvmmsg` and `sendmmsg`: their structs, control messages and calls.

Python's own `socket.sendmsg` takes one datagram a call and looks at each buffer anew; here the arrays are
built once and only what differs is written. Layouts: recvmmsg(2), cmsg(3), ip(7), udp(7),
include/uapi/linux/{in,udp}.h. Sizes and offsets come from ctypes.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

# Not in Python 3.11's socket module; from include/uapi/asm-generic/socket.h, linux/in.h and linux/udp.h.
SO_RCVBUFFORCE: Final = 33
SO_RXQ_OVFL: Final = 40
IP_PKTINFO: Final = 8
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103

MAX_SEGMENTS: Final = 64
"""Datagrams in one UDP_SEGMENT send: UDP_MAX_SEGMENTS of every kernel that has it (newer ones allow 128)."""

MAX_UDP_PAYLOAD: Final = 65507
"""Bytes of UDP payload in one IPv4 packet, and so in all the segments of one send."""

WORD: Final = ctypes.sizeof(ctypes.c_void_p)


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint))


MESSAGE_BYTES: Final = ctypes.sizeof(_Mmsghdr)
"""One element of the array that both calls take."""

VECTORS_AT: Final = _Msghdr.vectors.offset
VECTOR_COUNT_AT: Final = _Msghdr.vector_count.offset
CONTROL_BYTES_AT: Final = _Msghdr.control_bytes.offset
FLAGS_AT: Final = _Msghdr.flags.offset
LENGTH_AT: Final = _Mmsghdr.length.offset

VECTOR: Final = struct.Struct("@PN")
"""`struct iovec`: address and length."""

GATHER: Final = struct.Struct("@PNPN")
"""The middle of a `struct msghdr`, from `VECTORS_AT` on: vectors and their count, control and its bytes."""

NAME_POINTER: Final = struct.Struct("@PI")
"""The beginning of a `struct msghdr`: the address of the socket address, and its bytes."""

SIZE: Final = struct.Struct("@N")
"""A count or a length in a `struct msghdr`."""

NAME: Final = struct.Struct("=HH4s8x")
"""`struct sockaddr_in`: family in host order, port in network order (`socket.htons`), address."""

_CMSG = struct.Struct("@Nii")
_PKTINFO = struct.Struct("@i4s4s")


def _aligned(size: int) -> int:
    return (size + WORD - 1) // WORD * WORD


def _cmsg(level: int, kind: int, data: bytes) -> bytes:
    """One control message, padded to where the next begins."""
    size = _CMSG.size + len(data)
    return (_CMSG.pack(size, level, kind) + data).ljust(_aligned(size), b"\0")


def pktinfo_cmsg(source: IPv4Address) -> bytes:
    """The control message that makes `source` the datagram's source address (ip(7), IP_PKTINFO)."""
    return _cmsg(socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO.pack(0, source.packed, b"\0\0\0\0"))


def segment_cmsg(segment_bytes: int) -> bytes:
    """The control message that cuts a send into datagrams of `segment_bytes` each (udp(7), UDP_SEGMENT)."""
    return _cmsg(SOL_UDP, UDP_SEGMENT, struct.pack("@H", segment_bytes))


PKTINFO_BYTES: Final = len(pktinfo_cmsg(IPv4Address(0)))
SEGMENT_BYTES: Final = len(segment_cmsg(0))
PKTINFO_ADDRESS_AT: Final = _CMSG.size + 8
"""Where a received IP_PKTINFO message has the datagram's destination (`ipi_addr`)."""

OVERFLOW_BYTES: Final = _aligned(_CMSG.size + 4)
OVERFLOW_COUNT_AT: Final = _CMSG.size
"""Where a received SO_RXQ_OVFL message has the socket's drops so far, a u32. It comes before IP_PKTINFO, and
only with datagrams that were queued after the socket's first drop (net/socket.c, `sock_recv_drops`)."""


def address_of(buffer: bytearray) -> int:
    """Where `buffer` is in memory now. It may move whenever its size changes: ask again for each use."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def word_of(address: IPv4Address) -> int:
    """An address as a u32 in the host's order, as the columns of received control data have it."""
    value: int = struct.unpack("=I", address.packed)[0]
    return value


def source_word(port: int) -> int:
    """The first four bytes of a `sockaddr_in` with `port`, read as a u32 in the host's order."""
    value: int = struct.unpack("=I", struct.pack("=HH", socket.AF_INET, socket.htons(port)))[0]
    return value


_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

recvmmsg: Final[Callable[[int, int, int, int, None], int]] = _recvmmsg
"""`recvmmsg(fd, address, count, flags, None)`: how many messages came, or -1 (`get_errno()` says why)."""

sendmmsg: Final[Callable[[int, int, int, int], int]] = _sendmmsg
"""`sendmmsg(fd, address, count, flags)`: how many messages went, or -1 (`get_errno()` says why)."""

get_errno: Final[Callable[[], int]] = ctypes.get_errno
"""The error number of the last of these calls that failed."""
