"""The agent's link to one relay: one connection at a time, dialled again for as long as the agent runs.

    dialing -> registering -> connected -> (fault) -> waiting -> dialing ...
                                        -> (Drain) -> a second connection, then the first one goes

`relay_session` decides, `relay_leg` does what it says for one connection, `relay_dial` connects; this is the
loop around them. It is one task, so that a connection that fails in three ways at once is still one fault:
one wait, one dial.

While there is no connection, frames wait in an outbox for as long as they would on a slow one (500 ms by
default). WireGuard sends a handshake initiation once in 5 s: one that comes just before the relay is back is
worth half a second's memory, and what is older goes as it always does, counted.

Drain, without losing a frame. Every agent of that relay is told at the same moment, so each of them has its
new connection after DRAIN_DIAL_OF of the time that they are given, goes on sending by the old one until
DRAIN_SWITCH_OF, when all the others can be reached by the new one, and listens to both to the end.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import trio

from relayd.agent.handover import AgentHandover, Resumed, facts_of, resumed_of
from relayd.agent.known_relays import KnownRelays
from relayd.agent.link_state import NONCE_BYTES, PROBE_S, LinkState
from relayd.agent.relay_connection import BUFFER_BYTES, HANDED_OVER, OnMessage, OnRuns
from relayd.agent.relay_dial import dial
from relayd.agent.relay_leg import RelayLeg
from relayd.agent.relay_session import Complaint, Connected, Draining, Event, Health, NotProved, RelaySession
from relayd.backoff import CAP_S, FIRST_S, Backoff
from relayd.coordination.model import RelayAddress
from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.manager.manager import Manager
from relayd.netio.delays import Delays
from relayd.netio.outbox import MAX_AGE_S, MAX_BYTES, Outbox
from relayd.netio.poller import Poller
from relayd.netio.tls_socket import TlsSocket
from relayd.observe import log
from relayd.wire.agent_handshake import AgentHandshake
from relayd.wire.boxes import NONCE_BYTES as BOX_NONCE_BYTES
from relayd.wire.identity import REPLACED, Trust, Welcomed
from relayd.wire.identity_frames import AGENT_NONCE_BYTES, PeerGone

LINES_EVERY_S = 30.0
"""Between two log lines with one and the same text of the relay's: it chooses the texts, not the pace."""

DISPLACED_S = 30.0
"""How long an agent stays away whose key another connection has taken over: the two would chase each other
out of the relay otherwise (PROTOCOL.md, part 2)."""

TAKEN_OVER = "another connection has taken our key over: is there a second agent with it?"

DIALS_PER_S = 33.0
"""How many agents at a time come back to a relay that died. An agent knows only how many peers it has, and
takes it that there are as many agents: of a thousand, each waits up to 30 s before it dials. While the relay
stays away they meet with those that try again, at most some hundred in a second."""

DRAIN_DIAL_OF = 0.25
"""Within which part of the time until the relay goes the new connection is dialled, at random."""

DRAIN_RETRY_S = 2.0
"""At most so long is waited between two tries to connect, while the relay that drains still forwards."""

DRAIN_SWITCH_OF = 0.6
"""After which part of it frames leave by the new connection."""

KEY_CHANGED = "own key changed"
STOPPED = "stopped"
DRAINED = "drained"
_ON_PURPOSE = (STOPPED, KEY_CHANGED, DRAINED, HANDED_OVER)

Dial = Callable[..., Awaitable[socket.socket]]
"""`relay_dial.dial`, or a test's."""


class Phase(Enum):
    """What the link is doing, as `relayd status` says it."""

    DIALING = "dialing"
    REGISTERING = "registering"
    """TCP is up and Register sent; the relay is to prove who it is, and to let us in."""
    CONNECTED = "connected"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Durations in seconds, sizes in bytes; `AgentConfig` says what they are for."""

    dial_timeout_s: float = 10.0
    keepalive_s: float = 25.0
    probe_s: float = PROBE_S
    queue_bytes: int = MAX_BYTES
    queue_age_s: float = MAX_AGE_S
    insecure: bool = False
    """Whether a relay need not prove who it is. Where its key is pinned, it must all the same."""


def first_wait_s(agents: int) -> float:
    """The longest first wait, in seconds, of an agent whose relay has that many of them."""
    return min(CAP_S, max(FIRST_S, agents / DIALS_PER_S))


def _nobody_listens(key: bytes, payload: bytes, now: float) -> None:
    """A sealed message, and nobody who would read it."""


def _nobody_minds(gone: PeerGone) -> None:
    """A peer that isn't at this relay, and nobody who would go elsewhere."""


