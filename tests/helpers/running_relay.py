"""A relay with real sockets on loopback, and clients that speak its bare wire."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import trio

from relayd.config import RelayConfig
from relayd.keys import PrivateKey, PublicKey
from relayd.observe.control import ask
from relayd.relay.server import serve
from relayd.secret_file import RELAY_TOKEN
from relayd.signals import Signals
from relayd.wire import frames
from relayd.wire.identity import Welcomed
from relayd.wire.identity_frames import CHALLENGE
from tests.helpers.identities import agent_side

SOON_S = 20.0
"""Bound of each wait for something that happens at once on an idle machine."""


_numbers = count()


class Client:
    """The bare wire: one connection, no opinion."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._held = b""

    async def send(self, *data: bytes) -> None:
        with trio.fail_after(SOON_S):
            await self.stream.send_all(b"".join(data))

    async def frame(self) -> bytes:
        """The next whole frame that isn't a Challenge; b"" when the relay has closed."""
        while (frame := await self.any_frame())[4:5] == bytes([CHALLENGE]):
            pass
        return frame

    async def error(self) -> str:
        """The text of the next Error; other frames are let pass."""
        while frame := await self.frame():
            if frame[4] == frames.ERROR:
                return frames.decode_error_untrusted(frame[5:])
        raise AssertionError("the relay has closed without an Error")

    async def any_frame(self) -> bytes:
        """The next whole frame; b"" when the relay has closed."""
        with trio.fail_after(SOON_S):
            while len(self._held) < 4 or len(self._held) < 4 + int.from_bytes(self._held[:4], "big"):
                try:
                    part = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:  # reset: closed with something unread
                    return b""
                if not part:
                    return b""
                self._held += part
        size = 4 + int.from_bytes(self._held[:4], "big")
        frame, self._held = self._held[:size], self._held[size:]
        return frame

    async def echo(self, key: PublicKey) -> None:
        """Come back when everything sent so far has been dealt with: Data to one's own key returns."""
        token = frames.encode_data(key, b"are you there")
        await self.send(token)
        while (frame := await self.frame()) != token:
            assert frame, "the relay has closed"

    async def prove(self, key: PrivateKey, *, token: str, name: str = "", **more: Any) -> Welcomed:
        """Register and prove `key`, as an agent does."""
        agent = agent_side(name or f"number {next(_numbers)}", key=key, token=token, **more)
        await self.send(agent.hello())
        while True:
            frame = await self.any_frame()
            assert frame, "the relay has closed"
            step = agent.on_frame(frame[4], frame[5:], 0.0)
            await self.send(step.send)
            if step.outcome is not None:
                assert isinstance(step.outcome, Welcomed), step.outcome
                return step.outcome


class Running:
    """A relay in this process, on a free port of 127.0.0.1."""

    def __init__(self, config: RelayConfig, port: int) -> None:
        self.config, self.port = config, port

    @property
    def token(self) -> str:
        """The one that it has made."""
        return (Path(self.config.state_dir) / RELAY_TOKEN).read_text().strip()

    @asynccontextmanager
    async def connection(self, source: str = "127.0.0.1") -> AsyncIterator[Client]:
        with socket.socket() as sock:
            sock.bind((source, 0))
            sock.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            with trio.fail_after(SOON_S):
                await stream.socket.connect(("127.0.0.1", self.port))
            yield Client(stream)

    @asynccontextmanager
    async def agent(self, key: PublicKey) -> AsyncIterator[Client]:
        async with self.connection() as client:
            await client.send(frames.encode_register(key))
            await client.echo(key)
            yield client

    @asynccontextmanager
    async def proved(self, key: PrivateKey, source: str = "127.0.0.1") -> AsyncIterator[Client]:
        """An agent that has proved its key."""
        async with self.connection(source) as client:
            await client.prove(key, token=self.token)
            yield client

    async def status(self) -> dict[str, object]:
        with trio.fail_after(SOON_S):
            return dict(await ask(self.config.control, "status"))


@asynccontextmanager
async def relay(
    directory: Path, *, signals: Signals | None = None, **settings: object
) -> AsyncIterator[Running]:
    """A relay that takes bare Registers too, unless `settings` (RelayConfig's) say otherwise."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = RelayConfig(
        listen=(f"127.0.0.1:{port}",),
        control=str(directory / "relay.sock"),
        http=None,
        **{"auth": "optional", "state_dir": str(directory / "state"), **settings},  # type: ignore[arg-type]
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, config, None, signals)
        yield Running(config, port)
        nursery.cancel_scope.cancel()
