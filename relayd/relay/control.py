"""Frames that an agent sends to the relay itself, once it is served.

Keepalive                nothing: that it came is all
RelayProbe               an answer to ours
NATProbe                 a datagram or two
Ping, Pong               liveness, between those who completed the handshake
Register, Proof, ...     a late proof of one that is served unproved; else the end of the connection
Data without a key       counted
any other                counted and skipped: an old relay keeps working with a new agent
"""

from __future__ import annotations

import trio

from relayd.errors import RemoteProtocolError
from relayd.observe import log
from relayd.relay.claims import Claims
from relayd.relay.connection import Connection
from relayd.relay.dataplane import DataPlane
from relayd.relay.udp import NatProber
from relayd.wire.frames import (
    BIMODAL_HINT,
    DATA,
    KEEPALIVE,
    NAT_PROBE,
    RELAY_PROBE,
    decode_nat_probe_untrusted,
)
from relayd.wire.identity import HANDSHAKE, Admitted, Refused, frame_name
from relayd.wire.identity_frames import PING, PONG, decode_ping_untrusted, encode_pong


class Control:
    """Answers them. Never blocks."""

    def __init__(self, plane: DataPlane, claims: Claims, prober: NatProber) -> None:
        self._plane, self._claims, self._prober = plane, claims, prober

    def on_frame(self, connection: Connection, kind: int, body: memoryview) -> None:
        """A whole frame without a destination; `body` is valid during the call."""
        if kind == KEEPALIVE:
            return
        if kind == PING and connection.proved:
            self._on_ping(connection, bytes(body))
        elif kind == PONG and connection.proved:
            return  # that it came is all
        elif kind == RELAY_PROBE:
            self._claims.on_probe_answer(connection, bytes(body))
        elif kind == NAT_PROBE:
            self._on_nat_probe(connection, bytes(body))
        elif kind in HANDSHAKE:
            self._on_handshake(connection, kind, bytes(body))
        elif kind in (DATA, BIMODAL_HINT):
            connection.dropped_short += 1
        else:
            connection.unknown_frames += 1

    def _on_ping(self, connection: Connection, body: bytes) -> None:
        try:
            token = decode_ping_untrusted(body)
        except RemoteProtocolError as error:
            self._end(connection, f"protocol error: {error}")
        else:
            self._plane.send_frame(connection, encode_pong(token))

    def _on_nat_probe(self, connection: Connection, body: bytes) -> None:
        try:
            request = decode_nat_probe_untrusted(body)
        except RemoteProtocolError:
            self._prober.counts["refused_malformed"] += 1
        else:
            self._prober.probe(request, connection.endpoint)

    def _on_handshake(self, connection: Connection, kind: int, body: bytes) -> None:
        if connection.handshake is None:
            self._end(connection, f"protocol error: {frame_name(kind)} after the handshake")
            return
        step = connection.handshake.on_frame(kind, body, trio.current_time())
        if step.send:
            self._plane.send_frame(connection, step.send)
        match step.outcome:
            case Admitted():
                self._claims.proved(connection)
                log.get().info(
                    "agent.proved",
                    key=connection.key.short(),
                    endpoint=str(connection.endpoint),
                    admission=step.outcome.admission,
                )
            case Refused():
                self._end(connection, step.outcome.reason)

    def _end(self, connection: Connection, reason: str) -> None:
        self._plane.close(connection, reason, say=reason)
