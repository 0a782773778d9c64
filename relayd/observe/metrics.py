"""What /metrics has: what the status says, in Prometheus' words.

    status (counters of the data plane, read when somebody asks) -> RELAY | AGENT, PEER -> `exposition`

A line in a table here is all that a metric takes, once the status has its figure; docs/metrics.md is held to
these tables by a test. Nothing is counted for the sake of a metric, and nothing per frame.

Names that WireKube's agents have (`wirekube_...`) stay as they are there, type and labels too, so that its
dashboards and alerts go on working; that some gauges end in `_total` is part of it. All else is `relayd_...`.
"""

from __future__ import annotations

from relayd import marks
from relayd.observe.health import not_ready
from relayd.observe.metric import NODE, Metric, PeerMetric, Peers, Status, Value, at, milliseconds, on

MAX_PEERS = 1000
"""Peers with series of their own, the first in the order of the status: ten series each. The rest is counted
in relayd_peers_without_series, so that nobody takes the sum of what is shown for the whole."""

ICE_STATES = {"relay": 0, "gathering": 1, "checking": 2, "connected": 3, "failed": 5}
"""WireKube's numbers; 4 is a birthday attack, which relayd doesn't make."""

GONE_FRESH_S = 60.0
"""The relay repeats it while frames for the peer come in; older than this it says nothing about now."""


def _is_fresh(handshake_age_s: float | None) -> bool:
    return handshake_age_s is not None and handshake_age_s < marks.HANDSHAKE_FRESH_S


NAT_TYPES = {"unknown": 0, "cone": 1, "symmetric": 2, "port-restricted-cone": 3, "open": 4}
"""As WireKube's wirekube_node_nat_type has them."""


def _nat_types(status: Status, _peers: Peers) -> dict[str, int]:
    found = status.get("discovery") or {}
    return {version: NAT_TYPES[nat] for version, nat in (found.get("nat") or {}).items()}


def _node_nat_type(status: Status, peers: Peers) -> Value:
    """Of IPv4, which is where the NATs are; 0 until it is known, as WireKube has it."""
    return _nat_types(status, peers).get("ipv4", 0)


# --- the tables ---

BOTH = (
    Metric(
        "relayd_info", "gauge", "Always 1, for its label.", lambda s, _: {s["version"]: 1}, label="version"
    ),
    Metric(
        "relayd_ready",
        "gauge",
        "1 while /readyz answers 200, else 0.",
        lambda status, peers: not not_ready(status, peers),
    ),
    Metric(
        "relayd_loop_lag_max_seconds",
        "gauge",
        "The longest that the event loop was held up in the last one to two minutes.",
        milliseconds("loop_lag_ms_max"),
    ),
    Metric(
        "relayd_dropped_frames_total",
        "counter",
        "Frames and datagrams that were lost here.",
        at("drops"),
        label="reason",
    ),
    Metric(
        "relayd_queued_bytes",
        "gauge",
        "Bytes that wait for connections that take less than is sent to them.",
        at("queued_bytes"),
    ),
    Metric(
        "relayd_queue_delay_seconds",
        "histogram",
        "How long those frames waited that their socket did not take at once; dropped ones are not in it.",
        at("queue_delay"),
    ),
)

