"""WireGuard's handshake initiations that nobody has answered yet: kept, and sent again when that may help.

An initiation that is lost costs WireGuard's own wait: it sends the next one after 5 s (REKEY_TIMEOUT in the
kernel's drivers/net/wireguard/messages.h). Most are lost for a reason that the agent sees end: the link to
the relay is down, or the peer's agent isn't at the relay yet. When the link comes up, or the peer says a
word, the same initiation goes again. A peer that has it already takes it for a replay and drops it (the
timestamp in it isn't newer), so one too many does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

from relayd.agent.proxy_needs import SendFrames
from relayd.wire.frames import KEYED_BYTES

INITIATION_BYTES: Final = 148
"""Of a handshake initiation (WireGuard's paper, section 5.4.2). No transport packet is that long: theirs are
multiples of 16."""

REKEY_TIMEOUT_S: Final = 5.0
"""After it WireGuard makes a new initiation, and the old one is of no use."""

AGAIN_S: Final = 0.25
"""Between two sendings again of one initiation: a peer's words come in bunches."""

_TYPE_INITIATION = 1


class Counted(Protocol):
    """What is asked of a peer (`relayed_peer.RelayedPeer`)."""

    @property
    def rx_frames(self) -> int:
        """What came from it through relays so far."""


@dataclass(slots=True)
class _Held:
    frame: bytes
    at: float
    peer: Counted
    rx_frames: int
    again_at: float = -inf


class Initiations:
    """The last one to each peer, for as long as WireGuard waits for its answer. `now`: monotonic seconds."""

    def __init__(self, send_frames: SendFrames) -> None:
        self._send_frames = send_frames
        self._held: dict[bytes, _Held] = {}
        self.sent_again = 0
        """How often one was sent again."""

    def note(self, key: bytes, frame: memoryview, peer: Counted, now: float) -> None:
        """A Data frame to `key` leaves whose payload has an initiation's length. It may get lost."""
        if frame[KEYED_BYTES] != _TYPE_INITIATION:
            return
        held = self._held
        held.pop(key, None)  # the oldest stands first
        held[key] = _Held(bytes(frame), now, peer, peer.rx_frames)
        while now - held[oldest := next(iter(held))].at >= REKEY_TIMEOUT_S:
            del held[oldest]

    def again(self, key: bytes, now: float) -> None:
        """The peer has shown that it is there, or the way to it is another: send what it hasn't answered.

        Anything that came from it since the initiation left counts as its answer.
        """
        held = self._held.get(key)
        if held is None:
            return
        if now - held.at >= REKEY_TIMEOUT_S or held.peer.rx_frames != held.rx_frames:
            del self._held[key]
        elif now - held.again_at >= AGAIN_S:
            held.again_at = now
            self.sent_again += 1
            self._send_frames((memoryview(held.frame),), len(held.frame))

    def all_again(self, now: float) -> None:
        """A relay let us in: send all that wasn't answered."""
        for key in list(self._held):
            self.again(key, now)
