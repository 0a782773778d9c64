"""One connection to a relay and the decisions about it, put together: what `relay_session` says is done here.

    bytes -> relay_connection -> relay_session -> frames to send, events for `relay_link`, or the end
    clock -> relay_session -> the same

All that is known of a connection is in this one object.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from relayd.agent.handover import AgentHandover, Resumed
from relayd.agent.link_settings import LinkSettings
from relayd.agent.link_state import Moved
from relayd.agent.relay_connection import OnMessage, OnRuns, RelayConnection
from relayd.agent.relay_dial import peer_of
from relayd.agent.relay_session import Complaint, Connected, Event, RelaySession, Step
from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.netio.outbox import Outbox
from relayd.netio.poller import Poller
from relayd.netio.tls_socket import TlsSocket
from relayd.wire.frames import DATA, HEADER_BYTES, KEYED_BYTES
from relayd.wire.identity import BEFORE_PROOF
from relayd.wire.runs import Run

HAS_TO_PROVE = "it has proved nothing, and has to now"


class RelayLeg:
    """A connected socket from Register to its end. Its callbacks come from the poller and from `run`."""

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket | TlsSocket,
        session: RelaySession,
        *,
        own_key: PublicKey,
        outbox: Outbox,
        buffer: bytearray,
        on_runs: OnRuns,
        on_message: OnMessage,
        tell: Callable[[RelayLeg, Event], None],
        handover: AgentHandover,
        resumed: Resumed | None = None,
    ) -> None:
        """Register at once. `session` is new; `tell` gets its events. The rest is as in RelayConnection.

        `resumed`: an earlier process has had this connection, and `session` has been resumed, too."""
        self._poller, self._tell = poller, tell
        self._news = trio.Event()
        self.session = session
        self.settled = trio.Event()
        """Connected, or ended before."""
        self.drained = trio.Event()
        """The relay asks to be left, or the leg has ended."""
        self.drain_s = 0
        """Within how many seconds, once `drained`."""
        self.leave_at = self.switch_at = 0.0
        """Then, when to look for another relay, where there is one, and until when this one carries for those
        who do the same."""
        self.complaint = ""
        """The relay's last Error."""
        self.endpoint: Endpoint | None = None
        """The relay's address, as it turned out."""
        self.connected_at = 0.0
        self._before_proof = 0
        self.connection = RelayConnection(
            poller,
            sock,
            own_key=own_key.raw,
            hello=session.hello() if resumed is None else b"",
            outbox=outbox,
            buffer=buffer,
            on_runs=on_runs,
            on_message=on_message,
            on_control=self._on_control,
            on_ended=self._on_ended,
            handover=handover,
            resumed=resumed,
        )
        self.connection.carries = session.may_carry
        if not self.has_ended:
            try:
                self.endpoint = peer_of(sock)
            except OSError as error:  # reset between connect() and here
                self.end(f"connect: {error.strerror}")

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be sent any more; `connection.fault` says why."""
        return self.connection.ended.is_set()

    @property
    def why(self) -> str:
        """Why it has ended."""
        fault = self.connection.fault
        return f"{fault} ({self.complaint})" if self.complaint else fault

    def use(self, settings: LinkSettings) -> None:
        """These hold from now on. A relay that has proved nothing is left when it has to."""
        self.connection.outbox.bound(max_bytes=settings.queue_bytes, max_age_s=settings.queue_age_s)
        self.session.use(settings, trio.current_time())
        if self.session.connected and self.session.proved is None and not settings.insecure:
            self.end(HAS_TO_PROVE)
        self._news.set()

    def end(self, fault: str) -> None:
        """End it, unless it has ended."""
        self.connection.end(fault)

    def drops(self) -> dict[str, int]:
        """Frames of this connection that were of no use, by reason, apart from its outbox's."""
        drops = dict(self.session.dropped)
        if self._before_proof:
            drops[BEFORE_PROOF] = drops.get(BEFORE_PROOF, 0) + self._before_proof
        return drops

    async def run(self) -> None:
        """Do in time what time alone decides, until the connection ends."""
        connection, session = self.connection, self.session
        try:
            while not self.has_ended:
                self._news = trio.Event()
                self._look()
                with trio.move_on_at(session.next_at):
                    await self._news.wait()
        except trio.Cancelled:
            connection.suspend()
            raise
        finally:
            connection.end("stopped")

    def _look(self) -> None:
        connection = self.connection
        moved = Moved(connection.bytes_out, connection.bytes_in, connection.bytes_drained)
        self._do(self.session.due(trio.current_time(), moved))

    def _do(self, step: Step) -> None:
        connection = self.connection
        for frame in step.frames:
            if not connection.fault:
                connection.send([frame], len(frame))
        connection.carries = self.session.may_carry
        for event in step.events:
            if isinstance(event, Connected):
                self._became_connected(event)
            else:
                if isinstance(event, Complaint):
                    self.complaint = event.text
                self._tell(self, event)
        if step.end:
            connection.end(step.end)

    def _became_connected(self, event: Connected) -> None:
        if not self.settled.is_set():  # else by its echo, and now it has proved itself too
            self.connected_at = trio.current_time()
            self.settled.set()
        self._tell(self, event)
        self._news.set()  # there is something to be asked now
        self._poller.yield_soon()

    def _on_ended(self) -> None:
        self.settled.set()
        self.drained.set()
        self._news.set()
        self._poller.yield_soon()

    def _on_control(self, buffer: bytearray, run: Run) -> None:
        """Called once a run: only runs of Data and of BimodalHint have more than one frame."""
        kind, key, first, stop, size = run
        now = trio.current_time()
        session = self.session
        if kind == DATA and key:
            if key != self.connection.own_key:
                self._before_proof += (stop - first) // size
                return
            for start in range(first, stop, size):
                self._do(session.on_own_data(bytes(buffer[start + KEYED_BYTES : start + size]), now))
            return
        for start in range(first, stop, size):
            if self.has_ended:
                return
            self._do(session.on_frame(kind, bytes(buffer[start + HEADER_BYTES : start + size]), now))
