"""What two agents say to each other, once the box is open (Part 3; the box and its header: `sealed`).

plaintext := type:u8 body

type  name            body
1     Ping            txid[12] padding
2     Pong            txid[12] family:u8=4|6 address[4|16] port:u16 padding
3     Candidates      msgpack map: generation session yours candidates features
4     CallMeMaybe     as Candidates: "I am about to ping these; ping mine now"
5     PathChanged     msgpack map: generation session yours path endpoint mine
6     PortPrediction  msgpack map: generation session yours address base step count
7     FindPort        msgpack map: generation session yours address

Padding is zeros, and isn't looked at: it gives a Ping the size that is probed, and its Pong the same one, so
that one answer says of both directions that packets of this size get through. Unknown keys of a map are
ignored, so that either side can learn new ones first.

`generation` grows with each map that an agent sends to a peer. `session` is drawn when an agent starts, and
`yours` is the last one that it heard of the peer's: a map with ours in it was made for this life of ours, so
that what somebody recorded earlier can be told from it (`sealed_session`).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from typing import Annotated, Literal, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import Meta

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError

PING = 1
PONG = 2
CANDIDATES = 3
CALL_ME_MAYBE = 4
PATH_CHANGED = 5
PORT_PREDICTION = 6
FIND_PORT = 7

TXID_BYTES = 12
"""As STUN's (RFC 8489, section 5): too many to be guessed within the seconds that one is good for."""

SESSION_BYTES = 8
"""Two lives of one agent draw the same one once in 2**64 starts."""

MAX_CANDIDATES = 32
"""A host with more addresses than that leaves the stalest out. Each of them costs the peer a Ping."""

MAX_FEATURES = 32
MAX_NAME = 32
"""Characters of a foundation (RFC 8839, section 5.1) and of a feature's name."""

MAX_ADDRESS = 39
"""Characters of an IPv6 address in full, without a zone: one's zone means nothing to others."""

MAX_MAP_BYTES = 8 << 10
"""Twice what 32 candidates with the longest of everything take."""

MAX_PREDICTED = 32
"""Ports of one prediction."""

_PONG_V4 = Struct(f">{TXID_BYTES}sB4sH")
_PONG_V6 = Struct(f">{TXID_BYTES}sB16sH")
_PONG_BY_FAMILY = {4: _PONG_V4, 6: _PONG_V6}

MIN_BODY_BYTES = _PONG_V6.size
"""Every Ping is padded to this: no Pong is longer than what asked for it."""


@dataclass(frozen=True, slots=True)
class Ping:
    """ "Do you hear me here?" Answered with a Pong, the same way that it came; nothing else comes of it."""

    txid: bytes
    body_bytes: int = MIN_BODY_BYTES
    """Of the body, padding included."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to the Ping with `txid`, and where that came from: a NAT's mapping, as the peer sees it."""

    txid: bytes
    seen: Endpoint
    body_bytes: int = MIN_BODY_BYTES


_U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Port = Annotated[int, Meta(ge=1, le=65535)]
_Session = Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
_MaybeSession = Annotated[bytes, Meta(max_length=SESSION_BYTES)]
_Address = Annotated[str, Meta(min_length=2, max_length=MAX_ADDRESS)]

CandidateType = Literal["host", "srflx", "prflx", "relay"]
"""RFC 8445, section 5.1.1. `relay` is a path through a relay, which has no address of its own."""


class WireCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """One address where an agent may be reached. A type that this side doesn't know is to be passed over."""

    type: Annotated[str, Meta(max_length=MAX_NAME)]
    address: _Address
    port: _Port
    priority: Annotated[int, Meta(ge=1, le=0x7FFFFFFF)]
    foundation: Annotated[str, Meta(max_length=MAX_NAME)]

    @property
    def endpoint(self) -> Endpoint:
        """Address and port. What was decoded never raises here."""
        return Endpoint(ip_address(self.address), self.port)


class _Stamped(msgspec.Struct, frozen=True, kw_only=True):
    generation: _U32
    session: _Session
    yours: _MaybeSession = b""
    """Empty: the sender hasn't heard of the receiver's session yet."""


class Candidates(_Stamped, frozen=True, kw_only=True):
    """Where the sender may be reached, from now on: this list replaces earlier ones."""

    candidates: Annotated[tuple[WireCandidate, ...], Meta(max_length=MAX_CANDIDATES)] = ()
    features: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_NAME)], ...], Meta(max_length=MAX_FEATURES)
    ] = ()


class CallMeMaybe(Candidates, frozen=True, kw_only=True):
    """Likewise, and the sender pings the receiver's candidates right now: two NATs open to each other only
    when both ends send."""


class PathChanged(_Stamped, frozen=True, kw_only=True):
    """The sender sends the receiver's packets another way from now on."""

    path: Literal["direct", "relay"]
    endpoint: Annotated[str, Meta(max_length=MAX_ADDRESS + 8)] = ""
    """With "direct": the receiver's endpoint, as the sender has it."""

    mine: Annotated[str, Meta(max_length=MAX_ADDRESS + 8)] = ""
    """With "direct": the sender's endpoint, as the receiver's last Pong had it."""

    def mine_endpoint(self) -> Endpoint | None:
        """`mine` as a value; None: not told. What was decoded never raises here."""
        return Endpoint.parse(self.mine) if self.mine else None


