"""What else travels on WireGuard's UDP port, and how it is told from WireGuard's own datagrams.

    offset 0              offset 4              what it is
    01..04 00 00 00       ...                   WireGuard (whitepaper, section 5.4): the kernel's
    0........(2 bits 0)   21 12 a4 42           STUN (RFC 8489, section 5)
    52 4c 59 f0           9f 94 91 01           a sealed message between two agents ("RLY", a key, version 1)

The three can't be confused, and WireGuard drops what isn't its own without a word.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

STUN_COOKIE: Final = 0x2112A442
"""RFC 8489, section 5: the fixed value at offset 4 of every STUN message."""

_COOKIE_BYTES = STUN_COOKIE.to_bytes(4, "big")

SEALED_MAGIC: Final = bytes.fromhex("524c59f09f949101")
""" "RLY", a key in UTF-8, and the version."""


class PortMessage(Enum):
    """What of the port's datagrams is relayd's."""

    STUN = auto()
    SEALED = auto()


def is_sealed(datagram: bytes | memoryview) -> bool:
    """Whether it claims to be a sealed message."""
    return datagram[: len(SEALED_MAGIC)] == SEALED_MAGIC


def kind_of_untrusted(datagram: bytes) -> PortMessage | None:
    """What a stranger's datagram claims to be; None: nothing of ours."""
    if is_sealed(datagram):
        return PortMessage.SEALED
    if datagram[4:8] == _COOKIE_BYTES and datagram[0] < 0x40:
        return PortMessage.STUN
    return None
