"""Who holds which key: newcomers and holders brought together as `admission.claim` decides.

proved     -> takes the key at once; a proved holder is told, and read to its end
unproved   -> ask: RelayProbe to the holder; silent for PROBE_S: it gives way
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time

import trio

from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.observe import log
from relayd.relay.admission import Displacements, ProvedKeys, Verdict, claim
from relayd.relay.connection import Connection
from relayd.relay.dataplane import DataPlane
from relayd.wire.frames import RELAY_PROBE_TOKEN_BYTES, encode_error, encode_relay_probe
from relayd.wire.identity import REPLACED
from relayd.wire.identity_frames import encode_health
from relayd.wire.relay_handshake import RelayHandshake

PROBE_S = 1.5
"""How long the holder of a contested key may take to answer."""

LEAVING_S = 5.0
"""For so long a displaced connection that had proved its key is still read: what its agent sent before it
moved is on its way."""

TWO_AGENTS = "two agents use this key: each replaces the other's connection, and neither gets all its traffic"


class Claims:
    """Decides nothing; does what `admission` says, and remembers what that needs to know."""

    def __init__(self, plane: DataPlane, nursery: trio.Nursery) -> None:
        self._plane = plane
        self._nursery = nursery
        self._proved = ProvedKeys()
        self._displacements = Displacements()
        self._answers: dict[Connection, trio.Event] = {}
        """Holders that are being asked, and who waits for their answer."""
        self._departures: dict[Connection, trio.Event] = {}

    def holder(self, key: PublicKey) -> Connection | None:
        """Who is served under `key`, if anybody."""
        return self._plane.switch.holder(key)

    def verdict(self, key: PublicKey) -> Verdict:
        """What becomes of a bare Register for `key`."""
        holder = self.holder(key)
        return claim(
            proved=False,
            holder_proved=holder.proved if holder is not None else None,
            proved_before=key in self._proved,
        )

    def take(
        self, sock: socket.socket, key: PublicKey, endpoint: Endpoint, *, handshake: RelayHandshake | None
    ) -> Connection:
        """Serve `sock` under `key`. With a `handshake` it is unproved, and nobody may hold the key; without,
        it displaces whoever does. Raises OSError when the socket is broken already."""
        holder = self.holder(key)
        connection = self._plane.adopt(sock, key, endpoint, handshake=handshake)
        if handshake is None:
            self._proved.add(key)
        if holder is not None:
            self._displace(holder, connection)
        return connection

    def proved(self, connection: Connection) -> None:
        """A connection that is served already has proved its key."""
        self._plane.proved(connection)
        self._proved.add(connection.key)

    def proved_before(self, key: PublicKey) -> None:
        """A key was proved to the process before this one."""
        self._proved.add(key)

    def give_way(self, holder: Connection, by: Endpoint) -> None:
        """An unproved holder stayed silent when it was asked."""
        self._say_displaced(holder, by, silent_s=PROBE_S)
        self._plane.close(holder, REPLACED, say=REPLACED)

    def _displace(self, holder: Connection, newcomer: Connection) -> None:
        """The switch has `newcomer` in its place by now."""
        plane = self._plane
        silent_s = time.monotonic() - holder.heard_at
        flapping = self._displacements.record(holder.key, trio.current_time(), silent_s=silent_s)
        self._say_displaced(holder, newcomer.endpoint, two_agents=flapping)
        if flapping:
            plane.send_frame(newcomer, encode_health(TWO_AGENTS))
            newcomer.told_ill_at = time.monotonic()
        if not holder.proved:
            # Whoever it was: what it has sent and nobody has read is not from this key's holder.
            plane.close(holder, REPLACED, say=REPLACED)
            return
        plane.hand_over(holder, newcomer)
        if flapping:
            plane.send_frame(holder, encode_health(TWO_AGENTS))
        plane.send_frame(holder, encode_error(REPLACED))
        plane.leave(holder)
        plane.flush_now()
        self._nursery.start_soon(self._see_off, holder, name=f"see off {holder.endpoint}")

    async def _see_off(self, holder: Connection) -> None:
        """Read a displaced connection to its end, which its agent brings about when it has moved."""
        if holder not in self._plane.connections:
            return
        if not holder.outbox:
            with contextlib.suppress(OSError):  # it is gone already, as the next read finds
                holder.sock.shutdown(socket.SHUT_WR)
        with trio.move_on_after(LEAVING_S):
            await self.departure(holder).wait()
        self._plane.close(holder, REPLACED)

    def _say_displaced(self, holder: Connection, by: Endpoint, **more: object) -> None:
        say = log.get().warning if more.get("two_agents") else log.get().info
        say(
            "agent.displaced",
            key=holder.key.short(),
            endpoint=str(holder.endpoint),
            by=str(by),
            **{name: value for name, value in more.items() if value},
        )

    # Asking -----------------------------------------------------------------------------------------------

    def ask(self, holder: Connection) -> trio.Event:
        """Send it a RelayProbe, once however many want its key. The event: it answered, or went."""
        event = self._answers.get(holder)
        if event is None:
            event = self._answers[holder] = trio.Event()
            holder.probe_token = secrets.token_bytes(RELAY_PROBE_TOKEN_BYTES)
            self._plane.send_frame(holder, encode_relay_probe(holder.probe_token))
            self._plane.flush_now()
        return event

    def on_probe_answer(self, connection: Connection, token: bytes) -> None:
        """A RelayProbe came back."""
        if token == connection.probe_token and (event := self._answers.pop(connection, None)) is not None:
            event.set()

    def departure(self, connection: Connection) -> trio.Event:
        """Set when the data plane lets go of a connection that it has now."""
        return self._departures.setdefault(connection, trio.Event())

    def on_closed(self, connection: Connection) -> None:
        """The data plane has let go of a connection."""
        for waiting in (self._answers, self._departures):
            if (event := waiting.pop(connection, None)) is not None:
                event.set()

    def forget(self) -> None:
        """Drop what is too long ago to matter. To be called now and then."""
        self._displacements.forget(trio.current_time())
