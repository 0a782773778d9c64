"""Two connections want one key, and neither has proved that it is its own: who lives gets it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from relayd.relay.arrival import Arrival
from relayd.relay.claims import PROBE_S, Claims
from relayd.wire.identity import RelayOutcome


async def contest(claims: Claims, arrival: Arrival) -> tuple[bool, RelayOutcome | None]:
    """The key of `arrival` is held by one that hasn't proved it either.
    -> (whether the key is free, or the outcome)

    A Proof ends it at any time; it may be on its way while the holder answers.
    """
    key = arrival.handshake.key
    assert key is not None
    holder = claims.holder(key)
    if holder is None:
        return True, None
    heard_before = holder.bytes_in
    # What it sends unproved is dropped, once it is read; but it may be let in in a moment.
    ended, outcome = await _meanwhile(arrival, claims.ask(holder), PROBE_S, first=arrival.proof)
    if ended:
        return False, outcome
    if claims.holder(key) is not holder:
        return True, None
    if holder.bytes_in == heard_before:
        claims.give_way(holder, arrival.endpoint)
        return True, None
    arrival.excuse = f"key {key.short()} is registered by another connection, which is alive"
    ended, outcome = await _meanwhile(arrival, claims.departure(holder), math.inf)
    return not ended, outcome


async def _meanwhile(
    arrival: Arrival,
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
