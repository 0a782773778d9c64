"""Slots that `recvmmsg` fills: up to 64 datagrams a call, each with room for a frame's header in front.

The slots lie side by side at the stride of the length that datagrams have most (the *fitted* length), so
that a batch of such datagrams, headers and all, is one contiguous stretch of whole frames: one buffer to
send, however many datagrams. A longer datagram spills into a second area and is put together there; a
shorter one leaves a gap. When lengths change for good, the slots are fitted anew.

In bulk, a batch looks exactly like the last one: same lengths, source and destination. Two memory
comparisons find that out (`repeats`), and nothing is looked at per datagram.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from errno import EAGAIN, EINTR
from typing import Final, NamedTuple

from relayd.netio import mmsg

SLOTS: Final = 64
"""Datagrams in one call. With 1452-byte ones that is 93 KiB: it stays in a second-level cache."""

MAX_DATAGRAM: Final = 65503
"""Longest datagram taken, in bytes: what fits a Data frame. The kernel cuts a longer one, and says so."""

REFIT_AFTER: Final = 4 * SLOTS
"""Datagrams in batches that fit badly before the slots are fitted anew (which costs some 20 us)."""

_NAME_BYTES = mmsg.NAME.size
_CONTROL_BYTES = mmsg.OVERFLOW_BYTES + mmsg.PKTINFO_BYTES
_INFO_BYTES = _NAME_BYTES + _CONTROL_BYTES
_PLAIN_ADDRESS_AT = _NAME_BYTES + mmsg.PKTINFO_ADDRESS_AT
_U32 = struct.Struct("=I")


class Columns(NamedTuple):
    """What the kernel said about each datagram of a batch, a list for each fact.

    `lengths` in bytes; `sources` as `mmsg.source_word`; `destinations` as `mmsg.word_of` (0: none was told);
    `flags` is 0 but for a datagram that was cut (MSG_TRUNC) or whose control data was (MSG_CTRUNC).
    """

    lengths: list[int]
    sources: list[int]
    destinations: list[int]
    flags: list[int]


class ReceiveSlots:
    """The memory that batches of datagrams are received into. Valid until the next `receive`.

    `fitted` is the length, in bytes, that the slots are fitted to; `kernel_drops` counts datagrams that
    the kernel dropped because the socket's receive buffer was full, as of the last `columns`.
    """

    def __init__(self, head_room: int, *, fitted: int, never: int = 0) -> None:
        """`never` is a length that the slots are never fitted to, however many datagrams have it."""
        self._head_room, self._never = head_room, never
        self._wide_stride = head_room + MAX_DATAGRAM
        # Anonymous mappings: pages that no datagram reaches are never there.
        self._tight_memory = mmap.mmap(-1, SLOTS * self._wide_stride)
        self._wide_memory = mmap.mmap(-1, SLOTS * self._wide_stride)
        self._tight = memoryview(self._tight_memory)
        self._wide = memoryview(self._wide_memory)
        self._tight_at = ctypes.addressof(ctypes.c_char.from_buffer(self._tight_memory))
        self._wide_at = ctypes.addressof(ctypes.c_char.from_buffer(self._wide_memory))

        self._vectors = bytearray(SLOTS * 2 * mmsg.VECTOR.size)
        self._infos = bytearray(SLOTS * _INFO_BYTES)
        self._messages = bytearray(SLOTS * mmsg.MESSAGE_BYTES)
        self._messages_at = mmsg.address_of(self._messages)
        vectors_at, infos_at = mmsg.address_of(self._vectors), mmsg.address_of(self._infos)
        for slot in range(SLOTS):
            info = infos_at + slot * _INFO_BYTES
            message = slot * mmsg.MESSAGE_BYTES
            mmsg.NAME_POINTER.pack_into(self._messages, message, info, _NAME_BYTES)
            mmsg.GATHER.pack_into(
                self._messages,
                message + mmsg.VECTORS_AT,
                vectors_at + slot * 2 * mmsg.VECTOR.size,
                2,
                info + _NAME_BYTES,
                _CONTROL_BYTES,
            )
        # A call overwrites the lengths it was given with those it found: they are set again before the next.
        self._template = bytes(self._messages)
        self._used = 0

        words, infos = memoryview(self._messages).cast("I"), memoryview(self._infos).cast("I")
        per_message, per_info = mmsg.MESSAGE_BYTES // 4, _INFO_BYTES // 4
        self._length_column = words[mmsg.LENGTH_AT // 4 :: per_message]
        self._flags_column = words[mmsg.FLAGS_AT // 4 :: per_message]
        self._source_column = infos[0::per_info]
        self._destination_column = infos[_PLAIN_ADDRESS_AT // 4 :: per_info]
        self._control_column = memoryview(self._messages).cast("L")[
            mmsg.CONTROL_BYTES_AT // mmsg.WORD :: mmsg.MESSAGE_BYTES // mmsg.WORD
        ]

        self.kernel_drops = 0
        self._drops_told = 0
        self._fit(fitted)

    def _fit(self, length: int) -> None:
        """Lay the slots out for datagrams of `length` bytes. What they held is gone."""
        self.fitted = length
        self._stride = self._head_room + length
        self._misfits = 0
        self._written: list[bytes | None] = [None] * SLOTS
        self._stretches = [self._tight[: n * self._stride] for n in range(SLOTS + 1)]
        self.forget()
        for slot in range(SLOTS):
            tight = self._tight_at + slot * self._stride + self._head_room
            wide = self._wide_at + slot * self._wide_stride + self._head_room
            at = slot * 2 * mmsg.VECTOR.size
            mmsg.VECTOR.pack_into(self._vectors, at, tight, length)
            mmsg.VECTOR.pack_into(self._vectors, at + mmsg.VECTOR.size, wide + length, MAX_DATAGRAM - length)

    def receive(self, fd: int) -> int:
        """Take what is there, up to SLOTS datagrams, without waiting; return how many.

        Raises OSError as the kernel has it.
        """
        used = self._used
        self._messages[:used] = self._template[:used]
        count = mmsg.recvmmsg(fd, self._messages_at, SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            error = mmsg.get_errno()
            self._used = 0
            if error in (EAGAIN, EINTR):
                return 0
            raise OSError(error, os.strerror(error))
        self._used = count * mmsg.MESSAGE_BYTES
        return count

    def repeats(self, count: int) -> bool:
        """Whether this batch of `count` has all the marks of the one that was remembered."""
        return (
            count <= self._remembered
            and self._messages.startswith(self._seen_messages[: count * mmsg.MESSAGE_BYTES])
            and self._infos.startswith(self._seen_infos[: count * _INFO_BYTES])
        )

    def remember(self, count: int) -> None:
        """Take this batch, all fitted and all of one peer, as what the next ones are likely to look like."""
        self._remembered = count
        self._seen_messages = bytes(self._messages[: count * mmsg.MESSAGE_BYTES])
        self._seen_infos = bytes(self._infos[: count * _INFO_BYTES])

    def forget(self) -> None:
        """No batch repeats until one is remembered again."""
        self._remembered = 0
        self._seen_messages = self._seen_infos = b""

    def columns(self, count: int) -> Columns:
        """The facts about the `count` datagrams of this batch."""
        destinations = self._destination_column[:count].tolist()
        control = self._control_column[:count].tolist()
        if control.count(mmsg.PKTINFO_BYTES) != count:
            self._amend(control, destinations)
        return Columns(
            self._length_column[:count].tolist(),
            self._source_column[:count].tolist(),
            destinations,
            self._flags_column[:count].tolist(),
        )

    def _amend(self, control: list[int], destinations: list[int]) -> None:
        """Correct `destinations` where the control data isn't one plain IP_PKTINFO; take note of drops."""
        for slot, size in enumerate(control):
            if size == mmsg.PKTINFO_BYTES:
                continue
            if size != _CONTROL_BYTES:
                destinations[slot] = 0
                continue
            at = slot * _INFO_BYTES + _NAME_BYTES
            drops = _U32.unpack_from(self._infos, at + mmsg.OVERFLOW_COUNT_AT)[0]
            # A u32 that wraps. Datagrams may pass each other on their way in: a step back is none.
            new = (drops - self._drops_told) & 0xFFFFFFFF
            if 0 < new < 1 << 31:
                self.kernel_drops += new
                self._drops_told = drops
            destinations[slot] = _U32.unpack_from(
                self._infos, at + mmsg.OVERFLOW_BYTES + mmsg.PKTINFO_ADDRESS_AT
            )[0]

    def socket_changed(self) -> None:
        """The next batch comes from a new socket, whose count of drops starts at 0."""
        self._drops_told = 0
        self.forget()

    def stretch(self, first: int, stop: int) -> memoryview:
        """Slots `first` to `stop` - 1 as one run of frames: all hold datagrams of the fitted length."""
        if first == 0:
            return self._stretches[stop]
        return self._tight[first * self._stride : stop * self._stride]

    def set_head(self, slot: int, head: bytes) -> None:
        """Write `head` (`head_room` bytes) in front of the slot's datagram, unless it stands there."""
        if self._written[slot] is not head:
            self._remembered = 0  # that batch may come again, but no longer with its heads
            at = slot * self._stride
            self._tight[at : at + self._head_room] = head
            self._written[slot] = head

    def frame(self, slot: int, length: int, head: bytes) -> memoryview:
        """`head` and the `length` bytes of the datagram behind it, contiguous."""
        if length <= self.fitted:
            self.set_head(slot, head)
            at = slot * self._stride
            return self._tight[at : at + self._head_room + length]
        at, tight = slot * self._wide_stride, slot * self._stride
        spill = at + self._stride
        self._wide[at : at + self._head_room] = head
        self._wide[at + self._head_room : spill] = self._tight[tight + self._head_room : tight + self._stride]
        return self._wide[at : at + self._head_room + length]

    def refit(self, lengths: list[int]) -> None:
        """Judge how the last batch fitted, and fit the slots anew when it has been bad for long enough.

        Only when the batch's frames have been handed on: refitting moves the slots.
        """
        longest = min(max(lengths), MAX_DATAGRAM)
        if longest in (self.fitted, self._never) or lengths.count(longest) * 4 < len(lengths):
            return
        if longest < self.fitted and self.fitted in lengths:
            return
        self._misfits += len(lengths)
        if self._misfits >= REFIT_AFTER and longest:
            self._fit(longest)

    def close(self) -> None:
        """Give the memory back. No frame of it may be in use any more."""
        self._stretches.clear()
        self._tight.release()
        self._wide.release()
        self._tight_memory.close()
        self._wide_memory.close()
