"""The status that an agent writes into its node's resource: what is in it, and when it is written. Pure.

Every write is one to etcd and one event for each agent that watches: with 1,000 nodes a write costs a
thousand messages. So counters and times go along with what has changed, or with the heartbeat, and don't ask
for a write of their own; and the list of connections is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from relayd.coordination.kubernetes.resources import GROUP, VERSION
from relayd.marks import HANDSHAKE_FRESH_S

MANAGER = "relayd-agent"
"""The field manager of the status: what it applies is its own, and others' fields stay."""

CHANGE_EVERY_S = 10.0
"""Between two writes because of changes."""

HEARTBEAT_S = 60.0
"""Between two writes when nothing changes."""

MAX_CONNECTIONS = 32
"""Names in `connections`, relayed ones first: an event about a node of a large mesh stays below 4 KB, and
each one goes to all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFacts:
    """One peer, as its agent sees it."""

    name: str
    path: str
    """direct, relay or none."""

    handshake_at: float | None
    """Seconds of the Unix epoch."""

    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to report."""

    peers: Sequence[PeerFacts]
    relay_connected: bool
    relay_latency_ms: float | None = None
    endpoint_method: str = ""
    """How the endpoint in the resource is known; "": nothing new is."""

    nat_type: str = ""
    ice_state: str = ""
    candidates: Sequence[Mapping[str, Any]] = ()
    mapped_ports: Sequence[int] = ()
    """What a symmetric NAT gave for one port, in the order of asking: empty where there is none."""

    bind_mode: str = ""
    """"kernel" or "userspace": whose WireGuard it is."""

    problems: Sequence[str] = ()
    """What of the cluster's resources, or of the host, this node can't follow."""


@dataclass(slots=True)
class Reporter:
    """One node's reports: what was written last, and when."""

    unknown: set[str] = field(default_factory=set)
    """Fields that this cluster's definition doesn't have: an older one of WireKube's."""

    _written_at: float | None = None
    _significant: Any = None
    _since: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By type of condition: its status, and since when it has that."""

    def due(self, facts: Facts, *, now: float, wall_now: float) -> dict[str, Any] | None:
        """The status to write at `now` (monotonic seconds); None: not now."""
        significant = _significant(facts, wall_now)
        if self._written_at is not None:
            age_s = now - self._written_at
            if age_s < (HEARTBEAT_S if significant == self._significant else CHANGE_EVERY_S):
                return None
        return self._status(facts, wall_now)

    def written(self, facts: Facts, *, now: float, wall_now: float) -> None:
        """It was."""
        self._written_at, self._significant = now, _significant(facts, wall_now)

    def refused(self, now: float) -> None:
        """It wasn't: try again, no sooner than after CHANGE_EVERY_S."""
        self._written_at, self._significant = now, None

    def _status(self, facts: Facts, wall_now: float) -> dict[str, Any]:
        handshakes = [peer.handshake_at for peer in facts.peers if peer.handshake_at is not None]
        status: dict[str, Any] = {
            "connected": _connected(facts, wall_now),
            "lastReportedAt": rfc3339(wall_now),
            "bytesReceived": sum(peer.rx_bytes for peer in facts.peers),
            "bytesSent": sum(peer.tx_bytes for peer in facts.peers),
            "connections": _connections(facts, wall_now),
            "conditions": self._conditions(facts, wall_now),
        }
        if handshakes:
            status["lastHandshake"] = rfc3339(max(handshakes))
        if facts.relay_latency_ms is not None:
            status["relayLatencyMs"] = max(1, round(facts.relay_latency_ms))
        for name, value in (
            ("endpointDiscoveryMethod", facts.endpoint_method),
            ("natType", facts.nat_type),
            ("iceState", facts.ice_state),
            ("iceCandidates", list(facts.candidates)),
            ("portPrediction", port_prediction(facts.mapped_ports)),
            ("bindMode", facts.bind_mode),
        ):
            if value:
                status[name] = value
        return {name: value for name, value in status.items() if name not in self.unknown}

    def _conditions(self, facts: Facts, wall_now: float) -> list[dict[str, Any]]:
        ready = _connected(facts, wall_now)
        paths = [peer.path for peer in facts.peers]
        told = ", ".join(
            f"{paths.count(path)} {words}"
            for path, words in (("direct", "direct"), ("relay", "relayed"), ("none", "without a path"))
        )
        problems = "; ".join(facts.problems)
        return [
            self._condition("Ready", ready, "Connected" if ready else "NoSession", told, wall_now),
            self._condition(
                "Configured",
                not problems,
                "AsTheMeshSays" if not problems else "Problems",
                problems[:1024],
                wall_now,
            ),
        ]

    def _condition(self, kind: str, ok: bool, reason: str, message: str, wall_now: float) -> dict[str, Any]:
        status = "True" if ok else "False"
        before = self._since.get(kind)
        if before is None or before[0] != status:
            self._since[kind] = (status, rfc3339(wall_now))
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": self._since[kind][1],
        }


def port_prediction(ports: Sequence[int]) -> dict[str, Any]:
    """What a NAT that gave these ports, one after the other, may give next, as WireKube's agents put it: from
    the last one on, by the average step, and how far the steps were off that. {}: too few to tell."""
    if len(ports) < 2:
        return {}
    steps = [after - before for before, after in pairwise(ports)]
    average = int(sum(steps) / len(steps))
    return {
        "basePort": ports[-1],
        "increment": average,
        "jitter": max(abs(step - average) for step in steps),
        "samplePorts": list(ports),
    }


def rfc3339(wall_s: float) -> str:
    """As the API wants times."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def body(name: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """What server-side apply takes."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "WireKubePeer",
        "metadata": {"name": name},
        "status": dict(status),
    }


def _has_session(peer: PeerFacts, wall_now: float) -> bool:
    return peer.handshake_at is not None and wall_now - peer.handshake_at < HANDSHAKE_FRESH_S


def _connected(facts: Facts, wall_now: float) -> bool:
    return facts.relay_connected or any(_has_session(peer, wall_now) for peer in facts.peers)


def _connections(facts: Facts, wall_now: float) -> dict[str, str]:
    with_session = [peer for peer in facts.peers if _has_session(peer, wall_now)]
    shown = sorted(with_session, key=lambda peer: (peer.path != "relay", peer.name))[:MAX_CONNECTIONS]
    return {peer.name: peer.path for peer in sorted(shown, key=lambda peer: peer.name)}


def _significant(facts: Facts, wall_now: float) -> Any:
    """What a write doesn't wait for the heartbeat for."""
    return (
        _connected(facts, wall_now),
        _connections(facts, wall_now),
        facts.endpoint_method,
        facts.nat_type,
        # Relayed peers are checked again and again: each time would be two writes.
        facts.ice_state == "connected",
        [dict(one) for one in facts.candidates],
        list(facts.problems),
    )
