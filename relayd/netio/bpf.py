"""Classic BPF for a socket: a filter that lets through only what relayd reads from WireGuard's port.

The kernel runs it for each datagram before it is queued, so that a raw socket, which is offered a copy of
every UDP datagram of the host, costs no wake-up for any that isn't meant for it.
Documentation/networking/filter.rst has the machine; bpf(4) of BSD its names.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; Python 3.11's socket module lacks it

# linux/bpf_common.h
_LOAD_IMMEDIATE_X: Final = 0x01  # BPF_LDX | BPF_W | BPF_IMM
_LOAD_HEADER_LENGTH_X: Final = 0xB1  # BPF_LDX | BPF_B | BPF_MSH: X = 4 * (byte & 15), made for IPv4's header
_LOAD_HALF: Final = 0x48  # BPF_LD | BPF_H | BPF_IND: A = u16 at X + k
_LOAD_WORD: Final = 0x40  # BPF_LD | BPF_W | BPF_IND: A = u32 at X + k
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_UDP_HEADER_BYTES: Final = 8
_DESTINATION_PORT_AT: Final = 2
_WHOLE: Final = 0xFFFFFFFF
"""Bytes of the packet to keep: all."""

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter


class Instruction(NamedTuple):
    """One instruction: code, jumps when true and when false (in instructions, forwards), operand."""

    code: int
    when_true: int
    when_false: int
    operand: int


class Word(NamedTuple):
    """A u32, big-endian, at an offset in bytes into the UDP payload."""

    offset: int
    value: int


def words_of(prefix: bytes, offset: int = 0) -> tuple[Word, ...]:
    """`prefix` (a multiple of four bytes) at `offset` of the payload, as the words that are compared."""
    if len(prefix) % 4:
        raise ValueError("classic BPF compares words: the prefix must be a multiple of four bytes")
    return tuple(
        Word(offset + at, int.from_bytes(prefix[at : at + 4], "big")) for at in range(0, len(prefix), 4)
    )


def udp_filter(port: int, patterns: Sequence[Sequence[Word]], *, ip_header: bool) -> list[Instruction]:
    """Accept UDP datagrams to `port` of which the payload has all the words of one of `patterns`.

    `ip_header`: whether the packet begins with an IPv4 header (a raw IPv4 socket) or with the UDP header (a
    raw IPv6 socket, and a UDP socket of either family). What is too short for a word that is looked at is
    refused: a load behind the end makes the whole program return 0.
    """
    program = [
        Instruction(_LOAD_HEADER_LENGTH_X if ip_header else _LOAD_IMMEDIATE_X, 0, 0, 0),
        Instruction(_LOAD_HALF, 0, 0, _DESTINATION_PORT_AT),
        Instruction(_JUMP_IF_EQUAL, 1, 0, port),
        Instruction(_RETURN, 0, 0, 0),
    ]
    for words in patterns:
        # On a mismatch: over what is left of this pattern, its acceptance included.
        left = 2 * len(words)
        for word in words:
            left -= 2
            program.append(Instruction(_LOAD_WORD, 0, 0, _UDP_HEADER_BYTES + word.offset))
            program.append(Instruction(_JUMP_IF_EQUAL, 0, left + 1, word.value))
        program.append(Instruction(_RETURN, 0, 0, _WHOLE))
    program.append(Instruction(_RETURN, 0, 0, 0))
    return program


def attach(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Filter what `sock` receives from now on; a filter that it had is replaced at once.

    What was queued before stays queued: drain it. Raises OSError.
    """
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*one) for one in program))
    # struct sock_fprog: a count and a pointer, natively aligned.
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
    )
