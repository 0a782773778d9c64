"""Statuses of a relay and of an agent, whole, for what shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from relayd.netio.delays import Delays

LONGEST = "[2001:db8:1234:5678:9abc:def0:1234:5678]:51820"


def queue_delay() -> dict[str, object]:
    """Nine frames that waited 3 ms, and one that waited 300."""
    delays = Delays()
    delays.add(0.003, 9)
    delays.add(0.3, 1)
    return delays.status()


def key(number: int) -> str:
    """A public key in base64, another one for each number."""
    return f"{number:07}".replace("0", "k") + "A" * 36 + "="


def relay_peer(number: int, **facts: object) -> dict[str, Any]:
    """One connection of a relay."""
    return {
        "key": key(number),
        "address": f"203.0.113.{number % 256}:{40000 + number}",
        "proved": True,
        "connected_s": 59 + number * 3600,
        "silent_s": 1.0,
        "queued_bytes": 0,
        "frames_in": number * 1000,
        "frames_out": number * 900,
        "bytes_in": number * 10**6,
        "bytes_out": number * 9 * 10**5,
        "unknown_frames": 0,
        "drops": {"absent": 0, "short": 0, "full": number, "old": 0},
    } | facts


def relay_status(peers: int = 3, **facts: object) -> dict[str, Any]:
    """A relay with so many connections."""
    return {
        "role": "relay",
        "version": "0.1.0",
        "uptime_s": 7512.3,
        "http": "127.0.0.1:9478",
        "listen": ["0.0.0.0:3478", "[::]:3478"],
        "connections": peers,
        "backlogged": 1,
        "queued_bytes": 65536,
        "queue_delay": queue_delay(),
        "unregistered": 2,
        "accepted": peers + 7,
        "resumed": 0,
        "admission_problem": "",
        "admission_awaited": "",
        "not_resumed": {"cut": 1},
        "admitted": {"token": peers + 3},
        "refused": {"never registered": 3, "key in use": 1},
        "pauses": 8,
        "frames_in": 1000,
        "frames_out": 900,
        "bytes_in": 10_000_000,
        "bytes_out": 9_000_000,
        "unknown_frames": 4,
        "drops": {"absent": 5, "short": 0, "full": 6, "old": 7},
        "nat_probes": {"sent": 1, "refused_rate": 2},
        "stun": {"ports": [3478, 3479], "answered": 12, "limited": 1},
        "loop_lag_ms_max": 11.5,
        "peers": [relay_peer(number) for number in range(peers)],
    } | facts


def agent_peer(number: int, path: str = "direct", **facts: object) -> dict[str, Any]:
    """One peer of an agent, on a path: direct, relay or none."""
    direct = path == "direct"
    return {
        "key": key(number),
        "name": "",
        "path": path,
        "reason": "session" if direct else "no handshake for 180 s",
        "endpoint": f"203.0.113.{number}:51820" if direct else f"127.64.3.{number}:22347",
        "loopback": f"127.64.3.{number}",
        "round_trip_ms": None,
        "paths": {
            "state": "direct" if direct else "relay",
            "ice_state": "connected" if direct else "relay",
            "since_s": 60.0,
            "path_since_s": 7260.0,
            "why": "answered",
            "changes": 2,
            "waits_s": None,
            "leads": True,
            "talks": True,
            "round_trip_ms": {"direct": 3.5 if direct else None, "relay": 41.0},
            "candidates": [],
        },
        "handshake_age_s": 12.0 if path != "none" else None,
        "rx_bytes": 123_456_789,
        "tx_bytes": 1 << 41,
        "relay_gone": None,
        "relay_rx_frames": 0 if direct else 70,
        "relay_tx_frames": 0 if direct else 80,
    } | facts


AGENTS_RELAY: dict[str, Any] = {
    "address": "relay.example.net:3478",
    "endpoint": "198.51.100.1:3478",
    "state": "connected",
    "key": key(77),
    "trust": "pinned",
    "observed": "192.0.2.1:40000",
    "health": "",
    "draining": False,
    "round_trip_ms": 1.234,
    "connected_s": 3600.0,
    "dials": 2,
    "reason": "",
    "received": {"echo": 12, "keepalive": 3},
}


def agent_status(paths: tuple[str, ...] = ("direct", "relay", "none"), **facts: object) -> dict[str, Any]:
    """An agent with a peer on each of these paths."""
    status: dict[str, Any] = {
        "role": "agent",
        "version": "0.1.0",
        "uptime_s": 7512.3,
        "http": "127.0.0.1:9479",
        "interface": "wg0",
        "interface_problem": "",
        "host_problems": [],
        "mesh_problem": "",
        "relay_names_problem": "",
        "cluster": {
            "node": "vm",
            "api_server": "https://192.0.2.10:6443",
            "current": True,
            "removed": False,
            "peers": len(paths),
            "problems": [],
        },
        "direct_paths": {
            "lacks": "",
            "symmetric": False,
            "candidates": [
                {"endpoint": "203.0.113.5:51820", "type": "srflx", "priority": 1694498559, "found": "STUN"}
            ],
            "prediction": None,
            "hold_s": 10.0,
            "messages": {"by relay": 12, "directly": 40, "unsent: Network is unreachable": 2},
            "late_packets": {"handed over": 3},
            "birthday": {"sockets": 0},
        },
        "discovery": {
            "nat": {"ipv4": "port-restricted-cone", "ipv6": "open"},
            "endpoint": "203.0.113.5:51820",
            "estimated": False,
            "mapping_lifetime_s": None,
            "findings": [{"endpoint": "203.0.113.5:51820", "method": "stun", "source": "198.51.100.1:3478"}],
            "problems": [],
        },
        "public_key": key(99),
        "listen_port": 51820,
        "proxy_port": 22347,
        "relay": AGENTS_RELAY | {"home": True},
        "paths": {path: paths.count(path) for path in sorted(set(paths))},
        "drops": {"unknown_key": 3, "queue_full": 12345},
        "queued_bytes": 0,
        "queue_delay": queue_delay(),
        "proxy": {"renewals": 1, "last_error": ""},
        "loop_lag_ms_max": 3.25,
        "peers": [agent_peer(number, path) for number, path in enumerate(paths)],
    } | facts
    return {"relays": [status["relay"]]} | status


class Watched:
    """What an HTTP site serves, with a status that a test may change."""

    def __init__(self, status: dict[str, Any]) -> None:
        self.status = status
        self.asked = 0
        """How often."""

    def summary(self) -> dict[str, Any]:
        """All but the peers."""
        self.asked += 1
        return {name: value for name, value in self.status.items() if name != "peers"}

    def peers(self, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The first of them."""
        return iter(self.status["peers"][:limit])
