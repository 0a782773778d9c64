"""A socket's stream, of a trio task beside a poller: while that serves traffic it would let the task run
every few milliseconds only."""

from __future__ import annotations

import socket

import trio

from relayd.netio.poller import Poller


class WatchedStream(trio.abc.Stream):
    """Whoever waits to receive from it is let run at once when there is something."""

    def __init__(self, sock: socket.socket, poller: Poller) -> None:
        """`sock` is connected and non-blocking. It isn't watched before `watch`."""
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._poller, self._fd, self._is_watched = poller, sock.fileno(), False

    def watch(self) -> None:
        """From now on; until `unwatch`, which comes before the socket is closed."""
        self._poller.yield_when_readable(self._fd)
        self._is_watched = True

    def unwatch(self) -> None:
        """No more. Once is enough."""
        if self._is_watched:
            self._is_watched = False
            self._poller.remove(self._fd)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As every stream's."""
        if self._is_watched:
            self._poller.expect(self._fd)
            self._poller.yield_soon()  # what is there already is handed over in trio's next round
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As every stream's."""
        if self._is_watched:
            self._poller.yield_soon()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As every stream's."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the socket."""
        self.unwatch()
        await self._stream.aclose()