class RelayLink:
    """One relay, for one key. `send` and the callbacks belong to the poller's thread."""

    def __init__(
        self,
        poller: Poller,
        relay: JoinString,
        key: PrivateKey,
        on_runs: OnRuns,
        settings: LinkSettings,
        *,
        home_key: PublicKey | None = None,
        known: KnownRelays | None = None,
        handover: AgentHandover | None = None,
        on_message: OnMessage = _nobody_listens,
        on_gone: Callable[[PeerGone], None] = _nobody_minds,
        agents: Callable[[], int] = lambda: 1,
        dial: Dial = dial,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`on_runs` gets the runs of Data frames of other keys, `on_message` the sealed messages among them,
        `on_gone` what the relay says of a peer that it can't reach. `home_key` is the node for whose sake we
        go to this relay; None: our own. `agents` estimates how many agents the relay has. `uniform` draws the
        jitter of the waits. With `handover` connections outlive the process.
        """
        self._poller, self._relay, self._key = poller, relay, key
        self._on_runs, self._on_message, self._on_gone = on_runs, on_message, on_gone
        self._settings, self._agents, self._dial, self._uniform = settings, agents, dial, uniform
        self._home_key = home_key
        self._known = known if known is not None else KnownRelays(None)
        self._handover = handover if handover is not None else AgentHandover(Manager.none())
        self._backoff = Backoff(uniform)
        self._buffer = bytearray(BUFFER_BYTES)
        self.delays = Delays()
        """How long frames waited for a relay that takes less than it is sent."""
        self._proved_at: Endpoint | None = None
        """Where the relay was when it last proved itself: for when a name server is away, or lies."""
        self._misled = False
        self._waiting = self._outbox()
        """Frames for which there is no connection."""
        self._sender: RelayLeg | None = None
        """By which frames leave."""
        self._legs: list[RelayLeg] = []
        """All that are connected: one, and two while the relay drains."""
        self._trying: RelayLeg | None = None
        self._nursery: trio.Nursery | None = None
        self._rekeyed = trio.Event()
        self._drops: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._log = log.get(relay=relay.address)
        self._said = log.Throttle(self._log, every_s=LINES_EVERY_S, by=("text",), clock=trio.current_time)
        self.phase = Phase.WAITING
        self.failing = False
        """Whether the last try to connect came to nothing."""
        self.instance = b""
        """Which process the relay was, when it last proved itself; empty: it didn't say."""
        self.dials = 0
        self.reason = ""
        """Why there is no connection, or what the relay complained of; empty when all is well."""

    @property
    def relay_endpoint(self) -> Endpoint | None:
        """Where the connection that carries goes to; None: there is none."""
        return self._sender.endpoint if self._sender is not None else None

    @property
    def connected(self) -> bool:
        """Whether the relay has shown who it is, that it lives and has us registered."""
        return bool(self._legs)

    @property
    def queued_bytes(self) -> int:
        """What waits for the relay to take it."""
        return self._waiting.queued_bytes + sum(leg.connection.outbox.queued_bytes for leg in self._legs)

    def congested(self) -> bool:
        """Whether the relay takes less than it is sent, and half of the queue is full."""
        leg = self._sender
        return leg is not None and leg.connection.outbox.queued_bytes * 2 > self._settings.queue_bytes

    def send(self, runs: Sequence[bytes | memoryview], total: int) -> None:
        """Data frames towards the relay: `runs` of whole frames of one size each, `total` bytes together.

        What the relay doesn't take now waits, and is dropped by size and age, oldest first. The buffers are
        used during the call only. Never blocks.
        """
        leg = self._sender
        if leg is not None and not leg.connection.fault:
            leg.connection.send(runs, total)
            return
        for leg in self._legs:  # one of two that has just ended leaves the other
            if not leg.connection.fault:
                leg.connection.send(runs, total)
                return
        now = time.monotonic()
        for run in runs:
            self._waiting.put(run, now)

    def register_as(self, key: PrivateKey) -> None:
        """The interface has another key now: give up the connection and register anew, at once."""
        if key == self._key:
            return
        self._key = key
        self._rekeyed.set()
        for leg in (*self._legs, self._trying):
            if leg is not None:
                leg.end(KEY_CHANGED)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the link up until cancelled. Ready at once: an agent without its relay is an agent still.

        Raises HostError when connections can't be marked: no wait mends that.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                leg = self._resume()
                task_status.started()
                while True:
                    await self._once(leg)
                    leg = None
        finally:
            self._nursery = None
            for leg in list(self._legs):
                self._forget(leg)
            self.phase = Phase.WAITING

    def status(self) -> dict[str, object]:
        """The link, for `relayd status`."""
        leg = self._sender
        session = leg.session if leg is not None else None
        trying = leg if leg is not None else self._trying
        proved = session.proved if session is not None else None
        round_trip_s = session.round_trip_s if session is not None else None
        now = trio.current_time()
        return {
            "address": self._relay.address,
            "endpoint": str(trying.endpoint) if trying is not None and trying.endpoint is not None else None,
            "state": self.phase.value,
            "key": str(proved.relay_key) if proved is not None else None,
            "trust": None if session is None else "unproved" if proved is None else proved.trust.value,
            "observed": proved.welcome.observed or None if proved is not None else None,
            "health": session.health if session is not None else "",
            "draining": leg is not None and leg.drain_s > 0,
            "round_trip_ms": round(round_trip_s * 1e3, 3) if round_trip_s is not None else None,
            "connected_s": round(now - leg.connected_at, 3) if leg is not None else None,
            "dials": self.dials,
            "reason": self.reason,
            "received": dict(sum((one.session.received for one in self._legs), Counter(self._received))),
        }

    def drops(self) -> dict[str, int]:
        """Frames lost on the way to the relay, or from it before the proxy saw them, by reason."""
        total = Counter(self._drops)
        self._waiting.expire(time.monotonic())
        total["not_connected"] += self._waiting.dropped_full + self._waiting.dropped_old
        for leg in self._legs:
            total.update(_drops_of(leg))
        return {reason: count for reason, count in total.items() if count}

    # One connection after the other ------------------------------------------------------------------------

    def save(self) -> int:
        """Leave what the next process goes on with: for the end, when nothing runs any more. -> how many
        connections it gets"""
        return self._handover.save(self._waiting)

    def _resume(self) -> RelayLeg | None:
        """Go on with the connection that an earlier process had, if there is one that may be trusted."""
        assert self._nursery is not None
        self._handover.take_waiting(self._waiting)
        found = self._handover.take(self._relay.address, self._key.public())
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
        leg = self._new_leg(one.sock, resumed=resumed_of(one, state), proved=proved)
        leg.connected_at = trio.current_time() - (time.monotonic() - facts.connected_at)
        leg.settled.set()
        self._nursery.start_soon(leg.run, name=f"connection to {self._relay.address}")
        self._legs.append(leg)
        self._sender = leg
        self.phase, self.reason = Phase.CONNECTED, ""
        self._send_waiting(leg)
        self._log.info(
            "link.resumed",
            endpoint=str(leg.endpoint) if leg.endpoint is not None else None,
            after="stop" if self._handover.store.in_order else "kill",
        )
        return leg

    async def _once(self, leg: RelayLeg | None) -> None:
        """Connect, unless there is a `leg` already, and stay connected until there is neither a connection
        nor one that takes its place; then wait."""
        self._rekeyed = trio.Event()
        if leg is None:
            leg = await self._connect()
        last = leg
        self.failing = leg is None
        while leg is not None:
            last, leg = leg, await self._stay(leg)
        if self._rekeyed.is_set():
            return
        self._go(Phase.WAITING)
        self._backoff.first_s = first_wait_s(self._agents())
        wait_s = self._backoff.failed(last.session.useful_for_s() if last is not None else 0.0)
        if last is not None and last.complaint == REPLACED and last.connection.fault not in _ON_PURPOSE:
            wait_s += DISPLACED_S
            self.reason = f"{self.reason}: {TAKEN_OVER}"
            self._log.error("link.displaced", reason=TAKEN_OVER, retry_in_s=round(wait_s, 3))
        with trio.move_on_after(wait_s):
            await self._rekeyed.wait()

    async def _connect(self) -> RelayLeg | None:
        """Dial, register, see who the relay is. None: it came to nothing, `reason` says why."""
        assert self._nursery is not None
        self._go(Phase.DIALING)
        self.dials += 1
        try:
            sock = await self._reach()
        except OSError as error:
            problem = str(error)
            if problem != self.reason:
                self._log.warning("link.dial_failed", reason=problem)
            self.reason = problem
            return None
        self._rekeyed = trio.Event()  # a key that changed during the dial is the one that registers
        self._go(Phase.REGISTERING)
        leg = self._trying = self._new_leg(sock)
        self._nursery.start_soon(leg.run, name=f"connection to {self._relay.address}")
        try:
            await leg.settled.wait()  # the session bounds this
        finally:
            self._trying = None
        if leg in self._legs:
            return leg
        # Where the name leads now there is no relay of ours: next time we go where it was first.
        self._misled = leg.endpoint != self._proved_at and not self._misled
        reason = _why(leg)
        if reason not in (self.reason, STOPPED):
            self._log.warning("link.register_failed", reason=reason)
        self.reason = reason
        self._settle(leg)
        return None

    async def _reach(self) -> socket.socket | TlsSocket:
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

    async def _stay(self, leg: RelayLeg) -> RelayLeg | None:
        """Until `leg` ends; -> the connection that took its place, if there is one."""
        await leg.drained.wait()
        successor = None
        if not leg.has_ended:
            successor = await self._succeed(leg)
        if successor is None:
            await leg.connection.ended.wait()
            self._forget(leg)
        return successor

    async def _succeed(self, old: RelayLeg) -> RelayLeg | None:
        """The relay drains: make a second connection, and let the old one go when it isn't needed any
        more."""
        assert self._nursery is not None
        told_at = trio.current_time()
        retries = Backoff(self._uniform, cap_s=DRAIN_RETRY_S)
        with trio.move_on_after(self._uniform(0.0, old.drain_s * DRAIN_DIAL_OF)):
            await old.connection.ended.wait()
        while not old.has_ended:
            successor = await self._connect()
            if successor is not None:
                self._nursery.start_soon(self._let_go, old, successor, told_at, name="drained connection")
                return successor
            with trio.move_on_after(retries.failed(0.0)):
                await old.connection.ended.wait()
        return None

    async def _let_go(self, old: RelayLeg, new: RelayLeg, told_at: float) -> None:
        with trio.move_on_at(told_at + old.drain_s * DRAIN_SWITCH_OF):
            await old.connection.ended.wait()
        if new in self._legs and not new.has_ended:
            self._sender = new
        with trio.move_on_at(told_at + old.drain_s):
            await old.connection.ended.wait()
        old.end(DRAINED)
        self._forget(old)

    def _go(self, phase: Phase) -> None:
        """Towards a connection. A second one, while there is a first, changes nothing of what we are."""
        if not self._legs:
            self.phase = phase

    def _new_leg(
        self,
        sock: socket.socket | TlsSocket,
        *,
        resumed: Resumed | None = None,
        proved: Welcomed | None = None,
    ) -> RelayLeg:
        now = trio.current_time()
        settings, relay = self._settings, self._relay
        handshake = AgentHandshake(
            self._key,
            agent_nonce=os.urandom(AGENT_NONCE_BYTES),
            nonce=os.urandom(BOX_NONCE_BYTES),
            now=now,
            home_key=self._home_key,
            token=relay.token.encode(),
            pin=relay.key,
            remembered=self._known.key_of(relay.address),
            insecure=settings.insecure,
        )
        own_key = self._key.public()
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
            outbox=self._outbox(),
            buffer=self._buffer,
            on_runs=self._on_runs,
            on_message=self._on_message,
            tell=self._on_event,
            handover=self._handover,
            resumed=resumed,
        )

    def _forget(self, leg: RelayLeg) -> None:
        """A connection that was connected has ended: say so once, and count what it took along."""
        self._legs.remove(leg)
        if self._sender is leg:
            self._sender = self._legs[0] if self._legs else None
        self._settle(leg)
        reason = _why(leg)
        connected_s = round(trio.current_time() - leg.connected_at, 3)
        say = self._log.info if leg.connection.fault in _ON_PURPOSE or self._legs else self._log.warning
        say("link.lost", reason=reason, connected_s=connected_s)
        if not self._legs:
            self.reason = reason
            self.phase = Phase.WAITING

    def _settle(self, leg: RelayLeg) -> None:
        """Count what an ended connection had to do with."""
        self._drops.update(_drops_of(leg))
        self._drops["link_lost"] += leg.connection.lost_frames
        self._received.update(leg.session.received)

    def _outbox(self) -> Outbox:
        settings = self._settings
        return Outbox(max_bytes=settings.queue_bytes, max_age_s=settings.queue_age_s, delays=self.delays)

    # What a session tells ----------------------------------------------------------------------------------

    def _on_event(self, leg: RelayLeg, event: Event) -> None:
        match event:
            case Connected():
                self._on_connected(leg, event)
            case NotProved(reason=reason):
                self._said.warning("relay.unproved", text=reason)
            case Complaint(text=text):
                if leg.drain_s and text == REPLACED:
                    return  # by our own new connection
                self.reason = f"the relay says: {text}"
                self._said.warning("relay.complained", text=text)
            case Health(text=text):
                if text:
                    self._said.warning("relay.unwell", text=text)
                else:
                    self._said.info("relay.well", text="")
            case Draining(seconds=seconds):
                if not leg.drained.is_set():
                    leg.drain_s = seconds
                    leg.drained.set()
                    self._poller.yield_soon()
                    self._log.info("relay.drains", seconds=seconds)
            case PeerGone():
                self._on_gone(event)

    def _on_connected(self, leg: RelayLeg, event: Connected) -> None:
        proved, round_trip_s = event.proved, leg.session.round_trip_s
        self.failing = False
        if proved is not None:
            self.instance = proved.welcome.relay
            self._note_key(proved.trust, proved.relay_key.short(), proved.previous)
            if proved.trust in (Trust.FIRST, Trust.CHANGED):
                assert self._nursery is not None
                self._nursery.start_soon(self._known.remember, self._relay.address, proved.relay_key)
        leg.connection.keep(
            facts_of(
                self._relay.address,
                self._key.public(),
                proved,
                connected_at=time.monotonic() - (trio.current_time() - leg.connected_at),
            )
        )
        if leg in self._legs:
            return
        self._legs.append(leg)
        if proved is not None:
            self._proved_at, self._misled = leg.endpoint, False
        self.phase, self.reason = Phase.CONNECTED, ""
        if self._sender is None or self._sender.has_ended:
            self._sender = leg
            self._send_waiting(leg)
        self._log.info(
            "link.connected",
            endpoint=str(leg.endpoint) if leg.endpoint is not None else None,
            relay_key=proved.relay_key.short() if proved is not None else None,
            trust=proved.trust.value if proved is not None else "unproved",
            round_trip_ms=round(round_trip_s * 1e3, 3) if round_trip_s is not None else None,
            dials=self.dials,
        )

    def _note_key(self, trust: Trust, key: str, previous: object) -> None:
        if trust is Trust.FIRST:
            self._log.info("relay.key_trusted", key=key, reason="the first that this address showed")
        elif trust is Trust.CHANGED:
            self._log.warning(
                "relay.key_changed",
                key=key,
                previous=previous,
                reason="another relay, a new key of the same one, or somebody in between: pin the right one",
            )

    def _send_waiting(self, leg: RelayLeg) -> None:
        """What came while there was no connection and isn't too old."""
        waiting = self._waiting
        while pieces := waiting.chunks(time.monotonic()):
            total = sum(map(len, pieces))
            leg.connection.send(pieces, total)
            waiting.sent(total)


def _why(leg: RelayLeg) -> str:
    fault, complaint = leg.connection.fault, leg.complaint
    return f"{fault} ({complaint})" if complaint else fault


def _drops_of(leg: RelayLeg) -> Counter[str]:
    outbox = leg.connection.outbox
    outbox.expire(time.monotonic())
    drops = Counter(leg.drops())
    drops.update(queue_full=outbox.dropped_full, queue_old=outbox.dropped_old)
    return drops
