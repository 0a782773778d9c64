"""Asking a gateway for a port mapping: PCP (RFC 6887) and NAT-PMP (RFC 6886), both on its UDP port 5351.
Pure.

    NAT-PMP     version:u8=0  op:u8=1 (UDP)  0:u16  internal:u16  external:u16  lifetime_s:u32
                answers: 0  129  result:u16  epoch:u32  internal:u16  external:u16  lifetime_s:u32
                op 0 alone asks for the outer address: 0  128  result:u16  epoch:u32  address[4]
    PCP         version:u8=2  op:u8=1 (MAP)  0:u16  lifetime_s:u32  own address[16]
                nonce[12]  protocol:u8=17  0[3]  internal:u16  external:u16  external address[16]
                answers: the same with op 129, 0:u8, result:u8 in place of the third and fourth byte, and
                epoch:u32 0[12] in place of the own address

A gateway that speaks NAT-PMP alone answers PCP with version 0 and result 1: so PCP is asked first.
(Our own: no library for these two is kept, and they are two structs.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError

PORT: Final = 5351
MAX_BYTES: Final = 1100
"""RFC 6887, section 7: no message is longer."""

NONCE_BYTES: Final = 12

_UDP: Final = 17
_NAT_PMP, _PCP = 0, 2
_ANSWER: Final = 0x80
_ADDRESS, _MAP = 0, 1
_UNSUPPORTED_VERSION: Final = 1

_PMP_REQUEST = struct.Struct("!BBHHHI")
_PMP_ADDRESS = struct.Struct("!BBHI4s")
_PMP_ANSWER = struct.Struct("!BBHIHHI")
_PCP_HEADER = struct.Struct("!BBHI16s")
_PCP_ANSWER_HEADER = struct.Struct("!BBBBII12x")
_PCP_MAP = struct.Struct("!12sB3xHH16s")

_PMP_RESULTS = {
    1: "it speaks another version",
    2: "it is switched off, or not allowed",
    3: "the gateway has no address itself",
    4: "it has no room for more",
    5: "it can't do that",
}
"""RFC 6886, section 3.5."""

_PCP_RESULTS = {
    1: "it speaks another version",
    2: "it isn't allowed",
    3: "it calls the request malformed",
    4: "it can't do that",
    5: "it knows no such option",
    6: "it calls an option malformed",
    7: "its network failed",
    8: "it has no room for more",
    9: "it doesn't know the protocol",
    10: "this host has too many mappings",
    11: "it can't give that outer address",
    12: "there is a NAT between this host and the gateway",
    13: "that is another host's",
}
"""RFC 6887, section 7.4."""


class RefusedError(Exception):
    """The gateway said no; the text says why."""


class OtherVersionError(RefusedError):
    """The gateway doesn't speak this one: another may do."""


@dataclass(frozen=True, slots=True)
class PortMapping:
    """What the gateway gave. NAT-PMP tells the address apart: `external` has the port alone then."""

    port: int
    lifetime_s: int
    address: IPv4Address | None = None

    def endpoint(self, address: IPv4Address) -> Endpoint:
        """Where strangers reach it; `address` where the answer had none."""
        return Endpoint(self.address or address, self.port)


def pmp_address_request() -> bytes:
    """Asks a NAT-PMP gateway for its outer address."""
    return bytes((_NAT_PMP, _ADDRESS))


def pmp_map_request(internal: int, external: int, lifetime_s: int) -> bytes:
    """Asks for `external`, or any port, to be mapped to our own `internal`. Lifetime 0 takes it away."""
    return _PMP_REQUEST.pack(_NAT_PMP, _MAP, 0, internal, external, lifetime_s)


def pcp_map_request(nonce: bytes, own: IPv4Address, internal: int, external: int, lifetime_s: int) -> bytes:
    """As `pmp_map_request`. `own` is the address that the request comes from: the gateway compares it, and so
    finds out about a NAT between us."""
    head = _PCP_HEADER.pack(_PCP, _MAP, 0, lifetime_s, _mapped(own))
    return head + _PCP_MAP.pack(nonce, _UDP, internal, external, _mapped(IPv4Address(0)))


def pmp_address_answer_untrusted(datagram: bytes) -> IPv4Address:
    """Raises RemoteProtocolError for what is no such answer, RefusedError for a refusal."""
    _check_pmp(datagram, _ADDRESS)
    if len(datagram) != _PMP_ADDRESS.size:
        raise RemoteProtocolError(f"a NAT-PMP address of {len(datagram)} bytes")
    return IPv4Address(_PMP_ADDRESS.unpack(datagram)[4])


def pmp_map_answer_untrusted(datagram: bytes, internal: int) -> PortMapping:
    """Raises as `pmp_address_answer_untrusted`; also when it is about another port."""
    _check_pmp(datagram, _MAP)
    if len(datagram) != _PMP_ANSWER.size:
        raise RemoteProtocolError(f"a NAT-PMP mapping of {len(datagram)} bytes")
    *_, port, external, lifetime_s = _PMP_ANSWER.unpack(datagram)
    if port != internal or not external:
        raise RemoteProtocolError("a NAT-PMP mapping of another port")
    return PortMapping(external, lifetime_s)


def _check_pmp(datagram: bytes, operation: int) -> None:
    if len(datagram) < 8 or datagram[0] != _NAT_PMP or datagram[1] != _ANSWER | operation:
        raise RemoteProtocolError("no NAT-PMP answer to what was asked")
    result = int.from_bytes(datagram[2:4], "big")
    if result == _UNSUPPORTED_VERSION:
        raise OtherVersionError(_PMP_RESULTS[result])
    if result:
        raise RefusedError(_PMP_RESULTS.get(result, f"NAT-PMP result {result}"))


def pcp_map_answer_untrusted(datagram: bytes, nonce: bytes, internal: int) -> PortMapping:
    """Raises RemoteProtocolError for what is no answer to that request, OtherVersionError where the gateway
    speaks NAT-PMP alone, RefusedError for another refusal."""
    if len(datagram) >= 8 and datagram[0] == _NAT_PMP and datagram[1] & _ANSWER:
        raise OtherVersionError("it speaks NAT-PMP alone")
    if len(datagram) < _PCP_ANSWER_HEADER.size or datagram[0] != _PCP or datagram[1] != _ANSWER | _MAP:
        raise RemoteProtocolError("no PCP answer to what was asked")
    _, _, _, result, lifetime_s, _ = _PCP_ANSWER_HEADER.unpack_from(datagram)
    if result == _UNSUPPORTED_VERSION:
        raise OtherVersionError(_PCP_RESULTS[result])
    if len(datagram) < _PCP_ANSWER_HEADER.size + _PCP_MAP.size:
        raise RemoteProtocolError(f"a PCP mapping of {len(datagram)} bytes")
    back, protocol, port, external, packed = _PCP_MAP.unpack_from(datagram, _PCP_ANSWER_HEADER.size)
    if (back, protocol, port) != (nonce, _UDP, internal):
        raise RemoteProtocolError("a PCP answer to another request")
    if result:
        raise RefusedError(_PCP_RESULTS.get(result, f"PCP result {result}"))
    address = IPv6Address(packed).ipv4_mapped
    if address is None or not external:
        raise RemoteProtocolError("a PCP mapping without an IPv4 address and port")
    return PortMapping(external, lifetime_s, address)


def _mapped(address: IPv4Address) -> bytes:
    return bytes(10) + b"\xff\xff" + address.packed
