"""A connection from accept() until it is registered under a key, and its last words when it ends.

    accept -> read the first frame (bounded in time, bytes and number) -> claim its key -> data plane

A key that another connection holds is contested: the older one is asked with RelayProbe, and gives way
only when it stays silent, so that nobody's live session falls to a newcomer that proves nothing, and a
half-open predecessor doesn't keep its agent out for long.
"""

from __future__ import annotations

import errno
import secrets
import socket
from collections import Counter
from dataclasses import dataclass

import trio

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.keys import PublicKey
from relayd.observe import log
from relayd.relay.dataplane import BROKEN, Connection, DataPlane
from relayd.relay.switch import Claim
from relayd.wire.frames import (
    HEADER,
    HEADER_BYTES,
    KEYED_BYTES,
    REGISTER,
    RELAY_PROBE_TOKEN_BYTES,
    decode_register_untrusted,
    encode_error,
    encode_relay_probe,
)

PROBE_S = 1.5
"""How long the holder of a contested key may take to answer."""

FAREWELL_S = 1.0
"""How long a refused connection is drained after its Error frame: closing with bytes unread would send
a reset, and a reset overtakes the Error."""

DRAIN_BYTES = 64 << 10

FAREWELLS = 256
"""Most refused connections that are being drained at a time; the next are closed at once."""

ACCEPT_RETRY_FIRST_S, ACCEPT_RETRY_CAP_S = 0.005, 1.0
"""Waits after accept() failed for want of descriptors or memory."""

ACCEPTS_AT_ONCE = 32
"""Connections taken in before other tasks have their turn."""

SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

REPLACED = "replaced by a newer connection"


