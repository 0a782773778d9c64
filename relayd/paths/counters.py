"""What the kernel's counters of a peer say: when it last sent, and when it heard what the relay didn't
bring."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from relayd.endpoints import Endpoint

ACTIVE_FOR_S = 3.0
"""A path is in use for so long after the kernel sent or received something: three reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelView:
    """A peer as WireGuard has it at one moment, and what the proxy gave it."""

    endpoint: Endpoint | None
    """The direct one; None: the proxy's, or none."""

    session: bool
    """Whether the last handshake is less than three minutes old."""

    rx_bytes: int
    tx_bytes: int
    relayed_bytes: int
    """What the proxy has handed over for this peer, in payload bytes, as WireGuard counts them."""


class Counters:
    """Follows one peer's counters from read to read."""

    def __init__(self) -> None:
        self.sent_at = -inf
        self.heard_at = -inf
        self._last: KernelView | None = None
        self._quiet = False
        """Whether the relay brought nothing between the last two reads."""
        self._direct_bytes = 0
        """The most that WireGuard was seen to have received without the relay."""

    def saw(self, view: KernelView, now: float) -> None:
        """A read. WireGuard counts a relayed packet a moment after the proxy has, so that what is left when
        the relay's are taken off is never too much; when it rises, something came directly."""
        last, self._last = self._last, view
        direct = view.rx_bytes - view.relayed_bytes
        if last is None or view.rx_bytes < last.rx_bytes or view.relayed_bytes < last.relayed_bytes:
            self._direct_bytes = direct  # first sight, or the interface or the proxy are new
            return
        if view.tx_bytes > last.tx_bytes:
            self.sent_at = now
        quiet = view.relayed_bytes == last.relayed_bytes
        if direct > self._direct_bytes or (quiet and view.rx_bytes > last.rx_bytes and self._quiet):
            self.heard_at = now
        if quiet and self._quiet:
            # Nothing is under way any more: what WireGuard refused of the relay's is not owed for ever.
            self._direct_bytes = direct
        self._direct_bytes = max(self._direct_bytes, direct)
        self._quiet = quiet

    def active(self, now: float) -> bool:
        """Whether the path is in use, by what the kernel was seen to send and receive."""
        return now - max(self.sent_at, self.heard_at) < ACTIVE_FOR_S
