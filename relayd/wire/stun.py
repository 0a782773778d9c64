"""STUN's Binding, as far as finding out about NATs needs it: RFC 8489, and RFC 5780's attributes.

    header      type:u16  length:u16  cookie:u32=0x2112A442  transaction[12]
    attribute   type:u16  length:u16  value, padded to a multiple of 4

    0x0001 Binding request   0x0011 indication   0x0101 success   0x0111 error     (RFC 8489, section 5)
    0x0001 MAPPED-ADDRESS    0x0009 ERROR-CODE   0x000A UNKNOWN-ATTRIBUTES   0x0020 XOR-MAPPED-ADDRESS
    0x8028 FINGERPRINT                                                              (RFC 8489, section 14)
    0x0003 CHANGE-REQUEST    0x0027 RESPONSE-PORT
    0x802B RESPONSE-ORIGIN   0x802C OTHER-ADDRESS                                  (RFC 5780, section 7)

Attributes below 0x8000 must be understood by who gets them; the others may be skipped.

(Our own and not aioice's `stun`: that one leaks struct.error and more for malformed input, and decodes each
attribute into objects, which a relay that answers 50,000 requests a second and more can't afford.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from zlib import crc32

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.wire.port_messages import STUN_COOKIE

HEADER: Final = struct.Struct("!HHI12s")
HEADER_BYTES: Final = HEADER.size
TRANSACTION_BYTES: Final = 12
COOKIE: Final = STUN_COOKIE.to_bytes(4, "big")

BINDING_REQUEST: Final = 0x0001
BINDING_INDICATION: Final = 0x0011
BINDING_SUCCESS: Final = 0x0101
BINDING_ERROR: Final = 0x0111

MAPPED_ADDRESS: Final = 0x0001
CHANGE_REQUEST: Final = 0x0003
CHANGED_ADDRESS: Final = 0x0005
USERNAME: Final = 0x0006
MESSAGE_INTEGRITY: Final = 0x0008
ERROR_CODE: Final = 0x0009
UNKNOWN_ATTRIBUTES: Final = 0x000A
REALM: Final = 0x0014
NONCE: Final = 0x0015
MESSAGE_INTEGRITY_SHA256: Final = 0x001C
XOR_MAPPED_ADDRESS: Final = 0x0020
PADDING: Final = 0x0026
RESPONSE_PORT: Final = 0x0027
FINGERPRINT: Final = 0x8028
RESPONSE_ORIGIN: Final = 0x802B
OTHER_ADDRESS: Final = 0x802C

COMPREHENSION_OPTIONAL: Final = 0x8000

CHANGE_IP: Final = 0x04
CHANGE_PORT: Final = 0x02

BAD_ATTRIBUTES: Final = 420
"""Error code "Unknown Attribute" (RFC 8489, section 14.8)."""

MAX_BYTES: Final = 2048
"""Longest message looked at: RFC 5780's PADDING may fill a packet of 1500 bytes, and nothing is longer."""

_ATTRIBUTE = struct.Struct("!HH")
_FINGERPRINT_XOR: Final = 0x5354554E
_FAMILIES = {1: 4, 2: 16}
"""Address family -> bytes of address (RFC 8489, section 14.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A well-formed STUN message. `attributes` are in order, without FINGERPRINT, which was right if
    there."""

    kind: int
    transaction: bytes
    attributes: tuple[tuple[int, bytes], ...]
    fingerprint: bool

    def find(self, wanted: int) -> bytes | None:
        """The first attribute of that type."""
        return next((value for kind, value in self.attributes if kind == wanted), None)


def encode(
    kind: int, transaction: bytes, attributes: Iterable[tuple[int, bytes]], *, fingerprint: bool
) -> bytes:
    """A message; with `fingerprint` that attribute comes last (RFC 8489, section 14.7)."""
    body = b"".join(
        _ATTRIBUTE.pack(name, len(value)) + value + bytes(-len(value) % 4) for name, value in attributes
    )
    length = len(body) + 8 * fingerprint
    message = HEADER.pack(kind, length, STUN_COOKIE, transaction) + body
    if fingerprint:
        message += _ATTRIBUTE.pack(FINGERPRINT, 4) + struct.pack("!I", crc32(message) ^ _FINGERPRINT_XOR)
    return message