RELAY = (
    *BOTH,
    Metric("relayd_connections", "gauge", "Agents that are connected.", at("connections")),
    Metric(
        "relayd_unregistered_connections",
        "gauge",
        "Connections that have not said who they are yet.",
        at("unregistered"),
    ),
    Metric("relayd_accepted_connections_total", "counter", "Connections that came in.", at("accepted")),
    Metric(
        "relayd_admitted_connections_total",
        "counter",
        "Connections that were let in, by what did it; unproved: without a proof, by --auth optional.",
        at("admitted"),
        label="by",
    ),
    Metric(
        "relayd_resumed_connections_total",
        "counter",
        "Connections that this process took over from the one before it.",
        at("resumed"),
    ),
    Metric(
        "relayd_admission_problem",
        "gauge",
        "1 while the cluster can't be asked who is let in, and the last answer counts, else 0.",
        lambda status, _: bool(status["admission_problem"]),
    ),
    Metric(
        "relayd_not_resumed_connections_total",
        "counter",
        "Connections of the process before that had to be closed.",
        at("not_resumed"),
        label="reason",
    ),
    Metric(
        "relayd_refused_connections_total",
        "counter",
        "Connections that were not let in.",
        at("refused"),
        label="reason",
    ),
    Metric(
        "relayd_backlogged_connections",
        "gauge",
        "Connections that take less than is sent to them, now.",
        at("backlogged"),
    ),
    Metric(
        "relayd_reading_pauses_total",
        "counter",
        "How often a connection was not read for a while, since its key sent more than it may.",
        at("pauses"),
    ),
    Metric("relayd_received_frames_total", "counter", "Frames from agents.", at("frames_in")),
    Metric(
        "relayd_sent_frames_total",
        "counter",
        "Frames for agents, those included that were dropped from a queue later.",
        at("frames_out"),
    ),
    Metric("relayd_received_bytes_total", "counter", "Bytes from agents.", at("bytes_in")),
    Metric("relayd_sent_bytes_total", "counter", "Bytes that agents' sockets took.", at("bytes_out")),
    Metric(
        "relayd_unknown_frames_total",
        "counter",
        "Frames of types that this relay does not know, and skipped.",
        at("unknown_frames"),
    ),
    Metric(
        "relayd_nat_probes_total",
        "counter",
        "NAT probes that agents asked for.",
        at("nat_probes"),
        label="result",
    ),
    Metric(
        "relayd_stun_datagrams_total",
        "counter",
        "Datagrams to the relay's STUN ports.",
        lambda status, _: {name: count for name, count in status["stun"].items() if name != "ports"},
        label="result",
    ),
)

AGENT = (
    *BOTH,
    Metric(
        "relayd_interface_up",
        "gauge",
        "1 while the WireGuard interface can be read, else 0.",
        lambda status, _: not status["interface_problem"],
    ),
    Metric(
        "relayd_host_problems",
        "gauge",
        "Things of the agent's on this host that are not as they should be and that it could not mend.",
        lambda status, _: len(status["host_problems"]),
    ),
    Metric(
        "relayd_path_messages_total",
        "counter",
        "Sealed messages to peers' agents, by how they went, or why they did not.",
        lambda status, _peers: (status.get("direct_paths") or {}).get("messages") or {},
        label="way",
    ),
    Metric(
        "relayd_late_packets_total",
        "counter",
        "Relayed packets of peers that were direct by then, by what became of them.",
        lambda status, _peers: (status.get("direct_paths") or {}).get("late_packets") or {},
        label="outcome",
    ),
    Metric(
        "relayd_nat_type",
        "gauge",
        "The NAT in front of this host: 0 unknown, 1 cone, 2 symmetric, 3 port-restricted cone, 4 open.",
        _nat_types,
        label="version",
    ),
    Metric(
        "wirekube_node_nat_type",
        "gauge",
        "The same of IPv4; node is this node's name.",
        _node_nat_type,
        label=NODE,
    ),
    Metric(
        "relayd_mesh_waits_for_restart",
        "gauge",
        "1 while the mesh asks for something that a running agent can not change, else 0.",
        lambda status, _: bool(status.get("mesh_problem")),
    ),
    Metric(
        "relayd_cluster_current",
        "gauge",
        "1 while what the agent knows of its cluster is current; absent without a cluster.",
        lambda status, _: (status.get("cluster") or {}).get("current"),
    ),
    Metric(
        "relayd_link_connected",
        "gauge",
        "1 while the relay answers, else 0; of several, those that are needed now.",
        lambda status, _: {
            one["address"]: one["state"] == "connected" for one in status["relays"] if one["state"] != "idle"
        },
        label="relay",
    ),
    Metric(
        "relayd_link_proved",
        "gauge",
        "1 while there is a relay that has proved its key to the agent, else 0.",
        lambda status, _: status["relay"]["trust"] not in (None, "unproved"),
    ),
    Metric(
        "relayd_link_round_trip_seconds",
        "gauge",
        "To the relay and back, as measured last.",
        milliseconds("relay", "round_trip_ms"),
    ),
    Metric("relayd_link_dials_total", "counter", "Attempts to reach a relay.", at("relay", "dials")),
    Metric(
        "relayd_link_received_total",
        "counter",
        "Frames from the relay that carry no peer's data.",
        at("relay", "received"),
        label="kind",
    ),
    Metric(
        "relayd_proxy_renewals_total",
        "counter",
        "Sockets towards WireGuard that took the place of one that the host refused.",
        at("proxy", "renewals"),
    ),
    Metric("wirekube_peers_total", "gauge", "Peers of the interface.", lambda _, peers: len(peers)),
    Metric("wirekube_direct_peers_total", "gauge", "Peers whose packets go straight.", on("direct")),
    Metric(
        "wirekube_relayed_peers_total", "gauge", "Peers whose packets go by the relay.", on("relay", "none")
    ),
    Metric(
        "relayd_unreachable_peers",
        "gauge",
        "Peers that have no way now: they are on the relay, and the relay is away.",
        on("none"),
    ),
    Metric(
        "relayd_peers_without_series",
        "gauge",
        f"Peers past the first {MAX_PEERS}: they have no series of their own.",
        lambda _, peers: max(0, len(peers) - MAX_PEERS),
    ),
)

