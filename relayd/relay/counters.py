"""What a connection counts, by the names of `relayd status --json`."""

from __future__ import annotations

from relayd.relay.connection import Connection

PORT_COUNTERS = (
    "frames_in",
    "frames_out",
    "bytes_in",
    "bytes_out",
    "unknown_frames",
    "dropped_absent",
    "dropped_short",
)
OUTBOX_COUNTERS = ("dropped_full", "dropped_old", "dropped_memory")


def counts(connection: Connection) -> dict[str, int]:
    """What one connection has counted, by the names of `relayd status --json`."""
    outbox = connection.outbox
    return {name: getattr(connection, name) for name in PORT_COUNTERS} | {
        name: getattr(outbox, name) if outbox is not None else 0 for name in OUTBOX_COUNTERS
    }
