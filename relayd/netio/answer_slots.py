"""Datagrams that are answered where they lie: up to 64 in with one `recvmmsg`, their answers out with one
`sendmmsg`.

An answer is written over its request, and goes back to the address that the request came from, out of the
address that it was sent to: name and control message of the one call serve the other.
"""

from __future__ import annotations

import os
import socket
import struct
from errno import EAGAIN, EINTR
from typing import Final

from relayd.netio import mmsg

SLOTS: Final = 64

_NAME_BYTES: Final = 28  # struct sockaddr_in6
_CONTROL_BYTES: Final = 40  # a control message with struct in6_pktinfo, the longer one, padded
_INFO_BYTES: Final = 72
"""Name and control message of one slot, each at a multiple of 8."""
_CONTROL_AT: Final = 32
_WORD = struct.Struct("=I")


class AnswerSlots:
    """The slots of one socket family. Offsets are into `buffer` and `infos`, valid until the next `receive`.

    `sizes` and `flags` say what the kernel said of each datagram. Slot n's datagram lies at n * `stride`.
    """

    def __init__(self, family: socket.AddressFamily, stride: int) -> None:
        """`stride` is the longest datagram taken; a longer one is cut, and flagged MSG_TRUNC."""
        self.stride = stride
        v6 = family == socket.AF_INET6
        self.address_at = 8 if v6 else 4
        """Where in a name the address is; the port is two bytes from 2 on."""
        self.address_bytes = 16 if v6 else 4
        # struct in_pktinfo: interface, own address, destination; struct in6_pktinfo: own address, interface.
        self._interface_at = _CONTROL_AT + 16 + (16 if v6 else 0)
        self.local_at = _CONTROL_AT + 16 + (0 if v6 else 4)
        """Where in a slot's info the own address is that the datagram was sent to."""
        self.buffer = bytearray(SLOTS * stride)
        self.infos = bytearray(SLOTS * _INFO_BYTES)
        self.info_bytes: int = _INFO_BYTES
        self._messages = bytearray(SLOTS * mmsg.MESSAGE_BYTES)
        self._vectors = bytearray(SLOTS * mmsg.VECTOR.size)
        self._messages_at = mmsg.address_of(self._messages)
        buffer_at, infos_at = mmsg.address_of(self.buffer), mmsg.address_of(self.infos)
        vectors_at = mmsg.address_of(self._vectors)
        for slot in range(SLOTS):
            at, info = slot * mmsg.MESSAGE_BYTES, infos_at + slot * _INFO_BYTES
            vector = slot * mmsg.VECTOR.size
            mmsg.VECTOR.pack_into(self._vectors, vector, buffer_at + slot * stride, stride)
            mmsg.NAME_POINTER.pack_into(self._messages, at, info, _NAME_BYTES)
            mmsg.GATHER.pack_into(
                self._messages,
                at + mmsg.VECTORS_AT,
                vectors_at + vector,
                1,
                info + _CONTROL_AT,
                _CONTROL_BYTES,
            )
        self._message_template, self._vector_template = bytes(self._messages), bytes(self._vectors)
        words = memoryview(self._messages).cast("I")
        self._size_column = words[mmsg.LENGTH_AT // 4 :: mmsg.MESSAGE_BYTES // 4]
        self._flags_column = words[mmsg.FLAGS_AT // 4 :: mmsg.MESSAGE_BYTES // 4]
        self.sizes: list[int] = []
        self.flags: list[int] = []
        self._used = 0
        self._answers = 0

    def receive(self, fd: int) -> int:
        """Take what is there, up to SLOTS datagrams, without waiting; return how many. Raises OSError."""
        used = self._used
        self._messages[: used * mmsg.MESSAGE_BYTES] = self._message_template[: used * mmsg.MESSAGE_BYTES]
        self._vectors[: used * mmsg.VECTOR.size] = self._vector_template[: used * mmsg.VECTOR.size]
        self._answers = 0
        count = mmsg.recvmmsg(fd, self._messages_at, SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            self._used = 0
            error = mmsg.get_errno()
            if error in (EAGAIN, EINTR):
                return 0
            raise OSError(error, os.strerror(error))
        self._used = count
        self.sizes = self._size_column[:count].tolist()
        self.flags = self._flags_column[:count].tolist()
        return count

    def name(self, slot: int) -> bytes:
        """The slot's socket address, as it came."""
        at = slot * _INFO_BYTES
        return bytes(self.infos[at : at + _NAME_BYTES])

    def interface(self, slot: int) -> int:
        """The index of the interface that the slot's datagram came in by."""
        index: int = _WORD.unpack_from(self.infos, slot * _INFO_BYTES + self._interface_at)[0]
        return index

    def answer(self, slot: int, size: int, *, by_same_interface: bool = False) -> None:
        """The slot holds an answer of `size` bytes now. Slots are answered in ascending order.

        It leaves by whatever interface routing has for it, unless `by_same_interface`: link-local ones need
        it.
        """
        if not by_same_interface:
            _WORD.pack_into(self.infos, slot * _INFO_BYTES + self._interface_at, 0)
        mmsg.SIZE.pack_into(self._vectors, slot * mmsg.VECTOR.size + mmsg.WORD, size)
        if slot != self._answers:  # close the gap that an unanswered one leaves
            to, at = self._answers * mmsg.MESSAGE_BYTES, slot * mmsg.MESSAGE_BYTES
            self._messages[to : to + mmsg.MESSAGE_BYTES] = self._messages[at : at + mmsg.MESSAGE_BYTES]
        self._answers += 1

    def flush(self, fd: int) -> int:
        """Send the answers; return how many the kernel didn't take. They are lost: clients ask again."""
        done, failed = 0, 0
        while done < self._answers:
            at = self._messages_at + done * mmsg.MESSAGE_BYTES
            sent = mmsg.sendmmsg(fd, at, self._answers - done, socket.MSG_DONTWAIT)
            if sent > 0:
                done += sent
            elif mmsg.get_errno() != EINTR:
                # The first of them didn't go (no route, a filter, a full buffer): the others may.
                done, failed = done + 1, failed + 1
        self._answers = 0
        return failed
