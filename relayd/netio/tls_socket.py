"""TLS over a non-blocking socket, with the calls that a plain one has: for whoever is driven by a poller.

    sendmsg -> SSLObject -> ciphertext -> the socket; what it doesn't take is kept here, and `unsent` says so
    the socket -> ciphertext -> SSLObject -> recv_into; what didn't fit stays here, and `pending` says so

Memory BIOs and not an SSLSocket: a write that OpenSSL could not finish must be repeated with the very same
bytes, and queues that drop their oldest can't promise that. Here it always finishes, into memory.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Any, cast

import trio

READ_BYTES = 256 << 10
"""Ciphertext taken from the socket at a time: what a plain connection reads."""

WRITE_BYTES = 256 << 10
"""Plaintext taken at a time. More is not encrypted before the last of it has left: what is can't be
dropped."""


class TlsSocket:
    """A connected socket after its TLS handshake. Errors are OSErrors, as those of a socket are."""

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ):
        """`sock` is non-blocking and belongs to this object now; `tls` works on the two others."""
        self._sock, self._tls = sock, tls
        self._incoming, self._outgoing = incoming, outgoing
        self._unsent = b""
        self._at_end = False

    @property
    def unsent(self) -> bool:
        """Whether ciphertext waits for the socket: call `flush` when it is writable."""
        return bool(self._unsent)

    @property
    def pending(self) -> bool:
        """Whether `recv_into` has more without the socket having any: no event will tell of that."""
        return self._tls.pending() > 0 or self._incoming.pending > 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def getpeername(self) -> Any:
        """The other side's address."""
        return self._sock.getpeername()

    def close(self) -> None:
        """Close the socket, without a farewell: nobody waits for one."""
        self._sock.close()

    def send(self, data: bytes) -> int:
        """As `sendmsg`, of one piece."""
        return self.sendmsg([data])

    def sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Take pieces, whole ones, up to WRITE_BYTES or so; -> how many bytes that are.

        Raises BlockingIOError while earlier ones wait, and OSError.
        """
        self.flush()
        if self._unsent:
            raise BlockingIOError
        taken = 0
        for piece in pieces:
            if taken >= WRITE_BYTES:
                break
            rest = memoryview(piece)
            while rest:  # OpenSSL takes a record's worth, 16 KiB
                rest = rest[self._tls.write(rest) :]
            taken += len(piece)
        self._unsent = self._outgoing.read()
        self.flush()
        return taken

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. Raises OSError."""
        if not self._unsent:
            return
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        self._unsent = self._unsent[sent:]

    def recv_into(self, view: memoryview) -> int:
        """Fill `view` with what is there; -> bytes, 0 at the end. Raises BlockingIOError and OSError."""
        got = self._read(view)
        while not got and not self._at_end:
            data = self._sock.recv(READ_BYTES)
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
                self._at_end = True
            got = self._read(view)
        return got

    def _read(self, view: memoryview) -> int:
        """Plaintext of the ciphertext that is here; a record at a time is what OpenSSL gives."""
        got = 0
        try:
            while got < len(view):
                count: int = cast(Any, self._tls).read(len(view) - got, view[got:])  # into any buffer
                if not count:
                    self._at_end = True
                    break
                got += count
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._at_end = True
        if waiting := self._outgoing.read():  # an answer to a change of keys
            self._unsent += waiting
            self.flush()
        return got


async def client_handshake(
    sock: socket.socket, context: ssl.SSLContext, *, server_hostname: str
) -> tuple[TlsSocket, bytes]:
    """TLS over `sock`, which is connected and non-blocking; -> it, and the other side's certificate (DER).

    Without a deadline: the caller has one. Raises OSError (ssl.SSLError is one); `sock` stays the caller's
    then.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_hostname)
    while True:
        done = True
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            done = False
        finally:  # an alert, too, is for the other side to read
            await _send(sock, outgoing.read())
        if done:
            certificate = tls.getpeercert(binary_form=True)
            assert certificate is not None  # every suite of ours has one
            return TlsSocket(sock, tls, incoming, outgoing), certificate
        await trio.lowlevel.wait_readable(sock)
        data = sock.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError("closed within the TLS handshake")
        incoming.write(data)


async def _send(sock: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
