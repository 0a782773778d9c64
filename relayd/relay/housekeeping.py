"""What is done for all connections now and then: nothing here is urgent, and nothing is done for each frame.

every HOUSEKEEPING_S   stale frames are dropped, readers that stopped are closed, the silent are asked or
closed after SIGTERM          agents are asked to connect elsewhere
"""

from __future__ import annotations

import fcntl
import secrets
import struct
import termios
import time

import trio

from relayd.observe import log
from relayd.relay.admission import CALM_S
from relayd.relay.claims import Claims
from relayd.relay.connection import Connection
from relayd.relay.dataplane import DataPlane
from relayd.relay.liveness import ASK_AFTER_S, Judgement, judge
from relayd.wire.identity_frames import PING_TOKEN_BYTES, encode_drain, encode_health, encode_ping

HOUSEKEEPING_S = 0.5
"""Between two looks. Ten thousand connections cost half a millisecond each time."""

ASK_NEWCOMERS_S = 0.1
"""While agents are asked to go, between two looks for some who have only just come."""


class Housekeeping:
    """Looks after the connections of one relay."""

    def __init__(self, plane: DataPlane, claims: Claims, *, silence_s: float) -> None:
        """`silence_s`: see RelayConfig."""
        self._plane, self._claims, self.silence_s = plane, claims, silence_s
        self._left: trio.Event | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, for ever."""
        task_status.started()
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            self._plane.expire()
            self._claims.forget()
            self._look_for_the_silent()
            self._plane.flush_now()

    def _look_for_the_silent(self) -> None:
        now = time.monotonic()
        worth_a_look = now - min(ASK_AFTER_S, self.silence_s)
        for connection in [
            one
            for one in self._plane.connections
            if one.heard_at <= worth_a_look and not (one.paused or one.behind_bytes)
        ]:
            silent_s = now - connection.heard_at
            judgement = judge(
                silent_s=silent_s,
                asked=connection.asked_at > connection.heard_at,
                answers=connection.proved and not connection.leaving,
                silence_s=self.silence_s,
            )
            if judgement is Judgement.ASK_KERNEL and _unacknowledged(connection):
                judgement = Judgement.DEAD
            if judgement is Judgement.ASK:
                connection.asked_at = now
                self._plane.send_frame(connection, encode_ping(secrets.token_bytes(PING_TOKEN_BYTES)))
            elif judgement is Judgement.DEAD:
                self._plane.close(connection, f"silent for {silent_s:.1f} s")
        for connection in [one for one in self._plane.connections if one.told_ill_at]:
            if now - connection.told_ill_at > CALM_S:
                connection.told_ill_at = 0.0
                self._plane.send_frame(connection, encode_health(""))

    # Draining ---------------------------------------------------------------------------------------------

    def on_closed(self) -> None:
        """A connection has ended."""
        if self._left is not None:
            self._left.set()

    async def drain(self, seconds: float) -> None:
        """Ask all agents that know how to connect elsewhere, and come back when they have left, or in
        time. Those whose connections the service manager keeps need not move."""
        if not (staying := self._to_be_moved()):
            return
        log.get().info("relay.draining", agents=len(staying), seconds=seconds)
        asked: set[Connection] = set()
        with trio.move_on_after(seconds) as patience:
            while staying := self._to_be_moved():
                # Again and again: who was at the door when it closed is let in yet.
                frame = encode_drain(round(patience.deadline - trio.current_time()))
                for connection in staying:
                    if connection not in asked:
                        asked.add(connection)
                        self._plane.send_frame(connection, frame)
                self._plane.flush_now()
                self._left = trio.Event()
                with trio.move_on_after(ASK_NEWCOMERS_S):
                    await self._left.wait()
        log.get().info("relay.drained", stayed=len(self._to_be_moved()))

    def _to_be_moved(self) -> list[Connection]:
        return [one for one in self._plane.connections if one.proved and not one.leaving and not one.slot]


def _unacknowledged(connection: Connection) -> bool:
    """Whether something waits for the other side's acknowledgement: SIOCOUTQ (tcp(7))."""
    sock = connection.bridge.wire if connection.bridge is not None else connection.sock
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):  # ValueError: TLS has closed it, at this moment
        return True
    return bool(struct.unpack("i", answer)[0])
