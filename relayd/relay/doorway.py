"""A connection from accept() until it is admitted, and when it ends.

    accept -> waiting room -> handshake (wire.relay_handshake decides) -> claims -> data plane

Reading stops where the handshake ends: what an agent sends behind its Proof stays in the socket.
"""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from relayd.endpoints import Endpoint
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.relay.admission import Verdict
from relayd.relay.arrival import Arrival, Newcomer
from relayd.relay.claims import Claims
from relayd.relay.connection import Connection
from relayd.relay.contest import contest
from relayd.relay.descriptors import SCARCE, Spare
from relayd.relay.door_limits import FULL, Counting, DoorLimits
from relayd.relay.farewells import Farewells
from relayd.relay.guard import Greeter
from relayd.relay.refusals import KEY_IN_USE, NEVER_REGISTERED, NO_DESCRIPTORS, Refusals
from relayd.relay.tls_door import CLIENT_HELLO, TOO_MANY, TlsDoor
from relayd.relay.waiting_room import WaitingRoom, place_of
from relayd.wire.identity import TLS_ONLY, Admitted, Refusal, Refused, Registered, RelayOutcome
from relayd.wire.relay_handshake import NotAdmittedError, State

SHED_S = 0.05
"""Between two newcomers that are turned away for want of descriptors: one that is evicted for them has gone
by then."""

SWEEP_S = 0.25
"""Between two looks for those who say nothing: they have ten seconds, and may have a quarter more."""

ACCEPTS_AT_ONCE = 32
"""Connections taken in before other tasks have their turn."""


