"""One system call for many messages: sendmmsg(2), which makes each a write of its own on a TCP socket too,
and recvmmsg(2), which can leave out what of a datagram is not looked at."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Sequence


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):  # <bits/socket.h>
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint))


class _Slot(ctypes.Structure):
    _fields_ = (("family", ctypes.c_uint16), ("port", ctypes.c_uint16), ("address", ctypes.c_uint32),
                ("padding", ctypes.c_uint64))  # fmt: skip


_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_STRIDE = ctypes.sizeof(_Mmsghdr)
_sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_sendmmsg.restype = ctypes.c_int
_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_recvmmsg.restype = ctypes.c_int


class Messages:
    """Slices of one buffer, each to be written whole, in order."""

    def __init__(self, buffer: bytearray, edges: Sequence[int]) -> None:
        """Message i is `buffer[edges[i] : edges[i + 1]]`. The buffer must not change its size."""
        count = len(edges) - 1
        self.count = count
        # Keeps the buffer's memory where it is: a bytearray with an export can't be resized.
        self._anchor = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        address = ctypes.addressof(self._anchor)
        self._iovecs = (_Iovec * count)()
        self._headers = (_Mmsghdr * count)()
        for i in range(count):
            self._iovecs[i].base = address + edges[i]
            self._iovecs[i].length = edges[i + 1] - edges[i]
            self._headers[i].header.iov = ctypes.addressof(self._iovecs[i])
            self._headers[i].header.iov_count = 1
        self._first = ctypes.addressof(self._headers)

    def send(self, fd: int, start: int, count: int) -> int:
        """Write messages `start` to `start + count`; return how many were taken, 0 when none.

        The last of them may have been taken in part: `taken` tells. Raises OSError, never EAGAIN.
        """
        done: int = _sendmmsg(fd, self._first + start * _STRIDE, count, _FLAGS)
        if done < 0:
            code = ctypes.get_errno()
            if code == errno.EAGAIN:
                return 0
            raise OSError(code, os.strerror(code))
        return done

    def taken(self, i: int) -> int:
        """Bytes of message `i` that the last `send` which reached it took."""
        return int(self._headers[i].length)


class Intake:
    """Slots for datagrams, of which the first `keep` bytes are copied, back to back."""

    def __init__(self, count: int, keep: int) -> None:
        self.count, self.keep = count, keep
        self.buffer = bytearray(count * keep)
        self._anchor = (ctypes.c_char * len(self.buffer)).from_buffer(self.buffer)
        address = ctypes.addressof(self._anchor)
        self._iovecs = (_Iovec * count)()
        self._names = (_Slot * count)()
        self._headers = (_Mmsghdr * count)()
        for i in range(count):
            self._iovecs[i].base = address + i * keep
            self._iovecs[i].length = keep
            header = self._headers[i].header
            header.iov, header.iov_count = ctypes.addressof(self._iovecs[i]), 1
            header.name, header.name_length = ctypes.addressof(self._names[i]), ctypes.sizeof(_Slot)
        self._first = ctypes.addressof(self._headers)

    def receive(self, fd: int) -> int:
        """Take what is there, `count` datagrams at most; return how many. Raises OSError, never EAGAIN."""
        got: int = _recvmmsg(fd, self._first, self.count, socket.MSG_DONTWAIT | socket.MSG_TRUNC, None)
        if got < 0:
            code = ctypes.get_errno()
            if code == errno.EAGAIN:
                return 0
            raise OSError(code, os.strerror(code))
        return got

    def length(self, i: int) -> int:
        """The whole length of datagram `i`, however little of it was copied."""
        return int(self._headers[i].length)

    def source(self, i: int) -> tuple[str, int]:
        """The IPv4 address and port that datagram `i` came from."""
        name = self._names[i]
        return socket.inet_ntoa(ctypes.string_at(ctypes.addressof(name) + 4, 4)), socket.ntohs(name.port)
