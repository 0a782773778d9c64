"""The agent's link to its relay: one connection at a time, dialled again for as long as the agent runs.

    dialing -> registering -> connected -> (fault) -> waiting -> dialing ...

`link_state` decides when to send what and when the relay is dead, `relay_connection` moves bytes,
`relay_dial` connects; this is the loop around them. It is one task, so that a connection that fails in
three ways at once is still one fault: one wait, one dial.

While there is no connection, frames wait in the outbox for as long as they would on a slow one (500 ms
by default). WireGuard sends a handshake initiation once in 5 s: one that comes just before the relay is
back is worth half a second's memory, and what is older goes as it always does, counted.
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

from relayd.agent.link_state import NONCE_BYTES, LinkState
from relayd.agent.relay_connection import BUFFER_BYTES, OnRuns, RelayConnection
from relayd.agent.relay_dial import dial, peer_of
from relayd.backoff import Backoff
from relayd.coordination.model import RelayAddress
from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.netio.delays import Delays
from relayd.netio.outbox import MAX_AGE_S, MAX_BYTES, Outbox
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.wire.frames import (
    BIMODAL_HINT,
    DATA,
    ERROR,
    HEADER_BYTES,
    KEEPALIVE,
    KEYED_BYTES,
    RELAY_PROBE,
    RELAY_PROBE_TOKEN_BYTES,
    decode_error_untrusted,
    encode_register,
)
from relayd.wire.runs import Run

ERROR_LINES_EVERY_S = 30.0
"""Between two log lines with one and the same Error text: the relay chooses the texts, not the pace."""

KEY_CHANGED = "own key changed"
STOPPED = "stopped"

Dial = Callable[..., Awaitable[socket.socket]]
"""`relay_dial.dial`, or a test's."""


