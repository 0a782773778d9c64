"""WireGuard's keys as values of their own type: never `bytes`, never `str`."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Self

from nacl.bindings import crypto_scalarmult_base

KEY_BYTES = 32


def _decode_base64(text: str) -> bytes:
    """The 32 bytes of a key in WireGuard's base64 form (44 characters). Raises ValueError saying why not."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if len(raw) != KEY_BYTES:
        raise ValueError(f"{len(raw)} bytes long, a WireGuard key has {KEY_BYTES}")
    return raw


@dataclass(frozen=True, slots=True, order=True)
class PublicKey:
    """An X25519 public key: the name of a node."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise ValueError(f"{len(self.raw)} bytes long, a WireGuard key has {KEY_BYTES}")

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """Parse `wg`'s form. Raises ValueError saying what is wrong."""
        return cls(_decode_base64(text))

    def __str__(self) -> str:
        return base64.b64encode(self.raw).decode()

    def short(self) -> str:
        """The first eight characters of the base64 form, for logs and tables."""
        return str(self)[:8]


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """An X25519 private key. It never shows in a repr or a log."""

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise ValueError(f"{len(self.raw)} bytes long, a WireGuard key has {KEY_BYTES}")

    @classmethod
    def from_base64(cls, text: str) -> Self:
        """Parse `wg genkey`'s form. Raises ValueError saying what is wrong, never quoting the key."""
        return cls(_decode_base64(text))

    def to_base64(self) -> str:
        """`wg`'s form, for a key file or a netlink call."""
        return base64.b64encode(self.raw).decode()

    def public(self) -> PublicKey:
        """The public key that belongs to this one (RFC 7748, section 6.1)."""
        return PublicKey(crypto_scalarmult_base(self.raw))
