"""The last words for connections that end: why, in an Error frame that is to arrive."""

from __future__ import annotations

import socket

import trio

from relayd.observe import log
from relayd.relay.bridge import Bridge
from relayd.relay.tls_door import CLOSE_S
from relayd.wire.frames import encode_error

FAREWELL_S = 1.0
"""How long a refused connection is drained after its Error frame: closing with bytes unread would send
a reset, and a reset overtakes the Error."""

DRAIN_BYTES = 64 << 10

FAREWELLS = 256
"""Most refused connections that are being drained at a time; the next are closed at once."""


class Farewells:
    """All that are being said."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._count = 0

    def see_off(self, sock: socket.socket, text: str, bridge: Bridge | None) -> None:
        """Close `sock`, after `text` if there is any. `bridge`: it is by TLS."""
        if bridge is not None:
            scope = bridge.scope
            scope.deadline = min(scope.deadline, trio.current_time() + FAREWELL_S + CLOSE_S)
        if text and self._count < FAREWELLS:
            self._count += 1
            self._nursery.start_soon(self._say, sock, text, name="farewell")
        else:
            sock.close()

    async def _say(self, sock: socket.socket, text: str) -> None:
        """Say why with an Error frame, let it arrive, close."""
        try:
            with trio.move_on_after(FAREWELL_S):
                sock.send(encode_error(text))
                sock.shutdown(socket.SHUT_WR)
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    if not sock.recv(DRAIN_BYTES):
                        break
        except OSError as error:
            log.get().debug("relay.farewell_failed", reason=error.strerror)
        finally:
            self._count -= 1
            sock.close()
