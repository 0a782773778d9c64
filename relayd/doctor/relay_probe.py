"""Tries the relay: a TCP connection, and one frame from a throwaway key to itself.

A relay that accepts TCP may be a stopped one, or no relay at all. One that asks for a proof of identity shows
that it lives; of others in the field, that a frame comes back is the one sign that they give. The key is made
for this and forgotten: nobody's connection is replaced.
"""

from __future__ import annotations

import os

import trio

from relayd.agent import relay_dial
from relayd.coordination.model import RelayAddress
from relayd.doctor.facts import Reach
from relayd.errors import HostError
from relayd.keys import KEY_BYTES, PublicKey
from relayd.wire.frames import (
    DATA,
    ERROR,
    HEADER,
    HEADER_BYTES,
    MAX_LENGTH,
    decode_error_untrusted,
    encode_data,
    encode_register,
)
from relayd.wire.identity_frames import CHALLENGE

DIAL_S = 5.0
ECHO_S = 3.0
PAYLOAD = b"relayd check"


async def try_marked(relay: RelayAddress) -> Reach:
    """As the agent does: marked before the first packet leaves."""
    try:
        connected = await relay_dial.dial(relay, timeout_s=DIAL_S)
    except (OSError, HostError) as error:
        return Reach(problem=str(error))
    sock = trio.socket.from_stdlib_socket(connected)
    with sock:
        return await _ask(trio.SocketStream(sock), _name(connected.getpeername()))


async def try_unmarked(relay: RelayAddress, *, echo: bool) -> Reach:
    """As any other program on this host would; with `echo` a frame is sent too."""
    try:
        with trio.fail_after(DIAL_S):
            stream = await trio.open_tcp_stream(relay.host, relay.port)
    except trio.TooSlowError:
        return Reach(problem=f"no answer within {DIAL_S:g} s")
    except OSError as error:
        return Reach(problem=_reason(error))
    async with stream:
        peer = _name(stream.socket.getpeername())
        return await _ask(stream, peer) if echo else Reach(peer=peer)


async def _ask(stream: trio.SocketStream, peer: str) -> Reach:
    key = PublicKey(os.urandom(KEY_BYTES))
    with trio.move_on_after(ECHO_S):
        try:
            await stream.send_all(encode_register(key) + encode_data(key, PAYLOAD))
            return await _answer(stream, peer, encode_data(key, PAYLOAD))
        except (trio.BrokenResourceError, EOFError):
            return Reach(peer=peer, echo="closed")
    return Reach(peer=peer, echo="silent")


async def _answer(stream: trio.SocketStream, peer: str, expected: bytes) -> Reach:
    """Until our frame is back, or the relay says no. Other frames (a RelayProbe, a greeting) are let pass."""
    while True:
        header = await _exactly(stream, HEADER_BYTES)
        length, kind = HEADER.unpack(header)
        if not 1 <= length <= MAX_LENGTH:  # not a relay's words
            return Reach(peer=peer, echo="silent")
        body = await _exactly(stream, length - 1)
        if kind == ERROR:
            return Reach(peer=peer, echo="refused", words=decode_error_untrusted(body))
        if kind == DATA and header + body == expected:
            return Reach(peer=peer, echo="returned")
        if kind == CHALLENGE:
            return Reach(peer=peer, echo="challenged")


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    """Raises EOFError when the stream ends before."""
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _reason(error: OSError) -> str:
    """trio's one error for several addresses has theirs as its cause."""
    causes = error.__cause__.exceptions if isinstance(error.__cause__, BaseExceptionGroup) else [error]
    told = [os.strerror(one.errno) if isinstance(one, OSError) and one.errno else str(one) for one in causes]
    return "; ".join(dict.fromkeys(told))


def _name(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
