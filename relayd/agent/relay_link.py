"""The agent's link to one relay: one connection at a time, dialled again for as long as the agent runs.

    dialing -> registering -> connected -> (fault) -> waiting -> dialing ...
                                        -> (Drain) -> a second connection, then the first one goes

`relay_session` decides, `relay_leg` does what it says for one connection, `relay_dial` connects; this is the
loop around them. It is one task, so that a connection that fails in three ways at once is still one fault:
one wait, one dial.

While there is no connection, frames wait in an outbox for as long as they would on a slow one (500 ms by
default). WireGuard sends a handshake initiation once in 5 s: one that comes just before the relay is back is
worth half a second's memory, and what is older goes as it always does, counted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import trio

from relayd.agent.change_over import ChangeOver, leaving_times
from relayd.agent.handover import Absence, AgentHandover, facts_of
from relayd.agent.known_relays import KnownRelays
from relayd.agent.leg_maker import Dial, LegMaker
from relayd.agent.link_journal import LinkJournal
from relayd.agent.link_settings import LinkSettings
from relayd.agent.link_status import Phase, status_of
from relayd.agent.link_tally import LinkTally
from relayd.agent.link_waits import DISPLACED_S, EARLY_TRIES, first_wait_s, least_wait_s
from relayd.agent.relay_connection import HANDED_OVER, OnMessage, OnRuns
from relayd.agent.relay_dial import dial
from relayd.agent.relay_leg import RelayLeg
from relayd.agent.relay_session import Complaint, Connected, Draining, Event, Health, NotProved
from relayd.backoff import Backoff
from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.manager.manager import Manager
from relayd.netio.poller import Poller
from relayd.wire.identity import REPLACED, Trust
from relayd.wire.identity_frames import PeerGone

TAKEN_OVER = "another connection has taken our key over: is there a second agent with it?"
KEY_CHANGED = "own key changed"
STOPPED = "stopped"
DRAINED = "drained"
_ON_PURPOSE = (STOPPED, KEY_CHANGED, DRAINED, HANDED_OVER)


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
        on_message: OnMessage = lambda _key, _payload, _now: None,
        on_gone: Callable[[PeerGone], None] = lambda _gone: None,
        on_up: Callable[[], None] = lambda: None,
        agents: Callable[[], int] = lambda: 1,
        dial: Dial = dial,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`on_runs` gets the runs of Data frames of other keys, `on_message` the sealed messages among them,
        `on_gone` what the relay says of a peer that it can't reach; `on_up` is called when it has let us in
        and has what waited for that. `home_key` is the node for whose sake we go to this relay; None: our
        own. `agents` estimates how many agents the relay has. `uniform` draws the jitter of the waits. With
        `handover` connections outlive the process.
        """
        self._poller, self._relay, self._key = poller, relay, key
        self._on_gone, self._on_up = on_gone, on_up
        self._settings, self._agents, self._uniform = settings, agents, uniform
        self._known = known if known is not None else KnownRelays(None)
        self._handover = handover if handover is not None else AgentHandover(Manager.none())
        self._backoff = Backoff(uniform, early_tries=EARLY_TRIES)
        self._drains = Backoff(uniform)
        self._maker = LegMaker(
            poller,
            relay,
            settings,
            home_key=home_key,
            known=self._known,
            handover=self._handover,
            dial=dial,
            on_runs=on_runs,
            on_message=on_message,
            tell=self._on_event,
        )
        self.delays = self._maker.delays
        self._waiting = self._maker.outbox()
        """Frames for which there is no connection."""
        self._sender: RelayLeg | None = None
        """By which frames leave."""
        self._legs: list[RelayLeg] = []
        """All that are connected: one, and two while the relay drains."""
        self._trying: RelayLeg | None = None
        self._nursery: trio.Nursery | None = None
        self._rekeyed = trio.Event()
        self._tally = LinkTally()
        self._journal = LinkJournal(relay.address)
        self.phase = Phase.WAITING
        self.failing = False
        """Whether the last try to connect came to nothing, or would."""
        self.instance = b""
        """Which process the relay was, by its key and word, when it last proved itself; empty: no word."""
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
    def leaves_at(self) -> float | None:
        """The relay is to be left, as it drains, and nothing has taken its place: until when it carries,
        monotonic seconds. None: it isn't."""
        leaving = [leg for leg in self._legs if leg.drain_s and trio.current_time() >= leg.leave_at]
        return max(leg.switch_at for leg in leaving) if leaving == self._legs != [] else None

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

    def use(self, settings: LinkSettings) -> None:
        """These hold from now on, for the connections that there are too."""
        self._settings = settings
        self._maker.use(settings)
        self._waiting.bound(max_bytes=settings.queue_bytes, max_age_s=settings.queue_age_s)
        for leg in list(self._legs):
            leg.use(settings)

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
        return status_of(
            self._relay.address,
            self.phase,
            self._sender,
            self._trying,
            dials=self.dials,
            reason=self.reason,
            received=self._tally.received(self._legs),
        )

    def drops(self) -> dict[str, int]:
        """Frames lost on the way to the relay, or from it before the proxy saw them, by reason."""
        return self._tally.drops(self._legs, self._waiting)

    # One connection after the other ------------------------------------------------------------------------

    def save(self, absent: Sequence[Absence]) -> int:
        """Leave what the next process goes on with: for the end, when nothing runs any more. -> how many
        connections it gets"""
        return self._handover.save(self._relay.address, self._waiting, absent)

    def _resume(self) -> RelayLeg | None:
        """Go on with the connection that an earlier process had, if there is one that may be trusted."""
        assert self._nursery is not None
        self._handover.take_waiting(self._relay.address, self._waiting)
        leg = self._maker.resume(self._key)
        if leg is None:
            return None
        self._nursery.start_soon(leg.run, name=f"connection to {self._relay.address}")
        self._legs.append(leg)
        self._sender = leg
        self.phase, self.reason = Phase.CONNECTED, ""
        self._send_waiting(leg)
        self._journal.resumed(leg, after="stop" if self._handover.store.in_order else "kill")
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
        agents = self._agents()
        self._backoff.first_s, self._backoff.least_s = first_wait_s(agents), least_wait_s(agents)
        wait_s = self._backoff.failed(last.session.useful_for_s() if last is not None else 0.0)
        if last is not None and last.complaint == REPLACED and last.connection.fault not in _ON_PURPOSE:
            wait_s += DISPLACED_S
            self.reason = f"{self.reason}: {TAKEN_OVER}"
            self._journal.displaced(TAKEN_OVER, retry_in_s=wait_s)
        with trio.move_on_after(wait_s):
            await self._rekeyed.wait()

    async def _connect(self) -> RelayLeg | None:
        """Dial, register, see who the relay is. None: it came to nothing, `reason` says why."""
        assert self._nursery is not None
        self._go(Phase.DIALING)
        self.dials += 1
        try:
            sock = await self._maker.dial()
        except OSError as error:
            problem = str(error)
            if problem != self.reason:
                self._journal.dial_failed(problem)
            self.reason = problem
            return None
        self._rekeyed = trio.Event()  # a key that changed during the dial is the one that registers
        self._go(Phase.REGISTERING)
        leg = self._trying = self._maker.make(sock, self._key)
        self._nursery.start_soon(leg.run, name=f"connection to {self._relay.address}")
        try:
            await leg.settled.wait()  # the session bounds this
        finally:
            self._trying = None
        if leg in self._legs:
            return leg
        self._maker.was_wrong(leg)
        reason = leg.why
        if reason not in (self.reason, STOPPED):
            self._journal.register_failed(reason)
        self.reason = reason
        self._tally.settle(leg)
        return None

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
        """The relay drains: make a second connection; the old one goes when it isn't needed any more."""
        assert self._nursery is not None
        change = ChangeOver(old, self._uniform, self._drains)
        successor = await change.successor(self._connect)
        if successor is not None:
            for leg in {*self._legs} - {old, successor}:  # two, however long the relay gives each
                leg.end(DRAINED)
            self._nursery.start_soon(self._let_go, change, successor, name="drained connection")
        return successor

    async def _let_go(self, change: ChangeOver, new: RelayLeg) -> None:
        await change.until_switch()
        if new in self._legs and not new.has_ended:
            self._sender = new
        await change.until_end()
        change.old.end(DRAINED)
        self._forget(change.old)

    def _go(self, phase: Phase) -> None:
        """Towards a connection. A second one, while there is a first, changes nothing of what we are."""
        if not self._legs:
            self.phase = phase

    def _forget(self, leg: RelayLeg) -> None:
        """A connection that was connected has ended: say so once, and count what it took along."""
        self._legs.remove(leg)
        if self._sender is leg:
            self._sender = self._legs[0] if self._legs else None
        self._tally.settle(leg)
        reason = leg.why
        meant = leg.connection.fault in _ON_PURPOSE or bool(self._legs)
        self._journal.lost(leg, reason, meant=meant)
        if not self._legs:
            self.reason, self.phase = reason, Phase.WAITING
            self.failing |= leg.drain_s > 0  # it said that it goes

    # What a session tells ----------------------------------------------------------------------------------

    def _on_event(self, leg: RelayLeg, event: Event) -> None:
        match event:
            case Connected():
                self._on_connected(leg, event)
            case NotProved(reason=reason):
                self._journal.unproved(reason)
            case Complaint(text=text):
                if leg.drain_s and text == REPLACED:
                    return  # by our own new connection
                self.reason = f"the relay says: {text}"
                self._journal.complained(text)
            case Health(text=text):
                self._journal.health(text)
            case Draining(seconds=seconds):
                if not leg.drained.is_set():
                    leg.drain_s = seconds
                    leg.leave_at, leg.switch_at = leaving_times(seconds, trio.current_time(), self._uniform)
                    leg.drained.set()
                    self._poller.yield_soon()
                    self._journal.drains(seconds)
            case PeerGone():
                self._on_gone(event)

    def _on_connected(self, leg: RelayLeg, event: Connected) -> None:
        proved = event.proved
        self.failing = False
        if proved is not None:
            self.instance = proved.relay_key.raw + proved.welcome.relay if proved.welcome.relay else b""
            self._journal.key_shown(proved)
            if proved.trust in (Trust.FIRST, Trust.CHANGED):
                assert self._nursery is not None
                self._nursery.start_soon(self._known.remember, self._relay.known_as, proved.relay_key)
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
            self._maker.was_right(leg)
        self.phase, self.reason = Phase.CONNECTED, ""
        if self._sender is None or self._sender.has_ended:
            self._sender = leg
            self._send_waiting(leg)
        self._journal.connected(leg, proved, dials=self.dials)
        self._on_up()

    def _send_waiting(self, leg: RelayLeg) -> None:
        """What came while there was no connection and isn't too old."""
        waiting = self._waiting
        while pieces := waiting.chunks(time.monotonic()):
            total = sum(map(len, pieces))
            leg.connection.send(pieces, total)
            waiting.sent(total)
