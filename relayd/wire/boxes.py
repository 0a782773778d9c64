"""NaCl boxes between two WireGuard keys: X25519, HSalsa20, XSalsa20-Poly1305 (nacl.cr.yp.to/box.html).

The very keys that WireGuard uses, and no other key material. A box says that it was made by one of the two
holders, and nothing about which: what is sealed must name its purpose, or it could be turned back on its
sender.
"""

from __future__ import annotations

import nacl.exceptions
from nacl.bindings import (
    crypto_box_beforenm,
    crypto_box_BEFORENMBYTES,
    crypto_box_easy_afternm,
    crypto_box_NONCEBYTES,
    crypto_box_open_easy_afternm,
)

from relayd.errors import RemoteProtocolError
from relayd.keys import PrivateKey, PublicKey

NONCE_BYTES: int = crypto_box_NONCEBYTES
"""24: long enough to be drawn at random."""

TAG_BYTES = 16
"""What a box is longer than its content."""

SHARED_BYTES: int = crypto_box_BEFORENMBYTES

FIELD_PRIME = 2**255 - 19
"""Coordinates of Curve25519 are below it (RFC 7748, section 4.1)."""


def shared_key_untrusted(own: PrivateKey, other: PublicKey) -> bytes:
    """The key of all boxes between `own` and `other`, SHARED_BYTES long. It costs 40 us; a box costs 2.

    Raises RemoteProtocolError for keys that no private key has: small-order points, with which everybody
    shares the all-zero secret (libsodium refuses that secret, RFC 7748, section 6.1), and second spellings
    of a point, with which the holder of one key could pass for the holder of several.
    """
    if int.from_bytes(other.raw, "little") >= FIELD_PRIME:
        raise RemoteProtocolError(f"key {other.short()} is not an X25519 key in its one canonical form")
    try:
        return crypto_box_beforenm(other.raw, own.raw)
    except nacl.exceptions.RuntimeError as error:
        raise RemoteProtocolError(
            f"key {other.short()} is a small-order point: anybody could prove to hold it"
        ) from error


def seal(shared: bytes, nonce: bytes, content: bytes) -> bytes:
    """The box. `nonce` has NONCE_BYTES and is never used twice with one `shared`; random ones never are."""
    return crypto_box_easy_afternm(content, nonce, shared)


def open_untrusted(shared: bytes, nonce: bytes, box: bytes) -> bytes:
    """The content. Raises RemoteProtocolError when neither holder of `shared` has made this box."""
    try:
        return crypto_box_open_easy_afternm(box, nonce, shared)
    except nacl.exceptions.CryptoError as error:  # also for one that is shorter than its tag
        raise RemoteProtocolError("the box does not open") from error