def decode_untrusted(datagram: bytes) -> Message:
    """A message from a stranger. Raises RemoteProtocolError saying what is wrong with it."""
    if not HEADER_BYTES <= len(datagram) <= MAX_BYTES:
        raise RemoteProtocolError(f"a STUN message of {len(datagram)} bytes")
    kind, length, cookie, transaction = HEADER.unpack_from(datagram)
    if cookie != STUN_COOKIE or kind & 0xC000:
        raise RemoteProtocolError("not a STUN message")
    if length != len(datagram) - HEADER_BYTES:
        raise RemoteProtocolError("a STUN message whose length is not the datagram's")
    attributes: list[tuple[int, bytes]] = []
    fingerprint = False
    at = HEADER_BYTES
    while at < len(datagram):
        if fingerprint:
            raise RemoteProtocolError("a STUN attribute after FINGERPRINT")
        if at + _ATTRIBUTE.size > len(datagram):
            raise RemoteProtocolError("a STUN attribute without a header")
        name, size = _ATTRIBUTE.unpack_from(datagram, at)
        start, end = at + _ATTRIBUTE.size, at + _ATTRIBUTE.size + size
        if end > len(datagram):
            raise RemoteProtocolError("a STUN attribute longer than its message")
        if name == FINGERPRINT:
            if datagram[start:end] != struct.pack("!I", crc32(datagram[:at]) ^ _FINGERPRINT_XOR):
                raise RemoteProtocolError("a STUN message with a wrong fingerprint")
            fingerprint = True
        else:
            attributes.append((name, datagram[start:end]))
        at = end + -size % 4
    if at != len(datagram):
        raise RemoteProtocolError("a STUN attribute without its padding")
    return Message(kind=kind, transaction=transaction, attributes=tuple(attributes), fingerprint=fingerprint)


# Addresses --------------------------------------------------------------------------------------------------


def encode_address(endpoint: Endpoint) -> bytes:
    """The value of MAPPED-ADDRESS and its like (RFC 8489, section 14.1)."""
    family = 1 if endpoint.address.version == 4 else 2
    return struct.pack("!BBH", 0, family, endpoint.port) + endpoint.address.packed


def decode_address_untrusted(value: bytes) -> Endpoint:
    """Raises RemoteProtocolError."""
    if len(value) < 4 or _FAMILIES.get(value[1]) != len(value) - 4:
        raise RemoteProtocolError("a STUN address of an unknown kind")
    packed = value[4:]
    address = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    return Endpoint(address, int.from_bytes(value[2:4], "big"))


def xored(value: bytes, transaction: bytes) -> bytes:
    """XOR-MAPPED-ADDRESS's value from MAPPED-ADDRESS's, and back (RFC 8489, section 14.2)."""
    key = bytes(2) + COOKIE[:2] + COOKIE + transaction
    return bytes(one ^ other for one, other in zip(value, key, strict=False))


# What a client says and hears -------------------------------------------------------------------------------