class Phase(Enum):
    """What the link is doing, as `relayd status` says it."""

    DIALING = "dialing"
    REGISTERING = "registering"
    """TCP is up and Register sent. No relay acknowledges one: the first echo that comes back does."""
    CONNECTED = "connected"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Durations in seconds, sizes in bytes; `AgentConfig` says what they are for."""

    dial_timeout_s: float = 10.0
    keepalive_s: float = 25.0
    echo_s: float = 10.0
    queue_bytes: int = MAX_BYTES
    queue_age_s: float = MAX_AGE_S


class RelayLink:
    """One relay, for one key. `send` and the callbacks belong to the poller's thread."""

    def __init__(
        self,
        poller: Poller,
        relay: RelayAddress,
        key: PublicKey,
        on_runs: OnRuns,
        settings: LinkSettings,
        *,
        dial: Dial = dial,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`on_runs` gets the runs of Data frames of other keys; `uniform` draws the jitter of the waits."""
        self._poller, self._relay, self._key = poller, relay, key
        self._on_runs, self._settings, self._dial = on_runs, settings, dial
        self._backoff = Backoff(uniform)
        self._buffer = bytearray(BUFFER_BYTES)
        self.delays = Delays()
        """How long frames waited for a relay that takes less than it is sent."""
        self._outbox = Outbox(
            max_bytes=settings.queue_bytes, max_age_s=settings.queue_age_s, delays=self.delays
        )
        self._connection: RelayConnection | None = None
        self._state: LinkState | None = None
        self._endpoint: Endpoint | None = None
        self._connected_at = 0.0
        self._complaint = ""
        """The last Error of this connection."""
        self._rekeyed = trio.Event()
        self._drops: Counter[str] = Counter()
        self._log = log.get(relay=str(relay))
        self._errors = log.Throttle(
            self._log, every_s=ERROR_LINES_EVERY_S, by=("text",), clock=trio.current_time
        )
        self.phase = Phase.WAITING
        self.dials = 0
        self.reason = ""
        """Why there is no connection, or what the relay complained of; empty when all is well."""
        self.received: Counter[str] = Counter()
        """Frames that are neither Data of others nor an error of ours, by what they are."""

    @property
    def connected(self) -> bool:
        """Whether the relay has shown that it lives and has us registered."""
        return self.phase is Phase.CONNECTED

    @property
    def queued_bytes(self) -> int:
        """What waits for the relay to take it."""
        return self._outbox.queued_bytes

    def congested(self) -> bool:
        """Whether the relay takes less than it is sent, and half of the queue is full."""
        return self._connection is not None and self._outbox.queued_bytes * 2 > self._settings.queue_bytes

    def send(self, runs: Sequence[bytes | memoryview], total: int) -> None:
        """Data frames towards the relay: `runs` of whole frames of one size each, `total` bytes together.

        What the relay doesn't take now waits, and is dropped by size and age, oldest first. The buffers are
        used during the call only. Never blocks.
        """
        connection = self._connection
        if connection is not None and not connection.fault:
            connection.send(runs, total)
            return
        now = time.monotonic()
        for run in runs:
            self._outbox.put(run, now)

    def register_as(self, key: PublicKey) -> None:
        """The interface has another key now: give up the connection and register anew, at once."""
        if key == self._key:
            return
        self._key = key
        self._rekeyed.set()
        if self._connection is not None:
            self._connection.end(KEY_CHANGED)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the link up until cancelled. Ready at once: an agent without its relay is an agent still.

        Raises HostError when connections can't be marked: no wait mends that.
        """
        task_status.started()
        try:
            while True:
                self._rekeyed = trio.Event()
                useful_for_s = await self._connect_once()
                if self._rekeyed.is_set():
                    continue
                self.phase = Phase.WAITING
                with trio.move_on_after(self._backoff.failed(useful_for_s)):
                    await self._rekeyed.wait()
        finally:
            self.phase = Phase.WAITING

    def status(self) -> dict[str, object]:
        """The link, for `relayd status`."""
        state, connected = self._state, self.connected
        round_trip_s = state.round_trip_s if state is not None else None
        return {
            "address": str(self._relay),
            "endpoint": str(self._endpoint) if self._endpoint is not None else None,
            "state": self.phase.value,
            "round_trip_ms": round(round_trip_s * 1e3, 3) if round_trip_s is not None else None,
            "connected_s": round(trio.current_time() - self._connected_at, 3) if connected else None,
            "dials": self.dials,
            "reason": self.reason,
            "received": dict(self.received),
        }

    def drops(self) -> dict[str, int]:
        """Frames lost on the way to the relay, or from it before the proxy saw them, by reason."""
        total = Counter(self._drops)
        total.update(self._outbox_drops())
        return {reason: count for reason, count in total.items() if count}

    # One connection ---------------------------------------------------------------------------------------

    async def _connect_once(self) -> float:
        """Dial, register, keep alive until the first fault. -> seconds of useful life"""
        self.phase = Phase.DIALING
        self.dials += 1
        try:
            sock = await self._dial(self._relay, timeout_s=self._settings.dial_timeout_s)
        except OSError as error:
            problem = str(error)
            if problem != self.reason:
                self._log.warning("link.dial_failed", reason=problem)
            self.reason = problem
            return 0.0
        self._rekeyed = trio.Event()  # a key that changed during the dial is the one that registers
        self._complaint = ""
        now = trio.current_time()
        settings = self._settings
        state = self._state = LinkState(
            self._key,
            os.urandom(NONCE_BYTES),
            now,
            keepalive_s=settings.keepalive_s,
            echo_s=settings.echo_s,
        )
        self._settle_drops()
        connection = RelayConnection(
            self._poller,
            sock,
            own_key=self._key.raw,
            hello=encode_register(self._key) + b"".join(state.due(now, 0).frames),
            outbox=self._outbox,
            buffer=self._buffer,
            on_runs=self._on_runs,
            on_control=self._on_control,
        )
        self._connection = connection
        self.phase = Phase.REGISTERING
        try:
            self._endpoint = peer_of(sock) if not connection.ended.is_set() else None
            await self._keep_alive(connection, state)
        except OSError as error:  # peer_of: reset between connect() and here
            connection.end(f"connect: {error.strerror}")
        finally:
            connection.end(STOPPED)
            self._forget(connection)
        return state.useful_for_s()

    async def _keep_alive(self, connection: RelayConnection, state: LinkState) -> None:
        """Send what the state asks for when it asks, until the connection ends or the state calls it dead."""
        while not connection.ended.is_set():
            due = state.due(trio.current_time(), connection.moved)
            if due.dead:
                connection.end(due.dead)
            for frame in due.frames:
                self.send([frame], len(frame))
            with trio.move_on_at(state.next_at):
                await connection.ended.wait()

    def _forget(self, connection: RelayConnection) -> None:
        """A connection ended: say so once, and count what it took along."""
        self._settle_drops()
        self._drops["link_lost"] += connection.lost_frames
        self._connection = self._state = None
        self._endpoint = None
        reason = f"{connection.fault} ({self._complaint})" if self._complaint else connection.fault
        if self.phase is Phase.CONNECTED:
            connected_s = round(trio.current_time() - self._connected_at, 3)
            say = self._log.info if connection.fault in (STOPPED, KEY_CHANGED) else self._log.warning
            say("link.lost", reason=reason, connected_s=connected_s)
        elif reason not in (self.reason, STOPPED):
            self._log.warning("link.register_failed", reason=reason)
        self.reason = reason
        self.phase = Phase.WAITING

    # What the relay says ----------------------------------------------------------------------------------

    def _on_control(self, buffer: bytearray, run: Run) -> None:
        kind, key, start, stop, size = run
        if kind == DATA:
            if key:
                self._on_own_data(buffer, run)
            else:
                self._drops["short_data"] += 1
        elif kind == RELAY_PROBE:
            self._answer_probe(bytes(buffer[start:stop]))
        elif kind == ERROR:
            self.received["error"] += 1
            self._complaint = decode_error_untrusted(bytes(buffer[start + HEADER_BYTES : stop]))
            self.reason = f"the relay says: {self._complaint}"
            self._errors.warning("relay.complained", text=self._complaint)
        elif kind == KEEPALIVE:
            self.received["keepalive"] += 1
        elif kind == BIMODAL_HINT:
            self.received["bimodal_hint"] += (stop - start) // size
        else:
            self.received["unknown"] += 1

    def _on_own_data(self, buffer: bytearray, run: Run) -> None:
        """Data from our own key: an echo, or somebody's idea of one. It never reaches WireGuard."""
        _, _, first, stop, size = run
        state = self._state
        for start in range(first, stop, size):
            payload = bytes(buffer[start + KEYED_BYTES : start + size])
            if state is None or not state.echoed(payload, trio.current_time()):
                self._drops["own_key"] += 1
                continue
            self.received["echo"] += 1
            if self.phase is Phase.REGISTERING:
                self._connected(state)

    def _connected(self, state: LinkState) -> None:
        self.phase = Phase.CONNECTED
        self.reason = ""
        self._connected_at = trio.current_time()
        self._log.info(
            "link.connected",
            endpoint=str(self._endpoint) if self._endpoint is not None else None,
            round_trip_ms=round((state.round_trip_s or 0.0) * 1e3, 3),
            dials=self.dials,
        )

    def _answer_probe(self, frame: bytes) -> None:
        """The relay asks whether we live (it has a second Register for our key): give its token back."""
        if len(frame) != HEADER_BYTES + RELAY_PROBE_TOKEN_BYTES:
            self._drops["malformed"] += 1
            return
        self.received["relay_probe"] += 1
        self.send([frame], len(frame))

    # The queue --------------------------------------------------------------------------------------------

    def _outbox_drops(self) -> dict[str, int]:
        """What the outbox has dropped since they were settled: no connection, then that is the reason."""
        outbox = self._outbox
        outbox.expire(time.monotonic())
        if self._connection is None:
            return {"not_connected": outbox.dropped_full + outbox.dropped_old}
        return {"queue_full": outbox.dropped_full, "queue_old": outbox.dropped_old}

    def _settle_drops(self) -> None:
        """The reason for drops is about to change: count those so far."""
        self._drops.update(self._outbox_drops())
        self._outbox.dropped_full = self._outbox.dropped_old = 0
