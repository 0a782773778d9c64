"""Part 3, the envelope: sealed messages between two agents, over any path.

message := magic[8] sender_key[32] nonce[24] box(plaintext)        (plaintext: `sealed_messages`)

They travel as the payload of a Data frame, through any relay, or as a UDP datagram from and to WireGuard's
own port. WireGuard's messages begin with 1 to 4 and three zero bytes, STUN's have 0x2112A442 at offset 4:
the three can't be confused, and WireGuard drops one of ours without a word.

The box is between the two nodes' WireGuard keys, so both of them can have made it (`boxes`). The last bit of
the nonce says which: 1, if it is the holder of the greater key (compared as bytes). Else whoever sees a Ping
could put the receiver's key in front, send it back to where it came from, and be taken for the peer.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd.errors import RemoteProtocolError
from relayd.keys import KEY_BYTES, PrivateKey, PublicKey
from relayd.wire.boxes import NONCE_BYTES, TAG_BYTES, open_untrusted, seal, shared_key_untrusted
from relayd.wire.port_messages import SEALED_MAGIC, is_sealed
from relayd.wire.sealed_messages import Message, Ping, decode_untrusted, encode

HEADER_BYTES = len(SEALED_MAGIC) + KEY_BYTES + NONCE_BYTES
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES + 1
"""What a message is longer than its body."""

MAX_BYTES = 16 << 10
"""A full-size Ping in a network with jumbo frames (9,000 bytes), and to spare."""

WIREGUARD_OVERHEAD_BYTES = 32
"""A data message is so much longer than the packet in it (WireGuard's paper, section 5.4.6)."""


def sender_untrusted(datagram: bytes) -> PublicKey:
    """Whose message it claims to be: to be looked up before anything is computed.

    Raises RemoteProtocolError for what has another beginning or can't have a message's size.
    """
    if not is_sealed(datagram):
        raise RemoteProtocolError("not a sealed message")
    if not OVERHEAD_BYTES <= len(datagram) <= MAX_BYTES:
        raise RemoteProtocolError(f"a sealed message of {len(datagram)} bytes")
    return PublicKey(bytes(datagram[len(SEALED_MAGIC) : len(SEALED_MAGIC) + KEY_BYTES]))


def full_size_body_bytes(mtu: int) -> int:
    """A Ping's body when the whole message is to be as long as WireGuard's datagram for a packet of `mtu`."""
    return max(Ping(b"").body_bytes, mtu + WIREGUARD_OVERHEAD_BYTES - OVERHEAD_BYTES)


@dataclass(frozen=True, slots=True)
class Channel:
    """What seals for one peer, and opens what it sealed."""

    own: PublicKey
    peer: PublicKey
    shared: bytes

    @classmethod
    def between(cls, own: PrivateKey, peer: PublicKey) -> Channel:
        """Costs 40 us: made once a peer. Raises RemoteProtocolError for a key that nobody can hold."""
        return cls(own.public(), peer, shared_key_untrusted(own, peer))

    def seal(self, message: Message, nonce: bytes) -> bytes:
        """The whole datagram. `nonce`: NONCE_BYTES at random, of which one bit is set as it must be.

        Raises ValueError for a field that the format has no room for.
        """
        last = nonce[-1] & ~1 | (self.own.raw > self.peer.raw)
        nonce = nonce[:-1] + bytes([last])
        return SEALED_MAGIC + self.own.raw + nonce + seal(self.shared, nonce, encode(message))

    def open_untrusted(self, datagram: bytes) -> Message:
        """What the peer says in it. The caller has asked `sender_untrusted`, and it is this peer.

        Raises RemoteProtocolError when the peer didn't make it, or made it wrong.
        """
        nonce = datagram[HEADER_BYTES - NONCE_BYTES : HEADER_BYTES]
        if nonce[-1] & 1 != (self.peer.raw > self.own.raw):
            raise RemoteProtocolError("a message of our own, turned back on us")
        return decode_untrusted(open_untrusted(self.shared, nonce, datagram[HEADER_BYTES:]))