class KeyInUseError(Exception):
    """A Register for a key whose holder answers."""

    def __init__(self, holder: Connection) -> None:
        super().__init__(f"key {holder.key.short()} is registered by another connection, which is alive")


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What may wait at the door."""

    register_timeout_s: float
    max_unregistered: int
    max_unregistered_per_address: int


class Doorway:
    """Takes connections in, for all listeners of one relay."""

    def __init__(self, plane: DataPlane, limits: DoorLimits, nursery: trio.Nursery) -> None:
        self._plane = plane
        self._limits = limits
        self._nursery = nursery
        self._waiting: dict[trio.CancelScope, str] = {}
        """Unregistered connections, oldest first, and their addresses."""
        self._per_address: Counter[str] = Counter()
        self._farewells = 0
        self._answers: dict[Connection, trio.Event] = {}
        """Holders of contested keys that are being asked, and who waits for their answer."""
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        """Connections that never got in, by reason."""

    @property
    def unregistered(self) -> int:
        """Connections that haven't said who they are yet."""
        return len(self._waiting)

    async def serve(self, listener: socket.socket) -> None:
        """Accept for ever. `listener` listens, is non-blocking, and stays the caller's."""
        wait_s = ACCEPT_RETRY_FIRST_S
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                for _ in range(ACCEPTS_AT_ONCE):
                    sock, address = listener.accept()
                    wait_s = ACCEPT_RETRY_FIRST_S
                    sock.setblocking(False)
                    self.accepted += 1
                    endpoint = Endpoint.of_socket(address)
                    scope = trio.CancelScope(deadline=trio.current_time() + self._limits.register_timeout_s)
                    self._wait(scope, str(endpoint.address))
                    self._nursery.start_soon(self._enter, sock, endpoint, scope, name=f"doorway {endpoint}")
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in SCARCE:
                    raise
                log.get().warning("relay.accept_failed", reason=error.strerror, retry_s=wait_s)
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 2, ACCEPT_RETRY_CAP_S)

    async def _enter(self, sock: socket.socket, endpoint: Endpoint, scope: trio.CancelScope) -> None:
        """One connection until it is the data plane's, or gone."""
        ours = True
        try:
            with scope:
                try:
                    key = await self._read_register(sock)
                    if key is None:
                        return  # a health probe: neither an error nor worth a line
                    connection = self._plane.adopt(sock, key, endpoint)
                    await self._claim(connection)
                finally:
                    self._wait_no_more(scope)
                ours = False
                self._plane.start(connection)
                log.get().info("agent.registered", key=connection.key.short(), endpoint=str(endpoint))
            if scope.cancelled_caught and trio.current_time() >= scope.deadline:
                self.refused["never registered"] += 1
        except KeyInUseError as error:
            self.refused["key in use"] += 1
            log.get().warning("agent.refused", endpoint=str(endpoint), reason=str(error))
            ours = False
            await self._farewell(sock, str(error))
        except RemoteProtocolError as error:
            self.refused["protocol error"] += 1
            log.get().info("agent.refused", endpoint=str(endpoint), reason=str(error))
            ours = False
            await self._farewell(sock, str(error))
        except OSError as error:
            self.refused["connection error"] += 1
            log.get().debug("agent.refused", endpoint=str(endpoint), reason=error.strerror)
        finally:
            if ours:
                sock.close()

    def _wait(self, scope: trio.CancelScope, address: str) -> None:
        """Count one more at the door; where that is one too many, the oldest goes."""
        self._waiting[scope] = address
        self._per_address[address] += 1
        victim = None
        if self._per_address[address] > self._limits.max_unregistered_per_address:
            victim = next(other for other, where in self._waiting.items() if where == address)
        elif len(self._waiting) > self._limits.max_unregistered:
            victim = next(iter(self._waiting))
        if victim is not None:
            self._wait_no_more(victim)
            victim.cancel()
            self.refused["too many at the door"] += 1

    def _wait_no_more(self, scope: trio.CancelScope) -> None:
        address = self._waiting.pop(scope, None)
        if address is not None:
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    async def _read_register(self, sock: socket.socket) -> PublicKey | None:
        """The key of the Register, and not a byte more. None when it was closed before any byte."""
        data = b""
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                part = sock.recv(KEYED_BYTES - len(data))
            except BlockingIOError:
                continue
            if not part:
                if data:
                    raise RemoteProtocolError("closed in the middle of its first frame")
                return None
            data += part
            if len(data) >= HEADER_BYTES:
                length, kind = HEADER.unpack_from(data)
                if kind != REGISTER or length != KEYED_BYTES - HEADER_BYTES + 1:
                    raise RemoteProtocolError(
                        f"the first frame must be Register with a key, not type {kind:#x} of length {length}"
                    )
                if len(data) == KEYED_BYTES:
                    return decode_register_untrusted(data[HEADER_BYTES:])

    async def _claim(self, connection: Connection) -> None:
        """Register it. Where its key is taken, it gets it if the holder goes or stays silent.

        Raises KeyInUseError when the holder is alive.
        """
        switch = self._plane.switch
        while switch.claim(connection) is Claim.CONTESTED:
            holder = switch.holder(connection.key)
            assert holder is not None
            heard_before = holder.bytes_in
            answered = self._ask(holder)
            with trio.move_on_after(PROBE_S):
                await answered.wait()
            if holder not in self._plane.connections:
                continue
            if holder.bytes_in != heard_before:
                raise KeyInUseError(holder)
            log.get().info(
                "agent.displaced",
                key=holder.key.short(),
                endpoint=str(holder.endpoint),
                by=str(connection.endpoint),
                silent_s=PROBE_S,
            )
            self._plane.close(holder, REPLACED)

    def _ask(self, holder: Connection) -> trio.Event:
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
        if token == connection.probe_token:
            self._wake(connection)

    def _wake(self, connection: Connection) -> None:
        event = self._answers.pop(connection, None)
        if event is not None:
            event.set()

    def on_closed(self, connection: Connection, reason: str) -> None:
        """The data plane has let go of a connection: tell it why if that helps, then close it."""
        self._wake(connection)
        log.get().info(
            "agent.left",
            key=connection.key.short(),
            endpoint=str(connection.endpoint),
            reason=reason,
            frames_in=connection.frames_in,
            frames_out=connection.frames_out,
        )
        told = reason == REPLACED or reason.startswith(BROKEN)
        if told and self._farewells < FAREWELLS:
            self._nursery.start_soon(self._farewell, connection.sock, reason, name="farewell")
        else:
            connection.sock.close()

    async def _farewell(self, sock: socket.socket, text: str) -> None:
        """Say why with an Error frame, let it arrive, close."""
        self._farewells += 1
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
            self._farewells -= 1
            sock.close()
