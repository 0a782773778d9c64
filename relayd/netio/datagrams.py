"""One UDP socket on `lo`, on a fixed port, for all the loopback addresses at once; it can be renewed.

Bound to the device `lo` and to no address, it receives for all of 127.0.0.0/8, tells for each datagram
which address it was sent to (IP_PKTINFO), and sends from any of them. What goes through it is batched by
`receive_slots` and `send_batch`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from errno import EADDRINUSE, EPERM

from relayd import marks
from relayd.errors import HostError
from relayd.netio import mmsg

RECEIVE_BUFFER_BYTES = 8 << 20
"""Some 20 ms of datagrams at 150,000 a second. The kernel counts twice this, for what it needs itself."""

LOOPBACK_DEVICE = b"lo"


def _open(port: int, mark: Callable[[socket.socket], None], beside: socket.socket | None) -> socket.socket:
    """A new socket on `port`; `beside` has the same port and gives way to it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LOOPBACK_DEVICE)
        mark(sock)
        sock.setsockopt(socket.IPPROTO_IP, mmsg.IP_PKTINFO, 1)
        sock.setsockopt(socket.SOL_SOCKET, mmsg.SO_RXQ_OVFL, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, mmsg.SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        except PermissionError:  # no CAP_NET_ADMIN: as much as net.core.rmem_max allows
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        # Never SO_REUSEADDR: with it any user's process could take the port over. SO_REUSEPORT is for
        # processes of the same user only, and stands for no longer than the two sockets overlap.
        if beside is not None:
            beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", port))
        if beside is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    except OSError:
        sock.close()
        if beside is not None:
            beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        raise
    return sock


def _not_kept(sock: socket.socket) -> None:
    """It ends with this process."""


class DatagramSocket:
    """The socket that stands on the port now. Its descriptor changes with `renew`."""

    def __init__(
        self,
        port: int,
        *,
        mark: Callable[[socket.socket], None] = marks.set_mark,
        passed: socket.socket | None = None,
        keep: Callable[[socket.socket], None] = _not_kept,
    ) -> None:
        """Port 0 is any free one. Raises HostError when the port is taken or the mark isn't allowed.

        `passed` is one of ours that an earlier process has left, on `port`, with what came meanwhile. `keep`
        is told each socket that comes to stand on the port."""
        self._mark, self._keep = mark, keep
        self._sock = passed if passed is not None else self._first(port)
        self.port: int = self._sock.getsockname()[1]
        if passed is None:
            keep(self._sock)

    def _first(self, port: int) -> socket.socket:
        try:
            return _open(port, self._mark, None)
        except OSError as error:
            if error.errno == EADDRINUSE:
                raise HostError(
                    f"UDP port {port} on lo is in use: is another agent running? `ss -ulpn sport = :{port}` "
                    "names the process; agent.proxy_port in the configuration chooses another port"
                ) from error
            if error.errno == EPERM:
                raise HostError(
                    "a marked socket on lo was not allowed: run as root, or grant CAP_NET_ADMIN"
                ) from error
            raise HostError(f"no UDP socket on lo, port {port}: {error.strerror}") from error

    def fileno(self) -> int:
        """The descriptor, until the next `renew`."""
        return self._sock.fileno()

    def renew(self) -> socket.socket:
        """Put a new socket in the place of the old one, on the same port, which is never without one.

        Returns the old one, which may still hold datagrams: read it out, then close it.
        Raises OSError when no new one could be had; the old one stays then.
        """
        old = self._sock
        self._sock = _open(self.port, self._mark, old)
        self._keep(self._sock)
        return old

    def close(self) -> None:
        """Give the port back."""
        self._sock.close()
