"""Datagrams that leave together: whole runs of frames, their payloads gathered in place, in one `sendmmsg`.

A run of frames of one size becomes one message with a vector for each payload and a UDP_SEGMENT control
message, which the kernel carries through `lo` as one packet (GSO). Everything else is a message of its own
in the same call. No payload is copied and no Python object is made per datagram.
"""

from __future__ import annotations

import sys
from errno import EINTR
from socket import MSG_DONTWAIT
from typing import Final

from relayd.netio import mmsg

MESSAGES: Final = 64
"""Messages in one call: bounds how long it takes (some 100 us when each is one datagram)."""

VECTORS: Final = 16 * mmsg.MAX_SEGMENTS
"""Payloads in one call, all messages together."""

PATTERNS: Final = 512
"""Vector patterns kept (a few hundred bytes each). Bulk needs a handful: it comes in few sizes."""

_LANE_BITS = 16 * mmsg.WORD
_VECTOR_BYTES = mmsg.VECTOR.size
_CONTROL_STRIDE = mmsg.PKTINFO_BYTES + mmsg.SEGMENT_BYTES


class SendBatch:
    """Messages gathered for one address and port, each with a source address of its own.

    `add` until it says that there is no room, then `flush`. The buffers that `add` was told of must stay
    where they are until then. `segmenting` is False once this host has shown that it can't do UDP_SEGMENT.
    """

    def __init__(self, *, segmenting: bool = True) -> None:
        self.segmenting = segmenting
        self._name = bytearray(mmsg.NAME.size)
        self._vectors = bytearray(VECTORS * _VECTOR_BYTES)
        self._controls = bytearray(MESSAGES * _CONTROL_STRIDE)
        self._messages = bytearray(MESSAGES * mmsg.MESSAGE_BYTES)
        name_at = mmsg.address_of(self._name)
        self._vectors_at = mmsg.address_of(self._vectors)
        self._controls_at = mmsg.address_of(self._controls)
        self._messages_at = mmsg.address_of(self._messages)
        for message in range(MESSAGES):
            at = message * mmsg.MESSAGE_BYTES
            mmsg.NAME_POINTER.pack_into(self._messages, at, name_at, mmsg.NAME.size)
        self._segment_cmsgs: dict[int, bytes] = {}
        self._patterns: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._sizes = [0] * MESSAGES
        """Datagrams in each message."""
        self._count = self._position = self._vector_count = 0
        self._close_tail()

    def __bool__(self) -> bool:
        return self._count > 0

    def aim(self, name: bytes) -> None:
        """Send to `name`, a `sockaddr_in` (`mmsg.NAME`), from now on."""
        self._name[:] = name

    def _close_tail(self) -> None:
        """No datagram may be added to the last message any more."""
        self._tail_source, self._tail_payload, self._tail_room = b"", 0, 0

    def add(self, source: bytes, address: int, payload: int, stride: int, count: int) -> int:
        """Add `count` datagrams of `payload` bytes (1 or more): at `address`, then every `stride` bytes.

        `source` is their `mmsg.pktinfo_cmsg`. Returns how many there was room for.
        """
        if (
            count == 1
            and payload <= self._tail_payload
            and payload <= self._tail_room
            and source is self._tail_source
        ):
            return self._add_tail(address, payload)
        most = min(mmsg.MAX_SEGMENTS, mmsg.MAX_UDP_PAYLOAD // payload) if self.segmenting else 1
        added = 0
        while added < count and self._count < MESSAGES:
            segments = min(most, count - added)
            at = self._vector_count * _VECTOR_BYTES
            if self._vector_count + segments > VECTORS:
                break
            start = address + added * stride
            if segments == 1:
                mmsg.VECTOR.pack_into(self._vectors, at, start, payload)
            else:
                self._write_vectors(at, start, payload, stride, segments)
            self._add_message(source, payload, segments)
            added += segments
        return added

    def _write_vectors(self, at: int, start: int, payload: int, stride: int, segments: int) -> None:
        """Vectors at equal distances, computed all at once: one integer with a lane for each."""
        size = segments * _VECTOR_BYTES
        try:
            pattern, ones = self._patterns[payload, stride, segments]
        except KeyError:
            pattern, ones = self._pattern(payload, stride, segments)
        self._vectors[at : at + size] = (pattern + start * ones).to_bytes(size, sys.byteorder)

    def _pattern(self, payload: int, stride: int, segments: int) -> tuple[int, int]:
        """The vectors of such a run if it began at address 0, and the same with 1 for each address."""
        if len(self._patterns) >= PATTERNS:
            self._patterns.clear()
        pattern = b"".join(mmsg.VECTOR.pack(segment * stride, payload) for segment in range(segments))
        ones = mmsg.VECTOR.pack(1, 0) * segments
        entry = int.from_bytes(pattern, sys.byteorder), int.from_bytes(ones, sys.byteorder)
        self._patterns[payload, stride, segments] = entry
        return entry

    def _add_message(self, source: bytes, payload: int, segments: int) -> None:
        message = self._count
        control = message * _CONTROL_STRIDE
        control_bytes = mmsg.PKTINFO_BYTES
        self._controls[control : control + mmsg.PKTINFO_BYTES] = source
        if segments > 1:
            control_bytes = _CONTROL_STRIDE
            second = control + mmsg.PKTINFO_BYTES
            self._controls[second : second + mmsg.SEGMENT_BYTES] = self._segment_cmsg(payload)
        mmsg.GATHER.pack_into(
            self._messages,
            message * mmsg.MESSAGE_BYTES + mmsg.VECTORS_AT,
            self._vectors_at + self._vector_count * _VECTOR_BYTES,
            segments,
            self._controls_at + control,
            control_bytes,
        )
        self._sizes[message] = segments
        self._vector_count += segments
        self._count = message + 1
        if self.segmenting and segments < mmsg.MAX_SEGMENTS:
            self._tail_source, self._tail_payload = source, payload
            self._tail_room = mmsg.MAX_UDP_PAYLOAD - segments * payload
        else:
            self._close_tail()

    def _segment_cmsg(self, payload: int) -> bytes:
        try:
            return self._segment_cmsgs[payload]
        except KeyError:
            if len(self._segment_cmsgs) >= PATTERNS:
                self._segment_cmsgs.clear()
            return self._segment_cmsgs.setdefault(payload, mmsg.segment_cmsg(payload))

    def _add_tail(self, address: int, payload: int) -> int:
        """One datagram more for the last message, no longer than those in it; a shorter one is its last."""
        if self._vector_count == VECTORS:
            return 0
        message = self._count - 1
        segments = self._sizes[message] + 1
        mmsg.VECTOR.pack_into(self._vectors, self._vector_count * _VECTOR_BYTES, address, payload)
        self._vector_count += 1
        at = message * mmsg.MESSAGE_BYTES
        second = message * _CONTROL_STRIDE + mmsg.PKTINFO_BYTES
        segment = self._tail_payload
        self._controls[second : second + mmsg.SEGMENT_BYTES] = self._segment_cmsg(segment)
        mmsg.SIZE.pack_into(self._messages, at + mmsg.VECTOR_COUNT_AT, segments)
        mmsg.SIZE.pack_into(self._messages, at + mmsg.CONTROL_BYTES_AT, _CONTROL_STRIDE)
        self._sizes[message] = segments
        if payload < segment or segments == mmsg.MAX_SEGMENTS:
            self._close_tail()
        else:
            self._tail_room -= payload
        return 1

    def flush(self, fd: int) -> int:
        """Send what was gathered, without waiting. 0, or the error number of a message that didn't go.

        After an error, mend and `flush` again, or `skip` that message and then `flush`.
        """
        position = self._position
        while position < self._count:
            at = self._messages_at + position * mmsg.MESSAGE_BYTES
            sent = mmsg.sendmmsg(fd, at, self._count - position, MSG_DONTWAIT)
            if sent > 0:
                position += sent
                continue
            error = mmsg.get_errno()
            if error != EINTR:
                self._position = position
                return error
        self._count = self._position = self._vector_count = 0
        self._close_tail()
        return 0

    def skip(self) -> int:
        """Give up the message that didn't go; return how many datagrams were in it."""
        self._position += 1
        return self._sizes[self._position - 1]

    def blocked_by_segmenting(self) -> bool:
        """Whether the message that didn't go asks the kernel to cut it: what such an error may be about."""
        return self._sizes[self._position] > 1

    def send_singly(self, fd: int) -> int:
        """Send the message that didn't go as datagrams of their own; return how many of those didn't either.

        When some did, it was UDP_SEGMENT that this host can't do, and `segmenting` is off from now on.
        """
        message = self._messages[self._position * mmsg.MESSAGE_BYTES :][: mmsg.MESSAGE_BYTES]
        vectors, count, control, _ = mmsg.GATHER.unpack_from(message, mmsg.VECTORS_AT)
        failed = 0
        for segment in range(count):
            mmsg.GATHER.pack_into(
                message,
                mmsg.VECTORS_AT,
                vectors + segment * _VECTOR_BYTES,
                1,
                control,
                mmsg.PKTINFO_BYTES,
            )
            failed += mmsg.sendmmsg(fd, mmsg.address_of(message), 1, MSG_DONTWAIT) != 1
        self._position += 1
        if failed < count:
            self.segmenting = False
        return int(failed)