PEER = (
    PeerMetric(
        "wirekube_peer_connected",
        "gauge",
        f"1 when there was a handshake in the last {marks.HANDSHAKE_FRESH_S:g} s and there is a way, else 0.",
        lambda peer: peer["path"] != "none" and _is_fresh(peer["handshake_age_s"]),
        label="nat_type",
        label_value=lambda peer: str(peer.get("nat_type") or "unknown"),
    ),
    PeerMetric(
        "wirekube_peer_transport_mode",
        "gauge",
        "1: direct, 2: by the relay, 0: no way.",
        lambda peer: {"direct": 1, "relay": 2}.get(peer["path"], 0),
    ),
    PeerMetric(
        "wirekube_peer_last_handshake_seconds",
        "gauge",
        "Age of the last handshake; absent when there was none.",
        lambda peer: peer["handshake_age_s"],
    ),
    PeerMetric(
        "wirekube_peer_bytes_sent_total",
        "gauge",
        "Bytes sent to the peer, as WireGuard counts them.",
        lambda peer: peer["tx_bytes"],
    ),
    PeerMetric(
        "wirekube_peer_bytes_received_total",
        "gauge",
        "Bytes received from the peer, as WireGuard counts them.",
        lambda peer: peer["rx_bytes"],
    ),
    PeerMetric(
        "wirekube_peer_latency_seconds",
        "gauge",
        "Round trip to the peer on its path, where it is measured.",
        lambda peer: None if peer["round_trip_ms"] is None else peer["round_trip_ms"] / 1e3,
        label="transport",
        label_value=lambda peer: str(peer["path"]),
    ),
    PeerMetric(
        "wirekube_peer_ice_state",
        "gauge",
        "0: by the relay, 1: gathering, 2: checking, 3: connected, 5: failed; absent when nobody looks.",
        lambda peer: ICE_STATES.get(str((peer["paths"] or {}).get("ice_state"))),
    ),
    PeerMetric(
        "relayd_peer_path_changes_total",
        "counter",
        "How often the peer went from one path to another.",
        lambda peer: (peer["paths"] or {}).get("changes"),
    ),
    PeerMetric(
        "relayd_peer_gone",
        "gauge",
        "1 while the relay's last word about the peer is that frames do not reach it, else 0.",
        lambda peer: peer["relay_gone"] is not None and peer["relay_gone"]["age_s"] < GONE_FRESH_S,
    ),
    PeerMetric(
        "relayd_peer_relay_sent_frames_total",
        "counter",
        "Frames for the peer that went to the relay.",
        lambda peer: peer["relay_tx_frames"],
    ),
    PeerMetric(
        "relayd_peer_relay_received_frames_total",
        "counter",
        "Frames from the peer that came from the relay.",
        lambda peer: peer["relay_rx_frames"],
    ),
)
