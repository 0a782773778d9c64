"""The control where there is no Go: connection 2k is copied to connection 2k+1, and back.

`python -m bench.forwarder ADDRESS PORT`. One epoll loop, recv_into and send, nothing else.
"""

from __future__ import annotations

import select
import socket
import sys
from dataclasses import dataclass, field

READ_BYTES = 256 * 1024


@dataclass(slots=True)
class _End:
    """One connection, its other half, and what that one has not taken yet."""

    sock: socket.socket
    other: _End | None = None
    rest: bytearray = field(default_factory=bytearray)
    """Read here, for the other; while it is not empty, nothing is read here."""
    over: bool = False


class Forwarder:
    """The loop and its connections."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._ends: dict[int, _End] = {}
        self._waiting: _End | None = None
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)

    def run(self) -> None:
        """Forward for ever."""
        listening = self._listener.fileno()
        while True:
            for fd, events in self._epoll.poll():
                if fd == listening:
                    self._accept()
                    continue
                end = self._ends.get(fd)
                if end is None:
                    continue  # closed in this very round
                if events & select.EPOLLOUT:
                    self._flush(end)
                if fd in self._ends and events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    self._read(end)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = _End(sock)
        self._ends[sock.fileno()] = end
        if self._waiting is None:
            self._waiting = end  # read once it has its other half
            return
        end.other, self._waiting.other = self._waiting, end
        for one in (self._waiting, end):
            self._epoll.register(one.sock.fileno(), select.EPOLLIN)
        self._waiting = None

    def _read(self, end: _End) -> None:
        other = end.other
        if other is None or end.rest:
            return
        try:
            count = end.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._close(end, other)
            return
        try:
            sent = other.sock.send(self._view[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(end, other)
            return
        if sent < count:
            end.rest += self._view[sent:count]
            self._watch(end, other)

    def _flush(self, end: _End) -> None:
        """`end` takes more of what was read at its other half."""
        other = end.other
        if other is None:
            return
        try:
            del other.rest[: end.sock.send(other.rest)]
        except BlockingIOError:
            return
        except OSError:
            self._close(end, other)
            return
        self._watch(end, other)

    def _watch(self, *ends: _End) -> None:
        for end in ends:
            assert end.other is not None
            events = 0 if end.rest else select.EPOLLIN
            if end.other.rest:
                events |= select.EPOLLOUT
            self._epoll.modify(end.sock.fileno(), events)

    def _close(self, *ends: _End) -> None:
        for end in ends:
            del self._ends[end.sock.fileno()]
            end.sock.close()


def main() -> None:
    """Entry point."""
    host, port = sys.argv[1], int(sys.argv[2])
    with socket.create_server((host, port), backlog=4096) as listener:
        print("listening", flush=True)
        Forwarder(listener).run()


if __name__ == "__main__":
    main()
