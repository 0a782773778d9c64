"""How long a mesh waits before it gives a path up, or tries for a better one: what an operator may set.

All else that is timed in `paths` belongs to how NATs, WireGuard and networks behave, and has its home beside
what it is for.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd import marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Durations in seconds."""

    silent_s: float = 3.0
    """Without an answer to any Ping on a direct path, while something is sent: then the relay."""

    recheck_cap_s: float = 120.0
    """Between two rounds of checks of a relayed peer at most: the waits double from `rounds.AGAIN_S` to
    this. A cable that was pulled is back in seconds or in hours."""

    try_s: float = 10.0
    """For the handshake of a peer whose agent isn't ours, on a direct endpoint: then the relay. By default
    two more initiations after the first: REKEY_TIMEOUT is 5 s (WireGuard paper, section 6)."""

    fresh_handshake_s: float = marks.HANDSHAKE_FRESH_S
    """A peer whose last handshake is older has no session."""


USUAL = Patience()
