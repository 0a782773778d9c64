"""A connection from accept() until it is admitted, and its last words when it ends.

    accept -> waiting room -> handshake (wire.relay_handshake decides) -> claims -> data plane

Reading stops where the handshake ends: what an agent sends behind its Proof stays in the socket.
"""

from __future__ import annotations

import errno
import math
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from relayd.endpoints import Endpoint
from relayd.observe import log
from relayd.relay.admission import Verdict
from relayd.relay.claims import PROBE_S, Claims
from relayd.relay.connection import Connection
from relayd.relay.guard import Greeter
from relayd.relay.waiting_room import WaitingRoom, place_of
from relayd.wire.frames import HEADER_BYTES, LENGTH_BYTES, encode_error
from relayd.wire.identity import (
    MAX_INPUT_BYTES,
    Admitted,
    Refusal,
    Refused,
    Registered,
    RelayOutcome,
)
from relayd.wire.identity_frames import PROOF
from relayd.wire.relay_handshake import NotAdmittedError, State

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

PART_OF_HEADER_S = 0.05
"""Between two looks at a header that is there in part: its socket stays readable meanwhile."""

KEY_IN_USE = "key in use"
"""Among the reasons for a refusal: its holder answers."""


class _Arrival:
    """One connection that is not admitted yet."""

    __slots__ = ("endpoint", "excuse", "handshake", "ours", "scope", "sock")

    def __init__(self, sock: socket.socket, endpoint: Endpoint, greeter: Greeter) -> None:
        now = trio.current_time()
        self.sock = sock
        self.endpoint = endpoint
        self.handshake = greeter.handshake(endpoint, now)
        self.scope = trio.CancelScope(deadline=now + greeter.timeout_s)
        self.ours = True
        """Whether the socket is still the doorway's to close."""
        self.excuse = ""
        """Why it waits, where that says more than the handshake can."""

    async def outcome(self) -> RelayOutcome | None:
        """Read until the handshake has one; None: closed, or broken. Sends what the handshake says meanwhile.

        To be cancelled only where it waits: nothing that was read is lost."""
        while True:
            try:
                data = self.sock.recv(min(self.handshake.wants, MAX_INPUT_BYTES))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
                continue
            except OSError:
                return None
            if not data:
                return None
            step = self.handshake.receive(data, trio.current_time())
            if step.send and not self._say(step.send):
                return None
            if step.outcome is not None:
                return step.outcome

    async def proof(self) -> None:
        """Wait until a Proof is what comes next; for ever when it is another frame, which stays unread."""
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            try:
                head = self.sock.recv(HEADER_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                return  # as the next read finds
            if not head or head[LENGTH_BYTES:] == bytes([PROOF]):
                return
            if len(head) == HEADER_BYTES:
                await trio.sleep_forever()
            await trio.sleep(PART_OF_HEADER_S)

    def _say(self, data: bytes) -> bool:
        """Whether it went out whole: a fresh socket takes some hundred bytes, always, unless it is broken."""
        try:
            return self.sock.send(data) == len(data)
        except OSError:
            return False


class Doorway:
    """Takes connections in, for all listeners of one relay."""

    def __init__(
        self,
        claims: Claims,
        greeter: Greeter,
        nursery: trio.Nursery,
        *,
        max_unregistered: int,
        max_unregistered_per_address: int,
    ) -> None:
        self._claims = claims
        self._greeter = greeter
        self._nursery = nursery
        self._room: WaitingRoom[_Arrival] = WaitingRoom(
            seats=max_unregistered, seats_per_place=max_unregistered_per_address
        )
        self._open: set[trio.CancelScope] = set()
        """One for each listener in use."""
        self._all_shut = trio.Event()
        self._farewells = 0
        self.accepted = 0
        self.admitted: Counter[str] = Counter()
        """Connections that got in, by what let them in (`Gate.admit`)."""
        self.refused: Counter[str] = Counter()
        """Connections that never got in, by reason."""

    @property
    def unregistered(self) -> int:
        """Connections that aren't admitted yet."""
        return len(self._room)

    async def serve(self, listener: socket.socket) -> None:
        """Accept until `shut`, then wait for ever. `listener` listens, is non-blocking, and stays the
        caller's."""
        with trio.CancelScope() as scope:
            self._open.add(scope)
            try:
                await self._accept(listener)
            finally:
                self._open.discard(scope)
                if not self._open:
                    self._all_shut.set()
        await trio.sleep_forever()

    async def shut(self) -> None:
        """Take no more connections in. Comes back when no listener is in use any more."""
        for scope in self._open:
            scope.cancel()
        if self._open:
            await self._all_shut.wait()

    async def _accept(self, listener: socket.socket) -> None:
        wait_s = ACCEPT_RETRY_FIRST_S
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                for _ in range(ACCEPTS_AT_ONCE):
                    sock, address = listener.accept()
                    wait_s = ACCEPT_RETRY_FIRST_S
                    sock.setblocking(False)
                    self._arrive(sock, Endpoint.of_socket(address))
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in SCARCE:
                    raise
                log.get().warning("relay.accept_failed", reason=error.strerror, retry_s=wait_s)
                await trio.sleep(wait_s)
                wait_s = min(wait_s * 2, ACCEPT_RETRY_CAP_S)

    def _arrive(self, sock: socket.socket, endpoint: Endpoint) -> None:
        self.accepted += 1
        arrival = _Arrival(sock, endpoint, self._greeter)
        victim = self._room.enter(arrival, place_of(endpoint.address))
        if victim is not None:
            self.refused["too many at the door"] += 1
            victim.scope.cancel()
        self._nursery.start_soon(self._enter, arrival, name=f"doorway {endpoint}")

    async def _enter(self, arrival: _Arrival) -> None:
        """One connection until it is the data plane's, or gone."""
        try:
            with arrival.scope:
                try:
                    await self._let_in(arrival, await arrival.outcome())
                finally:
                    self._room.leave(arrival)
            if arrival.scope.cancelled_caught and trio.current_time() >= arrival.scope.deadline:
                self._time_is_up(arrival)
        finally:
            if arrival.ours:
                arrival.sock.close()

    async def _let_in(self, arrival: _Arrival, outcome: RelayOutcome | None) -> None:
        match outcome:
            case Admitted():
                self._claim(arrival, admission=outcome.admission, home=outcome.home_key.short())
            case Registered():
                await self._enter_bare(arrival)
            case Refused():
                self._refuse(arrival, outcome)
            case None if arrival.handshake.state is not State.REGISTER:
                # Else it is a health probe, or as good as one: neither an error nor worth a line.
                self.refused["left early"] += 1

    def _claim(self, arrival: _Arrival, *, admission: str, home: str) -> None:
        """It is admitted: the data plane's from now on."""
        handshake = arrival.handshake
        assert handshake.key is not None
        proved = handshake.state is State.ADMITTED
        try:
            self._claims.take(
                arrival.sock, handshake.key, arrival.endpoint, handshake=None if proved else handshake
            )
        except OSError as error:
            self.refused["connection error"] += 1
            log.get().debug("agent.refused", endpoint=str(arrival.endpoint), reason=error.strerror)
            return
        arrival.ours = False
        self.admitted[admission] += 1
        log.get().info(
            "agent.registered",
            key=handshake.key.short(),
            endpoint=str(arrival.endpoint),
            admission=admission,
            **({"home": home} if home not in ("", handshake.key.short()) else {}),
        )

    async def _enter_bare(self, arrival: _Arrival) -> None:
        """Policy `optional`: a Register whose key is to be had for nothing, or for a Proof in time."""
        handshake = arrival.handshake
        assert handshake.key is not None
        try:
            admission = self._greeter.guard.gate.admit_bare(handshake.key)
        except NotAdmittedError as error:
            self._refuse(arrival, Refused(Refusal.NOT_ADMITTED, str(error)))
            return
        while True:
            outcome: RelayOutcome | None
            match self._claims.verdict(handshake.key):
                case Verdict.GRANT:
                    handshake.let_in()
                    self._claim(arrival, admission=admission, home="")
                    return
                case Verdict.ASK:
                    free, outcome = await self._contest(arrival)
                    if free:
                        continue
                case _:
                    outcome = await arrival.outcome()
            await self._let_in(arrival, outcome)
            return

    async def _contest(self, arrival: _Arrival) -> tuple[bool, RelayOutcome | None]:
        """Its key is held by one that hasn't proved it either. -> (whether the key is free, or the outcome)

        A Proof ends it at any time; it may be on its way while the holder answers.
        """
        claims, key = self._claims, arrival.handshake.key
        assert key is not None
        holder = claims.holder(key)
        if holder is None:
            return True, None
        heard_before = holder.bytes_in
        # What it sends unproved is dropped, once it is read; but it may be let in in a moment.
        ended, outcome = await self._meanwhile(arrival, claims.ask(holder), PROBE_S, first=arrival.proof)
        if ended:
            return False, outcome
        if claims.holder(key) is not holder:
            return True, None
        if holder.bytes_in == heard_before:
            claims.give_way(holder, arrival.endpoint)
            return True, None
        arrival.excuse = f"key {key.short()} is registered by another connection, which is alive"
        ended, outcome = await self._meanwhile(arrival, claims.departure(holder), math.inf)
        return not ended, outcome

    async def _meanwhile(
        self,
        arrival: _Arrival,
        event: trio.Event,
        seconds: float,
        *,
        first: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> tuple[bool, RelayOutcome | None]:
        """Read, after `first`, until `event` or for `seconds`. -> (whether the handshake ended, and how)"""
        ended, outcome = False, None
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                nonlocal ended, outcome
                await first()
                outcome = await arrival.outcome()
                ended = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            with trio.move_on_after(seconds):
                await event.wait()
            nursery.cancel_scope.cancel()
        return ended, outcome

    # Refusals ---------------------------------------------------------------------------------------------

    def _time_is_up(self, arrival: _Arrival) -> None:
        if arrival.excuse:
            self.refused[KEY_IN_USE] += 1
            self._say_refused(arrival, arrival.excuse)
            return
        if arrival.handshake.state is State.REGISTER:
            self.refused["never registered"] += 1  # it has said nothing: nothing is said to it
            return
        refused = arrival.handshake.due(math.inf).outcome
        assert isinstance(refused, Refused)
        self._refuse(arrival, refused)

    def _refuse(self, arrival: _Arrival, refused: Refused) -> None:
        self.refused[refused.refusal.value] += 1
        self._say_refused(arrival, refused.reason)

    def _say_refused(self, arrival: _Arrival, reason: str) -> None:
        key = arrival.handshake.key
        log.get().info(
            "agent.refused",
            endpoint=str(arrival.endpoint),
            reason=reason,
            **({"key": key.short()} if key is not None else {}),
        )
        arrival.ours = False
        self._see_off(arrival.sock, reason)

    # Last words -------------------------------------------------------------------------------------------

    def on_closed(self, connection: Connection, reason: str, say: str) -> None:
        """The data plane has let go of a connection: tell it why if that helps, then close it."""
        log.get().info(
            "agent.left",
            key=connection.key.short(),
            endpoint=str(connection.endpoint),
            reason=reason,
            frames_in=connection.frames_in,
            frames_out=connection.frames_out,
        )
        self._see_off(connection.sock, say)

    def _see_off(self, sock: socket.socket, text: str) -> None:
        if text and self._farewells < FAREWELLS:
            self._farewells += 1
            self._nursery.start_soon(self._farewell, sock, text, name="farewell")
        else:
            sock.close()

    async def _farewell(self, sock: socket.socket, text: str) -> None:
        """Say why with an Error frame, let it arrive, close."""
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
