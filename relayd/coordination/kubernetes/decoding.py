"""JSON as the API server sends it, who takes, and keeps, what is nested ten thousand deep. Pure.

A node may write anything into its own resource's status, and all agents and relays get it. msgspec walks
through what nobody asked for as well, and gives up after a thousand levels with a RecursionError.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

MAX_DEPTH = 50
"""Nothing that is looked at is deeper than ten."""

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)

T = TypeVar("T")


def decode(text: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Raises ValueError for what is no JSON, or no `kind`."""
    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError:
        return msgspec.json.decode(shallow(bytes(text)), type=kind)


def shallow(text: bytes) -> bytes:
    """`text` with null in the place of what is nested deeper than MAX_DEPTH."""
    parts: list[bytes] = []
    depth = kept_from = cut_from = 0
    for token in _TOKEN.finditer(text):
        if token[0] in (b"{", b"["):
            depth += 1
            if depth == MAX_DEPTH + 1:
                cut_from = token.start()
        elif token[0] in (b"}", b"]"):
            if depth == MAX_DEPTH + 1:
                parts += (text[kept_from:cut_from], b"null")
                kept_from = token.end()
            depth -= 1
    parts.append(text[kept_from:])
    return b"".join(parts)
