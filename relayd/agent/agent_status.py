"""What `relayd status` gets from an agent about a peer, and about frames that were lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

import trio

from relayd.agent.reconcile import Path, PeerPath
from relayd.agent.relayed_peer import RelayedPeer
from relayd.agent.wg_proxy import WgProxy
from relayd.keys import PublicKey
from relayd.paths import report
from relayd.paths.pathfinder import Pathfinder
from relayd.wire.identity_frames import Gone


def peer_status(
    path: PeerPath,
    relayed: RelayedPeer | None,
    *,
    relay_connected: bool,
    now: float,
    finder: Pathfinder | None = None,
    name: str = "",
) -> dict[str, object]:
    """One peer. Its path is "none" when it is on the relay and there is no relay. `now`: as in the plan."""
    peer = path.peer
    endpoint = path.set_endpoint or peer.endpoint
    no_way = path.path is Path.RELAY and not relay_connected
    return {
        "key": str(peer.key),
        "name": name,
        "path": "none" if no_way else path.path.value,
        "reason": path.reason,
        "endpoint": None if endpoint is None else str(endpoint),
        "loopback": None if relayed is None else str(relayed.address),
        "round_trip_ms": None if finder is None or no_way else _round_trip_ms(finder, path.path),
        "handshake_age_s": None if path.handshake_at is None else round(now - path.handshake_at, 3),
        "rx_bytes": peer.rx_bytes,
        "tx_bytes": peer.tx_bytes,
        "relay_rx_frames": 0 if relayed is None else relayed.rx_frames,
        "relay_tx_frames": 0 if relayed is None else relayed.tx_frames,
        "relay_gone": None if relayed is None else _gone(relayed, now),
        "paths": None if finder is None else report.summary(finder, now),
    }


def _round_trip_ms(finder: Pathfinder, path: Path) -> float | None:
    """As measured last on the path that the peer's packets take."""
    seconds = finder.round_trip_s if path is Path.DIRECT else finder.agent.round_trip_s
    return None if seconds is None else round(seconds * 1e3, 3)


_GONE = {Gone.ABSENT: "isn't connected to the relay", Gone.STALLED: "doesn't read, and loses frames"}


def _gone(peer: RelayedPeer, now: float) -> dict[str, object] | None:
    """What a relay said of the peer last; None: nothing."""
    if peer.gone_at is None:
        return None
    reason = next((text for kind, text in _GONE.items() if kind == peer.gone_reason), "is gone")
    return {"reason": reason, "age_s": round(now - peer.gone_at, 3), "count": peer.gone_count}


def ways(paths: Iterable[PeerPath]) -> str:
    """How many peers go which way, in words."""
    counts = Counter(one.path for one in paths)
    return ", ".join(f"{count} {kind.value}" for kind, count in counts.most_common()) or "no peers"


def interest(one: tuple[PublicKey, PeerPath]) -> tuple[bool, int]:
    """Which peers to name first where not all are: those on the relay may have no way, then the busiest."""
    path = one[1]
    return path.path is Path.RELAY, path.peer.rx_bytes + path.peer.tx_bytes


async def histories(finders: Mapping[PublicKey, Pathfinder]) -> bytes:
    """How each peer came to its path: one line of JSON, for `relayd status PEER --why`."""
    told: dict[str, object] = {}
    for key, finder in list(finders.items()):
        told[str(key)] = report.history(finder, trio.current_time())
        await trio.lowlevel.checkpoint()
    return json.dumps({"histories": told}).encode() + b"\n"


def proxy_status(proxy: WgProxy) -> dict[str, object]:
    """What the socket on `lo` has been through."""
    return {
        "renewals": proxy.renewals,
        "last_error": proxy.last_error,
        "initiations_sent_again": proxy.initiations.sent_again,
    }


def merge_drops(*parts: Mapping[str, int]) -> dict[str, int]:
    """Frames lost, by reason, summed over all the places that lose some."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {reason: count for reason, count in sorted(total.items()) if count}
