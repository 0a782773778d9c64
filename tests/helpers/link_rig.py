"""A relay link with its poller, over real sockets on loopback, and the relay's end in the test's hand."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from relayd.agent.known_relays import KnownRelays
from relayd.agent.link_settings import LinkSettings
from relayd.agent.relay_link import RelayLink
from relayd.coordination.model import RelayAddress
from relayd.join import JoinString
from relayd.keys import PublicKey
from relayd.netio.poller import Poller
from relayd.wire.frames import KEYED_BYTES
from relayd.wire.identity_frames import PeerGone, Welcome
from relayd.wire.runs import Run
from tests.helpers.identities import GATE, RELAY, TOKEN, private
from tests.helpers.tiny_relay import Session, TinyRelay, dial_unmarked, until

OWN_PRIVATE = private("the agent")
OWN = OWN_PRIVATE.public()
PEER = PublicKey(b"p" * 32)
INSECURE = LinkSettings(insecure=True)
SECURE = LinkSettings()


async def here(function: Callable[..., None], *arguments: object) -> None:
    """In place of a thread: a test needs no other moment for it."""
    await trio.lowlevel.checkpoint()
    function(*arguments)


class LinkRig:
    """A link with its poller, and what it handed on."""

    def __init__(
        self,
        relay: JoinString,
        at: RelayAddress,
        settings: LinkSettings,
        refuse: int = 0,
        known: KnownRelays | None = None,
        agents: int = 2,
        refuse_from: int = sys.maxsize,
    ) -> None:
        """The relay is dialled `at` that address; the first `refuse` dials fail, and all `refuse_from` on."""
        self._refuse_from = refuse_from
        self._at = at
        self.poller = Poller()
        self.delivered: list[tuple[bytes, bytes]] = []
        self.messages: list[tuple[bytes, bytes]] = []
        self.gone: list[PeerGone] = []
        self.dialled: list[socket.socket] = []
        self.dials_refused = 0
        self._refuse = refuse
        self.link = RelayLink(
            self.poller,
            relay,
            OWN_PRIVATE,
            self._on_runs,
            settings,
            known=known,
            on_message=lambda key, payload, now: self.messages.append((key, payload)),
            on_gone=self.gone.append,
            agents=lambda: agents,
            dial=self._dial,
            uniform=lambda low, high: high,
        )

    def send(self, *frames: bytes) -> None:
        self.link.send(frames, sum(map(len, frames)))

    async def _dial(self, relay: RelayAddress, *, timeout_s: float, **_more: object) -> socket.socket:
        if self.dials_refused < self._refuse or self.link.dials >= self._refuse_from:
            self.dials_refused += 1
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError("nobody there")
        sock = await dial_unmarked(self._at, timeout_s=timeout_s)
        self.dialled.append(sock)
        return sock

    def _on_runs(self, buffer: bytearray, runs: Sequence[Run], now: float) -> None:
        for _, key, first, stop, size in runs:
            for start in range(first, stop, size):
                self.delivered.append((key, bytes(buffer[start + KEYED_BYTES : start + size])))


@asynccontextmanager
async def running(
    relay: TinyRelay,
    settings: LinkSettings | None = None,
    refuse: int = 0,
    *,
    join: JoinString | None = None,
    known: KnownRelays | None = None,
    agents: int = 2,
    refuse_from: int = sys.maxsize,
) -> AsyncIterator[LinkRig]:
    """A link that runs; to a relay that proves nothing unless `settings` or `join` say otherwise."""
    rig = LinkRig(join or relay.join, relay.address, settings or INSECURE, refuse, known, agents, refuse_from)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.poller.run)
            await nursery.start(rig.link.run)
            yield rig
            nursery.cancel_scope.cancel()
    finally:
        rig.poller.close()


async def connected(relay: TinyRelay, rig: LinkRig) -> Session:
    """The relay's end of a link that has just come up."""
    session = await relay.accept()
    await session.register(OWN)
    await until(lambda: rig.link.connected)
    return session


def pinned(relay: TinyRelay, token: str = TOKEN) -> JoinString:
    """What an agent is given that knows the relay."""
    return replace(relay.join, key=RELAY.public, token=token)


def trusting(relay: TinyRelay) -> JoinString:
    """What one is given that is to trust whom it meets."""
    return replace(relay.join, token=TOKEN)


async def welcomed(relay: TinyRelay, rig: LinkRig, welcome: Welcome | None = None) -> Session:
    """The relay's end of a link that has proved itself, and has been answered its first Ping."""
    session = await relay.accept()
    await session.admit(RELAY.private, GATE.admit, welcome or Welcome())
    await until(lambda: rig.link.connected)
    await session.pong()
    return session
