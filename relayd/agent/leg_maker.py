"""Makes an agent's connections to one relay: finds it, registers there, or goes on with what an earlier
process had.

It remembers where the relay was when it last proved itself, so that a name server that is away, or lies,
doesn't keep the agent from it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable

import trio

from relayd.agent.handover import AgentHandover, Resumed, resumed_of
from relayd.agent.known_relays import KnownRelays
from relayd.agent.link_settings import LinkSettings
from relayd.agent.link_state import NONCE_BYTES, LinkState
from relayd.agent.relay_connection import BUFFER_BYTES, OnMessage, OnRuns
from relayd.agent.relay_leg import RelayLeg
from relayd.agent.relay_session import Event, RelaySession
from relayd.coordination.model import RelayAddress
from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.netio.delays import Delays
from relayd.netio.outbox import Outbox
from relayd.netio.poller import Poller
from relayd.netio.tls_socket import TlsSocket
from relayd.wire.agent_handshake import AgentHandshake
from relayd.wire.boxes import NONCE_BYTES as BOX_NONCE_BYTES
from relayd.wire.identity import Trust, Welcomed
from relayd.wire.identity_frames import AGENT_NONCE_BYTES

Dial = Callable[..., Awaitable[socket.socket]]
"""`relay_dial.dial`, or a test's."""


class LegMaker:
    """One relay, and what its connections have in common. They share a buffer: one is read at a time."""

    def __init__(
        self,
        poller: Poller,
        relay: JoinString,
        settings: LinkSettings,
        *,
        home_key: PublicKey | None,
        known: KnownRelays,
        handover: AgentHandover,
        dial: Dial,
        on_runs: OnRuns,
        on_message: OnMessage,
        tell: Callable[[RelayLeg, Event], None],
    ) -> None:
        """The callbacks are the connections' own."""
        self._poller, self._relay, self._settings = poller, relay, settings
        self._home_key, self._known, self._handover, self._dial = home_key, known, handover, dial
        self._on_runs, self._on_message, self._tell = on_runs, on_message, tell
        self._buffer = bytearray(BUFFER_BYTES)
        self.delays = Delays()
        """How long frames waited for a relay that takes less than it is sent."""
        self._proved_at: Endpoint | None = None
        self._misled = False

    def use(self, settings: LinkSettings) -> None:
        """Of connections from now on."""
        self._settings = settings

    def outbox(self) -> Outbox:
        """For the frames of one connection, or of none."""
        settings = self._settings
        return Outbox(max_bytes=settings.queue_bytes, max_age_s=settings.queue_age_s, delays=self.delays)

    async def dial(self) -> socket.socket | TlsSocket:
        """A connection that is good for a Register. Raises OSError and HostError."""
        relay, timeout_s = self._relay, self._settings.dial_timeout_s
        address = RelayAddress(relay.host, relay.port)
        if self._proved_at is None:
            sock = await self._dial(address, timeout_s=timeout_s)
        else:
            sock = await self._dial(
                address, timeout_s=timeout_s, spare=self._proved_at, spare_first=self._misled
            )
        if not relay.tls:
            return sock
        from relayd.agent.relay_tls import secure  # 4 MiB and 60 ms, for those who use it

        return await secure(sock, relay, timeout_s=timeout_s)

    def was_right(self, leg: RelayLeg) -> None:
        """The relay has proved itself at the other end of `leg`."""
        self._proved_at, self._misled = leg.endpoint, False

    def was_wrong(self, leg: RelayLeg) -> None:
        """Where the name leads now there is no relay of ours: next time we go where it was first."""
        self._misled = leg.endpoint != self._proved_at and not self._misled

    def resume(self, key: PrivateKey) -> RelayLeg | None:
        """The connection that an earlier process had with `key`, if there is one that may be trusted."""
        found = self._handover.take(self._relay.address, key.public())
        for one, _, _ in found[1:]:  # of two during a Drain
            self._handover.store.refuse(one, "superseded")
        if not found:
            return None
        one, facts, state = found[0]
        pin, relay_key = self._relay.key, facts.proved_key()
        if pin != relay_key if pin is not None else relay_key is None and not self._settings.insecure:
            self._handover.store.refuse(one, "not_trusted")
            return None
        proved = None
        if relay_key is not None:
            trust = Trust.PINNED if pin is not None else Trust(facts.trust)
            proved = Welcomed(relay_key, trust, facts.decoded_welcome())
        leg = self.make(one.sock, key, resumed=resumed_of(one, state), proved=proved)
        leg.connected_at = trio.current_time() - (time.monotonic() - facts.connected_at)
        leg.settled.set()
        return leg

    def make(
        self,
        sock: socket.socket | TlsSocket,
        key: PrivateKey,
        *,
        resumed: Resumed | None = None,
        proved: Welcomed | None = None,
    ) -> RelayLeg:
        """Register with `key` on `sock`; or, `resumed`, go on where another process left off, to which the
        relay has `proved` itself."""
        now = trio.current_time()
        settings, relay = self._settings, self._relay
        handshake = AgentHandshake(
            key,
            agent_nonce=os.urandom(AGENT_NONCE_BYTES),
            nonce=os.urandom(BOX_NONCE_BYTES),
            now=now,
            home_key=self._home_key,
            token=relay.token.encode(),
            pin=relay.key,
            remembered=self._known.key_of(relay.known_as),
            insecure=settings.insecure,
        )
        own_key = key.public()
        state = LinkState(
            own_key,
            os.urandom(NONCE_BYTES),
            now,
            keepalive_s=settings.keepalive_s,
            probe_s=settings.probe_s,
        )
        session = RelaySession(handshake, state, now)
        if resumed is not None:
            session.resume(proved, now)
        return RelayLeg(
            self._poller,
            sock,
            session,
            own_key=own_key,
            outbox=self.outbox(),
            buffer=self._buffer,
            on_runs=self._on_runs,
            on_message=self._on_message,
            tell=self._tell,
            handover=self._handover,
            resumed=resumed,
        )
