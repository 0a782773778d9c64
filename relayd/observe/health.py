"""Whether a process does what it is there for, from its own status. Pure.

`/healthz` says whether it lives, `/readyz` whether it is of use; `relayd status` and the page show the same
words as `/readyz`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MOST_PEERS_NAMED = 5


def not_ready(summary: Mapping[str, Any], peers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why it isn't ready, a sentence each; empty: it is.

    A relay is ready while it takes agents in. An agent is when its interface is there and every peer has a
    way: one whose peers are all direct needs no relay. Where no relay is configured, a peer that isn't direct
    has none, and that is no fault of the agent's: an update of a cluster mustn't wait for it.
    """
    reasons = []
    if summary.get("draining"):
        reasons.append("draining: agents are asked to go to another relay")
    if summary.get("admission_awaited"):
        reasons.append(f"who is let in isn't known yet: {summary['admission_awaited']}")
    if summary.get("interface_problem"):
        reasons.append(f"interface {summary['interface']}: {summary['interface_problem']}")
    has_relay = (summary.get("relay") or {}).get("state") != "none"
    lost = [str(peer["key"])[:8] for peer in peers if has_relay and peer.get("path") == "none"]
    if lost:
        named = ", ".join(lost[:MOST_PEERS_NAMED])
        more = len(lost) - MOST_PEERS_NAMED
        rest = f" and {more} more" if more > 0 else ""
        reasons.append(f"no way to {len(lost)} peer{'s' * (len(lost) != 1)}: {named}{rest}")
    return reasons