class PortPrediction(_Stamped, frozen=True, kw_only=True):
    """The sender's NAT gives each destination another port; the next ones will likely be these."""

    address: _Address
    base: _Port
    step: Annotated[int, Meta(ge=-1024, le=1024)]
    count: Annotated[int, Meta(ge=1, le=MAX_PREDICTED)]

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The predicted ones, the likeliest first. What was decoded never raises here."""
        address = ip_address(self.address)
        ports = (self.base + self.step * k for k in range(self.count))
        return tuple(Endpoint(address, port) for port in dict.fromkeys(ports) if 1 <= port <= 65535)


class FindPort(_Stamped, frozen=True, kw_only=True):
    """Many ports of this address of the sender's NAT lead to it, for packets from the receiver's endpoint;
    which, nobody knows: "ping random ones" (`paths.birthday`)."""

    address: _Address


Stamped: TypeAlias = Candidates | CallMeMaybe | PathChanged | PortPrediction | FindPort
Message: TypeAlias = Ping | Pong | Stamped

_MAPS: dict[int, type[Stamped]] = {
    CANDIDATES: Candidates,
    CALL_ME_MAYBE: CallMeMaybe,
    PATH_CHANGED: PathChanged,
    PORT_PREDICTION: PortPrediction,
    FIND_PORT: FindPort,
}
_KINDS = {kind: number for number, kind in _MAPS.items()}
_DECODERS = {number: msgspec.msgpack.Decoder(kind) for number, kind in _MAPS.items()}

M = TypeVar("M")


def encode(message: Message) -> bytes:
    """The plaintext. Raises ValueError for a field that the format has no room for."""
    if isinstance(message, Ping):
        return _padded(PING, _txid(message.txid), message.body_bytes)
    if isinstance(message, Pong):
        address = message.seen.address
        fixed = _PONG_BY_FAMILY[address.version].pack(
            _txid(message.txid), address.version, address.packed, message.seen.port
        )
        return _padded(PONG, fixed, message.body_bytes)
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_MAP_BYTES:
        raise ValueError(f"{type(message).__name__} of {len(body)} bytes, {MAX_MAP_BYTES} are allowed")
    return bytes([_KINDS[type(message)]]) + body


def decode_untrusted(plaintext: bytes) -> Message:
    """A box's content, which a peer made: it may lie in every field, and have any version.

    Raises RemoteProtocolError.
    """
    if not plaintext:
        raise RemoteProtocolError("a sealed message without a type")
    kind, body = plaintext[0], plaintext[1:]
    if kind == PING:
        if len(body) < TXID_BYTES:
            raise RemoteProtocolError(f"Ping carries {len(body)} bytes, a txid has {TXID_BYTES}")
        return Ping(body[:TXID_BYTES], len(body))
    if kind == PONG:
        return _decode_pong(body)
    if kind not in _MAPS:
        raise RemoteProtocolError(f"a sealed message of unknown type {kind}")
    name = _MAPS[kind].__name__
    if len(body) > MAX_MAP_BYTES:
        raise RemoteProtocolError(f"{name} carries {len(body)} bytes, {MAX_MAP_BYTES} are allowed")
    try:
        message = _DECODERS[kind].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"{name}: {error}") from error
    except RecursionError as error:  # msgspec walks through unknown keys: a thousand arrays in one another
        raise RemoteProtocolError(f"{name}: nested too deeply") from error
    try:
        return _checked(message)
    except ValueError as error:
        raise RemoteProtocolError(f"{name}: {error}") from error


def _checked(message: Stamped) -> Stamped:
    """The message, if the addresses in it are addresses. Raises ValueError."""
    if message.yours and len(message.yours) != SESSION_BYTES:
        raise ValueError(f"yours has {len(message.yours)} bytes, a session has {SESSION_BYTES}")
    if isinstance(message, Candidates):
        for candidate in message.candidates:
            _plain_address(candidate.address)
    elif isinstance(message, PortPrediction | FindPort):
        _plain_address(message.address)
    else:
        for text in filter(None, (message.endpoint, message.mine)):
            _plain_address(str(Endpoint.parse(text).address))
    return message


def _plain_address(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text}: a zone means nothing to another host")
    return address


def is_known_type(name: str) -> bool:
    """Whether a candidate's type is one of RFC 8445's."""
    return name in get_args(CandidateType)


def _decode_pong(body: bytes) -> Pong:
    if len(body) <= TXID_BYTES:
        raise RemoteProtocolError(f"Pong carries {len(body)} bytes, too few")
    family = body[TXID_BYTES]
    layout = _PONG_BY_FAMILY.get(family)
    if layout is None:
        raise RemoteProtocolError(f"Pong with an address of family {family}")
    if len(body) < layout.size:
        raise RemoteProtocolError(f"Pong carries {len(body)} bytes, with IPv{family} it has {layout.size}")
    txid, _, packed, port = layout.unpack_from(body)
    return Pong(txid, Endpoint(ip_address(packed), port), len(body))


def _padded(kind: int, fixed: bytes, body_bytes: int) -> bytes:
    return bytes([kind]) + fixed.ljust(body_bytes, b"\0")


def _txid(txid: bytes) -> bytes:
    if len(txid) != TXID_BYTES:
        raise ValueError(f"a txid has {TXID_BYTES} bytes, not {len(txid)}")
    return txid
