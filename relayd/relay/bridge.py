"""A connection by TLS, seen from the plain side of it."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True)
class Bridge:
    """What is behind a socket that is one end of a pair."""

    scope: trio.CancelScope
    """Around what pumps between the other end and `wire`."""
    wire: socket.socket
    """TCP's, which leads to the agent. Closed when the pumping has ended."""
