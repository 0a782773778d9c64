"""A client that asks once."""

from __future__ import annotations

import trio

SOON_S = 10.0


async def http_get(address: str, path: str, *, status: int = 200) -> bytes:
    """The body of the answer, which must have this status."""
    host, _, port = address.rpartition(":")
    request = f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    with trio.fail_after(SOON_S):
        async with await trio.open_tcp_stream(host.strip("[]"), int(port)) as stream:
            await stream.send_all(request.encode())
            answer = b"".join([part async for part in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    return body
