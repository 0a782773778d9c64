"""What comes in of sealed messages, before anybody acts on it: whose it is, and whether it is too much.

In this order, so that a stranger costs a look into a table and no cryptography:

    unknown_key   claims to be from a key that is no peer's
    malformed     doesn't open, was turned back on us, or holds what no peer of this version says
    rate          that peer's MESSAGES_PER_S are used up, of this way: each has its own, as a relay that sends
                  recorded messages all the time must not keep the peer from being heard directly

What a peer didn't make isn't counted against it: its key is no secret, and whoever knows it could use up its
rate with some datagrams a second, and keep every direct path of its from being found. To see that a message
doesn't open costs 5 us, less than to receive it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relayd.errors import RemoteProtocolError
from relayd.keys import PrivateKey, PublicKey
from relayd.token_bucket import TokenBucket
from relayd.wire.boxes import NONCE_BYTES
from relayd.wire.sealed import Channel, sender_untrusted
from relayd.wire.sealed_messages import Message

MESSAGES_PER_S = 20.0
"""From one peer: as many Pings as its pacing of 50 ms allows."""

MESSAGES_BURST = 60.0
"""At once: the Pings of a round of checks meet the Pongs to ours and the maps around them."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A message that `peer` made (maybe long ago)."""

    peer: PublicKey
    message: Message


class _Peer:
    __slots__ = ("channel", "direct", "relayed")

    def __init__(self) -> None:
        self.channel: Channel | None = None
        self.direct = TokenBucket(rate_per_s=MESSAGES_PER_S, burst=MESSAGES_BURST)
        self.relayed = TokenBucket(rate_per_s=MESSAGES_PER_S, burst=MESSAGES_BURST)


class SealedInbox:
    """The peers of one key, and what seals and opens for each."""

    def __init__(self, own: PrivateKey, *, draw: Callable[[int], bytes]) -> None:
        """`draw` gives so many random bytes: the nonces."""
        self._own, self._draw = own, draw
        self._peers: dict[PublicKey, _Peer] = {}
        self.drops: Counter[str] = Counter()
        """Messages that nobody gets to see, by reason."""

    def set_peers(self, keys: Iterable[PublicKey]) -> None:
        """The peers from now on; those that stay keep their counters."""
        self._peers = {key: self._peers.get(key) or _Peer() for key in keys}

    def seal(self, peer: PublicKey, message: Message) -> bytes:
        """The datagram for `peer`. Raises KeyError for none of the peers, RemoteProtocolError for a key that
        nobody can hold."""
        return self._channel(peer, self._peers[peer]).seal(message, self._draw(NONCE_BYTES))

    def open_untrusted(self, datagram: bytes, now: float, *, relayed: bool = False) -> Opened | None:
        """What a datagram says. None: it is dropped, and counted. `now` is monotonic seconds. `relayed`:
        whether a relay brought it."""
        try:
            sender = sender_untrusted(datagram)
            peer = self._peers.get(sender)
            if peer is None:
                self.drops["unknown_key"] += 1
                return None
            message = self._channel(sender, peer).open_untrusted(datagram)
        except RemoteProtocolError:
            self.drops["malformed"] += 1
            return None
        if not (peer.relayed if relayed else peer.direct).try_take(1.0, now):
            self.drops["rate"] += 1
            return None
        return Opened(sender, message)

    def _channel(self, key: PublicKey, peer: _Peer) -> Channel:
        if peer.channel is None:
            peer.channel = Channel.between(self._own, key)
        return peer.channel
