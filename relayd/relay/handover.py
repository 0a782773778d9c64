"""The relay's connections across its own end: what is written down of each, and how the next process goes on.

    admitted -> facts into the ledger, socket into the manager's store      (manager.handover)
    end      -> DataPlane -> states -> the state file
    start    -> carried sockets -> Connections of a new DataPlane, in mid-frame if need be

Age is counted in time that the relay ran: frames that wait in an outbox, and silence, don't grow older while
no process serves them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.manager.handover import Carried, Handover
from relayd.manager.manager import Manager
from relayd.observe import log
from relayd.relay.connection import FORMAT, Connection, Facts
from relayd.relay.counters import OUTBOX_COUNTERS, PORT_COUNTERS
from relayd.relay.dataplane import DataPlane


class State(msgspec.Struct, frozen=True, array_like=True):
    """What else belongs to it when the relay ends in order."""

    partial: bytes
    """The beginning of a frame that has been read."""
    rest: bytes
    """The end of one that is half written."""
    queued: list[tuple[float, bytes]]
    """Runs of whole frames that wait: for how long already, and their bytes."""
    silent_s: float
    counters: dict[str, int]
    spent: tuple[float, float]
    """Of what its key may send: bytes and frames."""


def state_of(connection: Connection, now: float, spent: tuple[float, float]) -> bytes:
    """What a connection is in the middle of."""
    outbox = connection.outbox
    counters = {name: getattr(connection, name) for name in PORT_COUNTERS}
    rest, queued = b"", []
    if outbox is not None:
        rest, runs = outbox.snapshot()
        queued = [(max(0.0, now - since), data) for since, data in runs]
        counters |= {name: getattr(outbox, name) for name in OUTBOX_COUNTERS}
    return msgspec.msgpack.encode(
        State(
            partial=connection.partial,
            rest=rest,
            queued=queued,
            silent_s=max(0.0, now - connection.heard_at),
            counters=counters,
            spent=spent,
        )
    )


def open_handover(manager: Manager) -> Handover:
    """The store that the relay's connections live on in."""
    return Handover(manager, FORMAT)


def save(plane: DataPlane) -> int:
    """Hand all connections over that can be: the relay's end. -> how many the manager has now"""
    plane.flush_now()
    now = time.monotonic()
    spent = plane.throttle.spent
    carried = {one.slot: state_of(one, now, spent(one.key.raw, now)) for one in plane.connections if one.slot}
    return len(carried) if plane.handover.save(carried) else 0


def resume(
    plane: DataPlane,
    *,
    proved: Callable[[PublicKey], None],
    still_admits: Callable[[PublicKey], bool],
    proof_required: bool,
) -> int:
    """Serve on the connections of the process before. -> how many

    `proved` is told each key that had been proved. Who isn't admitted any more, or hasn't proved its key
    where that is `proof_required`, is closed; of two with one key, the older.
    """
    handover = plane.handover
    now = time.monotonic()
    by_key: dict[bytes, tuple[Carried, Facts]] = {}
    for one in handover.carried:
        try:
            facts = msgspec.msgpack.decode(one.facts, type=Facts)
            key = PublicKey(facts.key)
        except (msgspec.DecodeError, ValueError):
            handover.refuse(one, "unreadable")
            continue
        if not still_admits(key):
            handover.refuse(one, "not_admitted")
        elif proof_required and not facts.proved:
            handover.refuse(one, "unproved")
        elif (other := by_key.get(facts.key)) is not None and other[1].since > facts.since:
            handover.refuse(one, "displaced")
        else:
            if other is not None:
                handover.refuse(other[0], "displaced")
            by_key[facts.key] = one, facts
    resumed = sum(_resume_one(plane, one, facts, now) for one, facts in by_key.values())
    for _, facts in by_key.values():
        if facts.proved:
            proved(PublicKey(facts.key))
    if resumed or handover.closed:
        log.get().info(
            "relay.resumed",
            connections=resumed,
            after="stop" if handover.in_order else "kill",
            **({"closed": dict(handover.closed)} if handover.closed else {}),
        )
    return resumed


def _resume_one(plane: DataPlane, one: Carried, facts: Facts, now: float) -> bool:
    """Whether the connection is served again; else it is closed."""
    try:
        state = msgspec.msgpack.decode(one.state, type=State) if one.state is not None else None
        endpoint = Endpoint.of_socket(one.sock.getpeername())
    except msgspec.DecodeError:
        plane.handover.refuse(one, "unreadable")
        return False
    except OSError:  # its agent went meanwhile
        plane.handover.refuse(one, "broken")
        return False
    connection = plane.resume(
        one.sock, PublicKey(facts.key), endpoint, slot=one.slot, proved=facts.proved, since=facts.since
    )
    if state is not None:
        for name in PORT_COUNTERS:
            setattr(connection, name, state.counters.get(name, 0))
        plane.throttle.spend(facts.key, state.spent, now)
        if state.partial:
            connection.partial = state.partial
            plane.turns.behind(connection)  # there may be whole frames in it
        connection.heard_at = now - state.silent_s
        if state.rest or state.queued:
            outbox = plane.outbox_of(connection)
            for name in OUTBOX_COUNTERS:
                setattr(outbox, name, state.counters.get(name, 0))
            plane.restore(connection, state.rest, [(now - age_s, data) for age_s, data in state.queued])
    connection.bytes_out = one.bytes_out
    return True
