"""An admission token: the words that let any key in. Made by the relay, carried by the join string."""

from __future__ import annotations

from base64 import urlsafe_b64encode

MIN_TOKEN_BYTES = 16
"""Shorter ones can be guessed: even of hexadecimal digits, sixteen are 64 bits, and each guess costs a
connection and a handshake."""

MAX_TOKEN_BYTES = 256
"""Room for a signed token of somebody's own making, and small next to what may be sent before admission."""

MADE_BYTES = 24
"""Randomness in a token of ours, in bytes: 32 characters, no padding."""


def check_token(text: str) -> str:
    """`text` when it can be a token: 16 to 256 characters of ASCII that show, no blanks.

    Raises ValueError saying what is wrong, never quoting it.
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a token is made of ASCII characters that show, without blanks")
    if len(text) < MIN_TOKEN_BYTES:
        raise ValueError(f"{len(text)} characters long, a token has {MIN_TOKEN_BYTES} or more")
    if len(text) > MAX_TOKEN_BYTES:
        raise ValueError(f"{len(text)} characters long, a token has {MAX_TOKEN_BYTES} at most")
    return text


def token_of(randomness: bytes) -> str:
    """A new token out of MADE_BYTES of randomness. Raises ValueError for fewer."""
    if len(randomness) < MADE_BYTES:
        raise ValueError(f"{len(randomness)} bytes of randomness, a token is made of {MADE_BYTES}")
    return urlsafe_b64encode(randomness[:MADE_BYTES]).decode()
