"""Tries a relay as the agent would: TCP, TLS for relayds://, and the handshake, with a key made for this.

The relay has to prove the pinned key, and is shown the token. The throwaway key goes in our own key's place,
and is forgotten: nobody's connection is replaced. Of relays that know no handshake, that a frame comes back
is the one sign that they give.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from relayd.agent import relay_dial
from relayd.coordination.model import RelayAddress
from relayd.doctor.facts import Echo, Reach
from relayd.errors import HostError
from relayd.join import JoinString
from relayd.keys import KEY_BYTES, PrivateKey, PublicKey
from relayd.netio.tls_socket import TlsSocket
from relayd.wire.agent_handshake import AgentHandshake, State
from relayd.wire.boxes import NONCE_BYTES
from relayd.wire.frames import (
    ERROR,
    HEADER,
    HEADER_BYTES,
    MAX_LENGTH,
    decode_error_untrusted,
    encode_data,
)
from relayd.wire.identity import Refusal, Refused, Welcomed
from relayd.wire.identity_frames import AGENT_NONCE_BYTES, CHALLENGE, decode_challenge_untrusted

DIAL_S = 5.0
ANSWER_S = 4.0
"""From Register to what comes of it. An agent waits a little longer; who watches a check waits less."""

PAYLOAD = b"relayd check"
READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """A relay, and what is known of it."""

    join: JoinString
    remembered: PublicKey | None = None
    """The key that it had for the agent."""

    insecure: bool = False
    """Whether it need not prove anything."""

    @property
    def address(self) -> RelayAddress:
        """Where it is."""
        return RelayAddress(self.join.host, self.join.port)


async def try_marked(asked: Asked) -> Reach:
    """As the agent does: marked before the first packet leaves."""
    try:
        sock = await relay_dial.dial(asked.address, timeout_s=DIAL_S)
    except (OSError, HostError) as error:
        return Reach(problem=str(error))
    return await _ask(sock, asked)


async def try_unmarked(asked: Asked, *, echo: bool) -> Reach:
    """As any other program on this host would; with `echo` the relay is asked, too."""
    try:
        with trio.fail_after(DIAL_S):
            stream = await trio.open_tcp_stream(asked.address.host, asked.address.port)
    except trio.TooSlowError:
        return Reach(problem=f"no answer within {DIAL_S:g} s")
    except OSError as error:
        return Reach(problem=_reason(error))
    if not echo:
        async with stream:
            return Reach(peer=_name(stream.socket.getpeername()))
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return await _ask(sock, asked)


async def _ask(sock: socket.socket, asked: Asked) -> Reach:
    """`sock` is closed when this comes back."""
    wire: socket.socket | TlsSocket = sock
    try:
        peer = _name(sock.getpeername())
        if asked.join.tls:
            from relayd.agent.relay_tls import secure  # as for the agent: only for those who use it

            try:
                wire = await secure(sock, asked.join, timeout_s=DIAL_S)
            except OSError as error:
                return Reach(peer=peer, echo="TLS failed", words=str(error))
        return await _Question(wire, peer, asked).ask()
    finally:
        wire.close()


class _Question:
    """One connection's: what the relay shows of itself, as it comes."""

    def __init__(self, wire: socket.socket | TlsSocket, peer: str, asked: Asked) -> None:
        self._wire, self._peer = wire, peer
        key = PrivateKey(os.urandom(KEY_BYTES))
        self._echo = encode_data(key.public(), PAYLOAD)
        self._handshake = AgentHandshake(
            key,
            agent_nonce=os.urandom(AGENT_NONCE_BYTES),
            nonce=os.urandom(NONCE_BYTES),
            now=trio.current_time(),
            token=asked.join.token.encode(),
            pin=asked.join.key,
            remembered=asked.remembered,
            insecure=asked.insecure,
        )
        self._key: PublicKey | None = None

    async def ask(self) -> Reach:
        """What came of it, within ANSWER_S."""
        with trio.move_on_after(ANSWER_S):
            try:
                await self._send(self._handshake.hello() + self._echo)
                async for kind, frame in self._frames():
                    found = await self._hear(kind, frame)
                    if found is not None:
                        return found
            except OSError:
                pass  # as good as an end of the stream: nothing more comes
            else:
                return self._found("silent")  # not a relay's words
            return self._found("closed")
        return self._found("silent" if self._key is None else "challenged")

    async def _hear(self, kind: int, frame: bytes) -> Reach | None:
        body = frame[HEADER_BYTES:]
        if kind == ERROR:
            return self._found("refused", decode_error_untrusted(body))
        if frame == self._echo and self._handshake.state is State.CHALLENGE:
            return self._found("returned")
        step = self._handshake.on_frame(kind, body, trio.current_time())
        match step.outcome:
            case Refused(refusal=refusal, reason=reason):
                return self._found("wrong key" if refusal is Refusal.RELAY_KEY else "unproved", reason)
            case Welcomed() as welcomed:
                return Reach(
                    peer=self._peer,
                    echo="welcomed",
                    key=welcomed.relay_key,
                    trust=welcomed.trust,
                    previous=welcomed.previous,
                )
        if kind == CHALLENGE:
            self._key = decode_challenge_untrusted(body).relay_key
        if step.send:
            await self._send(step.send)
        return None

    def _found(self, echo: Echo, words: str = "") -> Reach:
        return Reach(peer=self._peer, echo=echo, words=words, key=self._key)

    async def _send(self, data: bytes) -> None:
        """All of it. Raises OSError."""
        while data:
            try:
                data = data[self._wire.send(data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._wire.fileno())
        while isinstance(self._wire, TlsSocket) and self._wire.unsent:
            await trio.lowlevel.wait_writable(self._wire.fileno())
            self._wire.flush()

    async def _frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Type and whole frame of each, until one that can't be a relay's. Raises ConnectionError at the end
        of the stream."""
        held, buffer = b"", bytearray(READ_BYTES)
        while True:
            while len(held) >= HEADER_BYTES:
                length, kind = HEADER.unpack(held[:HEADER_BYTES])
                if not 1 <= length <= MAX_LENGTH:
                    return
                size = HEADER_BYTES - 1 + length
                if len(held) < size:
                    break
                yield kind, held[:size]
                held = held[size:]
            try:
                count = self._wire.recv_into(memoryview(buffer))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._wire.fileno())
                continue
            if not count:
                raise ConnectionResetError("closed")
            held += buffer[:count]


def _reason(error: OSError) -> str:
    """trio's one error for several addresses has theirs as its cause."""
    causes = error.__cause__.exceptions if isinstance(error.__cause__, BaseExceptionGroup) else [error]
    told = [os.strerror(one.errno) if isinstance(one, OSError) and one.errno else str(one) for one in causes]
    return "; ".join(dict.fromkeys(told))


def _name(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
