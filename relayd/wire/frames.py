"""Part 1 of the relay protocol: one frame at a time. (Runs of frames, where speed counts: `runs`.)

frame := length:u32be  type:u8  body:(length-1 bytes)

type  name          body                         direction
0x01  Register      key[32]                      agent -> relay, first
0x02  Data          key[32] payload              both; the relay turns destination into sender
0x03  Keepalive     empty                        agent -> relay, every 25 s, never answered
0x04  NATProbe      ip[4] port:u16               agent -> relay
0x05  BimodalHint   key[32]                      both, as Data
0x06  RelayProbe    token[8]                     relay -> agent, echoed
0x10-0x13  (WireKube's forwarder and ingress control: not ours, never reused)
0x20  ExternalData  token[8] alen:u16 addr[alen] payload
0x21-0x23  (WireKube's cluster port: not ours, never reused)
0x30-0x37  (Part 2: identity and liveness)
0xFF  Error         UTF-8 text                   relay -> agent
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address
from struct import Struct

from relayd.errors import RemoteProtocolError
from relayd.keys import KEY_BYTES, PublicKey

LENGTH_BYTES = 4
HEADER = Struct(">IB")
HEADER_BYTES = HEADER.size
"""Bytes before the body: the length and the type."""

KEYED_BYTES = HEADER_BYTES + KEY_BYTES
"""Bytes before the payload of a Data frame: length, type and key."""

MAX_LENGTH = 65536
"""Largest value of the length field (type and body), as in every relay in the field."""

MAX_PAYLOAD = MAX_LENGTH - 1 - KEY_BYTES
"""Largest datagram that one Data frame carries, in bytes (65,503)."""

NAT_OPEN = b"WIREKUBE_NAT_OPEN"
"""A UDP datagram from an agent to the relay's UDP port: it opens the agent's NAT, and is never answered."""

NAT_VERIFY_DATAGRAM = b"WIREKUBE_NAT_VERIFY"
"""The relay's first answer to NATProbe, from that very port: it comes through any NAT that was opened so."""

NAT_PROBE_DATAGRAM = b"WIREKUBE_NAT_PROBE"
"""Its second, from a fresh port: it comes through unless filtering is by port too (RFC 4787, section 5)."""

MAX_ERROR_BYTES = 512
"""Text of an Error frame is cut here: it is meant for a log line."""


class FrameType(IntEnum):
    """The type byte."""

    REGISTER = 0x01
    DATA = 0x02
    KEEPALIVE = 0x03
    NAT_PROBE = 0x04
    BIMODAL_HINT = 0x05
    RELAY_PROBE = 0x06
    EXTERNAL_DATA = 0x20
    ERROR = 0xFF


# The scanners meet these once a frame: an enum member costs an attribute look-up that an int doesn't.
REGISTER = int(FrameType.REGISTER)
DATA = int(FrameType.DATA)
KEEPALIVE = int(FrameType.KEEPALIVE)
NAT_PROBE = int(FrameType.NAT_PROBE)
BIMODAL_HINT = int(FrameType.BIMODAL_HINT)
RELAY_PROBE = int(FrameType.RELAY_PROBE)
ERROR = int(FrameType.ERROR)


def encode(kind: int, body: bytes = b"") -> bytes:
    """One whole frame. Raises ValueError when the body is longer than a frame can be."""
    if len(body) >= MAX_LENGTH:
        raise ValueError(f"a body of {len(body)} bytes does not fit a frame")
    return HEADER.pack(len(body) + 1, kind) + body


def encode_register(key: PublicKey) -> bytes:
    """The agent's first frame."""
    return encode(REGISTER, key.raw)


def encode_data(key: PublicKey, payload: bytes) -> bytes:
    """A datagram for `key` (towards the relay) or from it (towards an agent)."""
    return encode(DATA, key.raw + payload)


def encode_hint(key: PublicKey) -> bytes:
    """A BimodalHint for `key`, or from it."""
    return encode(BIMODAL_HINT, key.raw)


RELAY_PROBE_TOKEN_BYTES = 8

KEEPALIVE_FRAME = encode(KEEPALIVE)


def encode_relay_probe(token: bytes) -> bytes:
    """The relay's question "are you there?"; the same frame is its answer."""
    if len(token) != RELAY_PROBE_TOKEN_BYTES:
        raise ValueError(f"a probe's token has {RELAY_PROBE_TOKEN_BYTES} bytes, not {len(token)}")
    return encode(RELAY_PROBE, token)


def encode_error(text: str) -> bytes:
    """What the relay says before it closes. Cut to MAX_ERROR_BYTES, on a character's edge."""
    return encode(ERROR, text.encode()[:MAX_ERROR_BYTES].decode(errors="ignore").encode())


@dataclass(frozen=True, slots=True)
class NatProbe:
    """Where an agent asks to be probed: an IPv4 address and a UDP port. Untrusted."""

    address: IPv4Address
    port: int

    def encode(self) -> bytes:
        """The whole frame."""
        return encode(NAT_PROBE, self.address.packed + self.port.to_bytes(2, "big"))


def decode_register_untrusted(body: bytes) -> PublicKey:
    """The key in a Register frame's body. Raises RemoteProtocolError when it isn't 32 bytes."""
    if len(body) != KEY_BYTES:
        raise RemoteProtocolError(f"Register carries {len(body)} bytes, a key has {KEY_BYTES}")
    return PublicKey(bytes(body))


def decode_nat_probe_untrusted(body: bytes) -> NatProbe:
    """A NATProbe's body; bytes past the sixth are ignored, as the relays in the field do.

    Raises RemoteProtocolError when it is shorter than that.
    """
    if len(body) < 6:
        raise RemoteProtocolError(f"NATProbe carries {len(body)} bytes, an address and a port have 6")
    return NatProbe(IPv4Address(bytes(body[:4])), int.from_bytes(body[4:6], "big"))


def decode_error_untrusted(body: bytes) -> str:
    """The text of an Error frame, printable, cut to MAX_ERROR_BYTES. Never raises: it only goes to a log."""
    text = bytes(body[:MAX_ERROR_BYTES]).decode(errors="replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
