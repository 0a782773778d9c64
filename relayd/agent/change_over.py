"""From one connection to another of the same relay, when it drains, without losing a frame.

Every agent of that relay is told at the same moment, so each of them has its new connection after
DRAIN_DIAL_OF of the time that they are given, goes on sending by the old one until DRAIN_SWITCH_OF, when all
the others can be reached by the new one, and listens to both to the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from relayd.agent.relay_leg import RelayLeg
from relayd.backoff import Backoff

DRAIN_DIAL_OF = 0.25
"""Within which part of the time until the relay goes the new connection is dialled, at random."""

DRAIN_RETRY_S = 2.0
"""At most so long is waited between two tries to connect, while the relay that drains still forwards."""

DRAIN_SWITCH_OF = 0.6
"""After which part of it frames leave by the new connection."""


def leaving_times(
    drain_s: float, now: float, uniform: Callable[[float, float], float]
) -> tuple[float, float]:
    """-> when an agent that was told to leave dials, and from when frames go the new way"""
    return now + uniform(0.0, drain_s * DRAIN_DIAL_OF), now + drain_s * DRAIN_SWITCH_OF


class ChangeOver:
    """When what is to be done about `old`, whose relay has just said that it drains."""

    def __init__(self, old: RelayLeg, uniform: Callable[[float, float], float], drains: Backoff) -> None:
        """`uniform` draws the moment of the dial, and the jitter of its retries. `drains` has been told of
        the relay's earlier ones: one that asks each new connection to leave is dialled like one that
        fails."""
        self.old = old
        self._uniform = uniform
        pause_s = drains.failed(trio.current_time() - old.connected_at)
        self._pause_s = pause_s if drains.failures > 1 else 0.0
        self._told_at = trio.current_time()

    async def successor(self, connect: Callable[[], Awaitable[RelayLeg | None]]) -> RelayLeg | None:
        """`connect`, again and again while the old connection lasts. None: it has ended before."""
        old = self.old
        retries = Backoff(self._uniform, cap_s=DRAIN_RETRY_S)
        with trio.move_on_after(max(self._pause_s, self._uniform(0.0, old.drain_s * DRAIN_DIAL_OF))):
            await old.connection.ended.wait()
        while not old.has_ended:
            successor = await connect()
            if successor is not None:
                return successor
            with trio.move_on_after(retries.failed(0.0)):
                await old.connection.ended.wait()
        return None

    async def until_switch(self) -> None:
        """Until frames are to leave by the new connection."""
        with trio.move_on_at(self._told_at + self.old.drain_s * DRAIN_SWITCH_OF):
            await self.old.connection.ended.wait()

    async def until_end(self) -> None:
        """Until the old connection isn't needed any more."""
        with trio.move_on_at(self._told_at + self.old.drain_s):
            await self.old.connection.ended.wait()