def encode_request(
    transaction: bytes, *, change_ip: bool = False, change_port: bool = False, response_port: int = 0
) -> bytes:
    """A Binding request. Without a wish for another source it is the shortest there is.

    `response_port`: where the answer is to go instead of the port that the request comes from; 0: there.
    """
    flags = CHANGE_IP * change_ip + CHANGE_PORT * change_port
    attributes = [(CHANGE_REQUEST, flags.to_bytes(4, "big"))] if flags else []
    if response_port:
        attributes.append((RESPONSE_PORT, response_port.to_bytes(2, "big") + bytes(2)))
    return encode(BINDING_REQUEST, transaction, attributes, fingerprint=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingAnswer:
    """What a server said. `mapped` is where it saw the request come from, None in an error; `other` its
    second address and port (RFC 5780), if it has one; `changed` is what classic servers (RFC 3489) call
    that. `error` is 0 for a success."""

    transaction: bytes
    mapped: Endpoint | None
    other: Endpoint | None
    error: int
    changed: Endpoint | None = None


def decode_answer_untrusted(datagram: bytes) -> BindingAnswer:
    """A Binding success or error. Raises RemoteProtocolError for all else."""
    message = decode_untrusted(datagram)
    other, changed = message.find(OTHER_ADDRESS), message.find(CHANGED_ADDRESS)
    mapped: Endpoint | None = None
    error = 0
    if message.kind == BINDING_SUCCESS:
        if (value := message.find(XOR_MAPPED_ADDRESS)) is not None:
            mapped = decode_address_untrusted(xored(value, message.transaction))
        elif (value := message.find(MAPPED_ADDRESS)) is not None:
            mapped = decode_address_untrusted(value)
        else:
            raise RemoteProtocolError("a STUN answer without an address")
    elif message.kind == BINDING_ERROR:
        code = message.find(ERROR_CODE)
        if code is None or len(code) < 4:
            raise RemoteProtocolError("a STUN error without a code")
        error = (code[2] & 7) * 100 + code[3]
    else:
        raise RemoteProtocolError(f"a STUN message of type 0x{message.kind:04x} where an answer was expected")
    return BindingAnswer(
        transaction=message.transaction,
        mapped=mapped,
        other=decode_address_untrusted(other) if other is not None else None,
        error=error,
        changed=decode_address_untrusted(changed) if changed is not None else None,
    )


# What a server says -----------------------------------------------------------------------------------------

_KNOWN = {
    CHANGE_REQUEST,
    RESPONSE_PORT,
    PADDING,  # RFC 5780, section 7.6: to be answered with as much, which would be a way to amplify; it isn't
    # Credentials that nobody asked for are ignored (RFC 8489, section 9).
    *(USERNAME, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, REALM, NONCE),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request, whether it is to come from the server's other port, from its other address,
    and to which port it goes instead of the one that was asked from (0: to that)."""

    data: bytes
    from_other_port: bool = False
    from_other_address: bool = False
    to_port: int = 0


def answer_untrusted(
    request: bytes, source: Endpoint, *, local: Endpoint, other: Endpoint | None
) -> Reply | None:
    """What a server answers that got `request` from `source` at `local`; `other` is its second port, if any,
    and with another address than `local`'s its second address too: then there is a socket at each of the
    four.

    None: nothing is to be answered (an indication). Raises RemoteProtocolError for what is no Binding
    request, or a malformed one: it is ignored.

    It says what STUN needs and no more, as the source may be forged: the address, the second port, and what
    RFC 5780's own tests ask for.
    """
    message = decode_untrusted(request)
    if message.kind == BINDING_INDICATION:
        return None
    if message.kind != BINDING_REQUEST:
        raise RemoteProtocolError(f"a STUN message of type 0x{message.kind:04x}, no Binding request")
    change = message.find(CHANGE_REQUEST)
    flags = change[3] if change is not None and len(change) == 4 else 0
    unknown = sorted(
        {name for name, _ in message.attributes if name < COMPREHENSION_OPTIONAL and name not in _KNOWN}
    )
    two_addresses = other is not None and other.address != local.address
    if (
        (change is not None and len(change) != 4)
        or (flags & CHANGE_IP and not two_addresses)
        or (flags & CHANGE_PORT and other is None)
    ):
        # What can't be done is said so (RFC 5780, section 6.1).
        unknown.append(CHANGE_REQUEST)
    # To another port of the very address that asks: no more than a forged source port could have had.
    port = message.find(RESPONSE_PORT)
    to_port = int.from_bytes(port[:2], "big") if port is not None else 0
    if port is not None and (len(port) not in (2, 4) or not to_port):
        unknown.append(RESPONSE_PORT)
    if unknown:
        refusal = (
            (ERROR_CODE, bytes((0, 0, BAD_ATTRIBUTES // 100, BAD_ATTRIBUTES % 100))),
            (UNKNOWN_ATTRIBUTES, b"".join(name.to_bytes(2, "big") for name in unknown)),
        )
        return Reply(encode(BINDING_ERROR, message.transaction, refusal, fingerprint=message.fingerprint))
    attributes = [(XOR_MAPPED_ADDRESS, xored(encode_address(source), message.transaction))]
    if other is not None:
        attributes.append((OTHER_ADDRESS, encode_address(other)))
    other_port, other_address = bool(flags & CHANGE_PORT), bool(flags & CHANGE_IP)
    if change is not None:
        there = other if other is not None else local
        origin = Endpoint(
            there.address if other_address else local.address, there.port if other_port else local.port
        )
        attributes.append((RESPONSE_ORIGIN, encode_address(origin)))
    answer = encode(BINDING_SUCCESS, message.transaction, attributes, fingerprint=message.fingerprint)
    return Reply(answer, other_port, other_address, to_port)