class Doorway:
    """Takes connections in, for all listeners of one relay."""

    def __init__(
        self,
        claims: Claims,
        greeter: Greeter,
        poller: Poller,
        nursery: trio.Nursery,
        limits: DoorLimits,
        tls: TlsDoor,
    ) -> None:
        self._claims = claims
        self._greeter = greeter
        self._poller = poller
        self._nursery = nursery
        self._room: WaitingRoom[Newcomer] = WaitingRoom(
            seats=limits.max_unregistered, seats_per_place=limits.max_unregistered_per_address
        )
        self._tls = tls
        self._counting = Counting(limits, trio.current_time())
        self._spare = Spare()
        self._open: set[trio.CancelScope] = set()
        """One for each listener in use."""
        self._all_shut = trio.Event()
        self._farewells = Farewells(nursery)
        self._refusals = Refusals(self._farewells, trio.current_time())
        self.accepted = 0
        self.admitted: Counter[str] = Counter()
        """Connections that got in, by what let them in (`Gate.admit`)."""
        self.refused = self._refusals.counts
        """Connections that never got in, by reason."""

    def change(self, greeter: Greeter, limits: DoorLimits) -> None:
        """Greet newcomers like this from now on, and so many of them. Nobody who is in goes for it."""
        self._greeter = greeter
        self._room.resize(seats=limits.max_unregistered, seats_per_place=limits.max_unregistered_per_address)
        self._counting.change(limits, trio.current_time())

    def resumed(self, connection: Connection) -> None:
        """A connection of an earlier process is served on."""
        self._counting.came(place_of(connection.endpoint.address))

    @property
    def unregistered(self) -> int:
        """Connections that aren't admitted yet."""
        return len(self._room)

    async def serve(self, listener: socket.socket) -> None:
        """Accept until `shut`, then wait for ever. `listener` listens, is non-blocking, known to the poller
        (`yield_when_readable`), and stays the caller's."""
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
        while True:
            self._poller.expect(listener.fileno())
            await trio.lowlevel.wait_readable(listener)
            wait_s = 0.0
            try:
                for _ in range(ACCEPTS_AT_ONCE):
                    sock, address = listener.accept()
                    self._spare.enough()
                    sock.setblocking(False)
                    self._arrive(sock, Endpoint.of_socket(address))
                    wait_s = self._counting.wait_s(trio.current_time())
                    if wait_s:
                        break
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in SCARCE:
                    raise
                self._shed(listener, error)
                wait_s = SHED_S
            if wait_s:
                await trio.sleep(wait_s)

    def _shed(self, listener: socket.socket, error: OSError) -> None:
        """There are no descriptors left: turn the newcomer away, and make room for the next one."""
        self._spare.short(error)
        self._evict(self._room.oldest(), NO_DESCRIPTORS)
        if self._spare.turn_away(listener):
            self.accepted += 1
            self.refused[NO_DESCRIPTORS] += 1

    def _arrive(self, sock: socket.socket, endpoint: Endpoint) -> None:
        self.accepted += 1
        place = place_of(endpoint.address)
        refusal = self._counting.refusal(place, trio.current_time())
        if refusal == FULL and (oldest := self._room.oldest()) is not None:
            self._evict(oldest, FULL)
            refusal = ""
        if refusal:
            self.refused[refusal] += 1
            sock.close()
            return
        self._counting.came(place)
        newcomer = Newcomer(sock, endpoint, place, trio.current_time())
        self._evict(self._room.enter(newcomer, place), "too many at the door")
        self._poller.add(sock.fileno(), partial(self._speaks, newcomer))

    def _speaks(self, newcomer: Newcomer, _mask: int) -> None:
        """The poller's handler: there is something to read. As a rule all of a handshake happens here,
        without a task: two reads, two writes, and the data plane has the connection."""
        arrival = newcomer.arrival
        if arrival is None:
            arrival = newcomer.arrival = Arrival(newcomer, self._greeter)
            # Of one that has left without a word, a health probe, there is no first byte.
            first = arrival.first_byte() if self._tls.is_open else None
            if first == CLIENT_HELLO:
                self._poller.remove(newcomer.sock.fileno())
                self._evict(self._tls.enter(newcomer, partial(self._begin_tls, newcomer, arrival)), TOO_MANY)
                return
            if first is not None and self._tls.only:
                self._leave_poller(newcomer)
                self._refuse(arrival, Refused(Refusal.PROTOCOL, TLS_ONLY))
                self._end(newcomer, arrival)
                return
        try:
            outcome = arrival.read()
        except BlockingIOError:
            return
        if isinstance(outcome, Registered) and self._claims.verdict(outcome.key) is not Verdict.GRANT:
            # Its key may be another's: that takes time to find out.
            self._hand_to_task(newcomer, self._enter_bare, arrival)
            return
        self._leave_poller(newcomer)
        self._settle(arrival, outcome)
        self._end(newcomer, arrival)

    def _leave_poller(self, newcomer: Newcomer) -> None:
        self._poller.discard(newcomer.sock.fileno())  # who waits for a turn at TLS isn't there
        self._room.leave(newcomer)
        self._tls.leave(newcomer)

    def _hand_to_task(
        self, newcomer: Newcomer, job: Callable[[Arrival], Awaitable[None]], arrival: Arrival
    ) -> None:
        """What takes more than a few reads is a task's."""
        self._poller.discard(newcomer.sock.fileno())
        newcomer.has_task = True
        self._nursery.start_soon(self._enter, newcomer, job, arrival, name=f"doorway {newcomer.endpoint}")
        self._poller.yield_soon()

    def _evict(self, victim: Newcomer | None, reason: str) -> None:
        """It goes, to make room. Once is enough."""
        if victim is None:
            return
        if victim.has_task:
            assert victim.arrival is not None
            self._room.leave(victim)
            if victim.arrival.scope.cancel_called:
                return
            victim.arrival.scope.cancel()
        else:
            self._leave_poller(victim)
            victim.sock.close()
            self._counting.went(victim.place)
        self.refused[reason] += 1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Turn out those whose time is up, for ever."""
        task_status.started()
        while True:
            await trio.sleep(min(SWEEP_S, self._greeter.timeout_s))
            too_long_ago = trio.current_time() - self._greeter.timeout_s
            # Those that have a task have a deadline of their own, and leave the room by it.
            while (oldest := self._room.oldest()) is not None and oldest.accepted_at <= too_long_ago:
                if oldest.has_task:
                    break
                if oldest.arrival is None:
                    self._evict(oldest, NEVER_REGISTERED)
                else:
                    self._leave_poller(oldest)
                    self._time_is_up(oldest.arrival)
                    self._end(oldest, oldest.arrival)

    async def _enter(
        self, newcomer: Newcomer, job: Callable[[Arrival], Awaitable[None]], arrival: Arrival
    ) -> None:
        """One connection until it is the data plane's, or gone."""
        try:
            with arrival.scope:
                try:
                    await job(arrival)
                finally:
                    self._room.leave(newcomer)
                    self._tls.leave(newcomer)
            if arrival.scope.cancelled_caught and trio.current_time() >= arrival.scope.deadline:
                self._time_is_up(arrival)
        finally:
            self._end(newcomer, arrival)

    def _end(self, newcomer: Newcomer, arrival: Arrival) -> None:
        """It isn't the doorway's any more: close what nobody else has taken."""
        if arrival.ours:
            arrival.sock.close()
            if arrival.bridge is not None:
                arrival.bridge.scope.cancel()
        if not arrival.served:
            self._counting.went(newcomer.place)

    def _begin_tls(self, newcomer: Newcomer, arrival: Arrival) -> None:
        self._evict(self._tls.began(newcomer), TOO_MANY)
        self._hand_to_task(newcomer, self._enter_tls, arrival)

    async def _enter_tls(self, arrival: Arrival) -> None:
        """TLS's own handshake first."""
        sock = arrival.sock
        try:
            done = await self._tls.shake_hands(arrival)
        except OSError as error:
            self._spare.short(error)
            self.refused[NO_DESCRIPTORS] += 1
            return
        if done:
            outcome = await arrival.outcome()
            if isinstance(outcome, Registered):
                await self._enter_bare(arrival)
            else:
                self._settle(arrival, outcome)
        else:
            self.refused["TLS failed"] += 1
            sock.close()

    def _settle(self, arrival: Arrival, outcome: RelayOutcome | None) -> None:
        """The handshake is over, or as good as: a bare Register, and its key is free."""
        match outcome:
            case Registered():
                self._grant_bare(arrival, self._admit_bare(arrival))
            case Admitted():
                self._claim(arrival, admission=outcome.admission, home=outcome.home_key.short())
            case Refused():
                self._refuse(arrival, outcome)
            case None if arrival.handshake.state is not State.REGISTER:
                # Else it is a health probe, or as good as one: neither an error nor worth a line.
                self.refused["left early"] += 1

    def _claim(self, arrival: Arrival, *, admission: str, home: str) -> None:
        """It is admitted: the data plane's from now on."""
        handshake = arrival.handshake
        assert handshake.key is not None
        proved = handshake.state is State.ADMITTED
        # While it waited for its key the list has changed, maybe: which may be why the key is to be had.
        if reason := self._greeter.still_admits(handshake.key, proved=proved):
            self._refuse(arrival, Refused(Refusal.NOT_ADMITTED, reason))
            return
        try:
            connection = self._claims.take(
                arrival.sock, handshake.key, arrival.endpoint, handshake=None if proved else handshake
            )
        except OSError as error:
            self.refused["connection error"] += 1
            log.get().debug("agent.refused", endpoint=str(arrival.endpoint), reason=error.strerror)
            return
        connection.bridge = arrival.bridge
        arrival.ours = False
        arrival.served = True
        self.admitted[admission] += 1
        log.get().info(
            "agent.registered",
            key=handshake.key.short(),
            endpoint=str(arrival.endpoint),
            admission=admission,
            **({"home": home} if home not in ("", handshake.key.short()) else {}),
        )

    async def _enter_bare(self, arrival: Arrival) -> None:
        """Policy `optional`: a Register whose key is to be had for nothing, or for a Proof in time."""
        admission, key = self._admit_bare(arrival), arrival.handshake.key
        while admission and key is not None:
            outcome: RelayOutcome | None
            match self._claims.verdict(key):
                case Verdict.GRANT:
                    self._grant_bare(arrival, admission)
                    return
                case Verdict.ASK:
                    free, outcome = await contest(self._claims, arrival)
                    if free:
                        continue
                case _:
                    outcome = await arrival.outcome()
            self._settle(arrival, outcome)
            return

    def _admit_bare(self, arrival: Arrival) -> str:
        """What lets it in without a proof; "": nothing, as it has been told."""
        assert arrival.handshake.key is not None
        try:
            return self._greeter.guard.gate.admit_bare(arrival.handshake.key)
        except NotAdmittedError as error:
            self._refuse(arrival, Refused(Refusal.NOT_ADMITTED, str(error)))
            return ""

    def _grant_bare(self, arrival: Arrival, admission: str) -> None:
        if admission:
            arrival.handshake.let_in()
            self._claim(arrival, admission=admission, home="")

    def close(self) -> None:
        """Give back what it keeps for bad times."""
        self._spare.close()
        for newcomer in self._room:
            if not newcomer.has_task:
                newcomer.sock.close()

    # Refusals ---------------------------------------------------------------------------------------------

    def _time_is_up(self, arrival: Arrival) -> None:
        if arrival.excuse:
            self._refusals.turn_away(arrival, KEY_IN_USE, arrival.excuse, trio.current_time())
            return
        if arrival.handshake.state is State.REGISTER:
            self.refused[NEVER_REGISTERED] += 1  # it has said nothing: nothing is said to it
            return
        refused = arrival.handshake.due(math.inf).outcome
        if not isinstance(refused, Refused):
            # Its proof was good, in the very last moment: too late for what takes another turn.
            refused = Refused(Refusal.TIMEOUT, "proved too late: connect again")
        self._refuse(arrival, refused)

    def _refuse(self, arrival: Arrival, refused: Refused) -> None:
        self._refusals.refuse(arrival, refused, trio.current_time())

    # Last words -------------------------------------------------------------------------------------------

    def on_closed(self, connection: Connection, reason: str, say: str) -> None:
        """The data plane has let go of a connection: tell it why if that helps, then close it."""
        self._counting.went(place_of(connection.endpoint.address))
        log.get().info(
            "agent.left",
            key=connection.key.short(),
            endpoint=str(connection.endpoint),
            reason=reason,
            frames_in=connection.frames_in,
            frames_out=connection.frames_out,
        )
        self._farewells.see_off(connection.sock, say, connection.bridge)
