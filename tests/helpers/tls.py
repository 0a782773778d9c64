"""Certificates of a test's own making, and a relay's end of a TLS connection."""

from __future__ import annotations

import ssl
from functools import cache

import trio
import trustme

HOST = "relay.example.net"


@cache
def authority() -> trustme.CA:
    """Nobody's certificate authority but this run's."""
    return trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    """Of a relay with a certificate for `names`, from `authority`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


class TlsEnd:
    """A connection's far end, as `tiny_relay.Session` uses a socket."""

    def __init__(self, sock: trio.socket.SocketType, context: ssl.SSLContext) -> None:
        self._socket = sock
        self._stream = trio.SSLStream(trio.SocketStream(sock), context, server_side=True)

    async def recv(self, size: int) -> bytes:
        """As of a socket."""
        return bytes(await self._stream.receive_some(size))

    async def send(self, data: bytes | memoryview) -> int:
        """As of a socket; all of it."""
        await self._stream.send_all(data)
        return len(data)

    def fileno(self) -> int:
        """The socket's."""
        return self._socket.fileno()

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        """The socket's."""
        self._socket.setsockopt(level, option, value)

    def close(self) -> None:
        """Without a farewell."""
        self._socket.close()
