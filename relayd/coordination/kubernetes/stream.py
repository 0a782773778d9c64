"""TCP and TLS connections to the API server, marked before their first packet leaves.

The mark is why this isn't httpcore's own backend: that connects first and sets socket options afterwards, and
an unmarked SYN could go into the very tunnel that is configured through this connection.
"""
# ruff: noqa: ASYNC109 - the time-outs of httpcore's own interface

from __future__ import annotations

import contextlib
import math
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import trio

from relayd import marks

ATTEMPT_S = 4.0
"""For one address of the server's name to answer."""

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # A watch says nothing for minutes. A server that is gone without a word is found out within 15 + 3 x 5 s.
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
)


class MarkedBackend(httpcore.AsyncNetworkBackend):
    """Makes httpcore's connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See httpcore. Addresses are tried one after the other."""
        problem = "the name has no address"
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                for entry in await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                    try:
                        with trio.fail_after(ATTEMPT_S):
                            return _Stream(await _connect(int(entry[0]), entry[4]))
                    except OSError as error:
                        problem = str(error)
                    except trio.TooSlowError:
                        problem = f"{entry[4][0]} doesn't answer"
        except trio.TooSlowError as error:
            raise httpcore.ConnectTimeout(f"no connection within {timeout:g} s") from error
        except (OSError, UnicodeError) as error:  # the look-up
            raise httpcore.ConnectError(str(error)) from error
        raise httpcore.ConnectError(problem)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """No API server has one."""
        raise httpcore.ConnectError(f"{path}: not an API server")

    async def sleep(self, seconds: float) -> None:
        """See httpcore."""
        await trio.sleep(seconds)


async def _connect(family: int, address: Any) -> trio.SocketStream:
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        # A relay in a pod of its own may not: there is no tunnel on its network. An agent has the capability.
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, marks.FWMARK)
        for option in KEEPALIVE:
            sock.setsockopt(*option)
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection as httpcore wants it."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                return bytes(await self._stream.receive_some(max_bytes))
        except trio.TooSlowError as error:
            raise httpcore.ReadTimeout(f"nothing came within {timeout:g} s") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.ReadError(_cause(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                await self._stream.send_all(buffer)
        except trio.TooSlowError as error:
            raise httpcore.WriteTimeout(f"not taken within {timeout:g} s") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise httpcore.WriteError(_cause(error)) from error

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        assert isinstance(self._stream, trio.SocketStream)
        encrypted = trio.SSLStream(self._stream, ssl_context, server_hostname=server_hostname)
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                await encrypted.do_handshake()
        except trio.TooSlowError as error:
            await self.aclose()
            raise httpcore.ConnectTimeout(f"no TLS handshake within {timeout:g} s") from error
        except trio.BrokenResourceError as error:
            await self.aclose()
            raise httpcore.ConnectError(_cause(error)) from error
        except BaseException:
            await self.aclose()
            raise
        return _Stream(encrypted)

    def get_extra_info(self, info: str) -> Any:
        plain = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        match info:
            case "ssl_object":
                return None  # httpcore asks it for HTTP/2, which isn't offered
            case "socket":
                return plain.socket
            case "is_readable":
                return plain.socket.is_readable()
        return None


def _cause(error: BaseException) -> str:
    """What the kernel or TLS said, rather than trio's own words for it."""
    return str(error.__cause__ or error) or type(error).__name__
