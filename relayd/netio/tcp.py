"""What a connection that carries frames needs of TCP, at either end."""

from __future__ import annotations

import socket

IOV_MAX = 1024
"""Most pieces that one sendmsg takes (limits.h)."""

NOTSENT_LOWAT_BYTES = 128 << 10
"""Unsent bytes that the kernel holds for one connection: what it has can't be dropped any more, so the rest
waits where it can be."""


def set_options(sock: socket.socket, *, user_timeout_ms: int) -> None:
    """Frames leave at once, few wait in the kernel, and bytes that stay unacknowledged for `user_timeout_ms`
    mean that the other side is gone (tcp(7)). Raises OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
