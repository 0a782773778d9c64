"""Part 2 of the relay protocol, one frame at a time: proof of identity, and liveness.

type  name       body                                                               direction
0x30  Challenge  version:u8=1 flags:u8 relay_key[32] session[32]                    relay -> agent
0x31  Proof      nonce[24] box("relayd proof v1" session[32] agent_nonce[32]
                     home_key[32] admission)                                        agent -> relay
0x32  Welcome    nonce[24] box("relayd welcome v1" agent_nonce[32] welcome)         relay -> agent
0x33  PeerGone   key[32] reason:u8                                                  relay -> agent
0x34  Drain      seconds:u16                                                        relay -> agent
0x35  Health     UTF-8 text; empty: healthy again                                   relay -> agent
0x36  Ping       token[8]                                                           both
0x37  Pong       token[8]                                                           both

`admission` and `welcome` are msgpack maps whose unknown keys are ignored, so that either side can learn new
ones first. Frames of a fixed size have that size and no other. 0x33 to 0x37 go only to those who completed
the handshake (`identity`).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.keys import KEY_BYTES, PublicKey
from relayd.tokens import MAX_TOKEN_BYTES
from relayd.wire.boxes import NONCE_BYTES, TAG_BYTES, open_untrusted, seal
from relayd.wire.frames import MAX_ERROR_BYTES, decode_error_untrusted, encode


class IdentityType(IntEnum):
    """The type byte."""

    CHALLENGE = 0x30
    PROOF = 0x31
    WELCOME = 0x32
    PEER_GONE = 0x33
    DRAIN = 0x34
    HEALTH = 0x35
    PING = 0x36
    PONG = 0x37


# As in `frames`: who meets these in a loop wants an int.
CHALLENGE = int(IdentityType.CHALLENGE)
PROOF = int(IdentityType.PROOF)
WELCOME = int(IdentityType.WELCOME)
PEER_GONE = int(IdentityType.PEER_GONE)
DRAIN = int(IdentityType.DRAIN)
HEALTH = int(IdentityType.HEALTH)
PING = int(IdentityType.PING)
PONG = int(IdentityType.PONG)

VERSION = 1

SESSION_BYTES = 32
"""Drawn anew for each connection: a proof is good for that one alone."""

AGENT_NONCE_BYTES = 32
"""Drawn anew for each connection: a Welcome is good for that one alone."""

PING_TOKEN_BYTES = 8

MAX_PROOF_BYTES = 1024
"""Body of a Proof: 151 bytes of fixed fields, 12 of msgpack and a token of 256 leave room for keys to come;
with Register it stays far below what may be sent before admission."""

MAX_WELCOME_BYTES = 4096
"""Body of a Welcome: room for fifteen replicas with the longest names that there are."""

MAX_NAME = 64
"""Characters of a feature's name, and bytes of a relay's instance id."""

MAX_HOST_PORT = 253 + 6
"""Characters of HOST:PORT, the host a DNS name (RFC 1035, section 2.3.4)."""

MAX_LIST = 64
"""Elements of each list in a Welcome."""

MAX_KEEPALIVE_S = 3600.0

_PROOF_LABEL = b"relayd proof v1"
_WELCOME_LABEL = b"relayd welcome v1"

_CHALLENGE = Struct(f">BB{KEY_BYTES}s{SESSION_BYTES}s")
_PROOF = Struct(f">{len(_PROOF_LABEL)}s{SESSION_BYTES}s{AGENT_NONCE_BYTES}s{KEY_BYTES}s")
_WELCOME = Struct(f">{len(_WELCOME_LABEL)}s{AGENT_NONCE_BYTES}s")
_PEER_GONE = Struct(f">{KEY_BYTES}sB")
_DRAIN = Struct(">H")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the relay asks: to prove, to this key and for this session."""

    relay_key: PublicKey
    session: bytes
    flags: int = 0
    """None is defined; an agent ignores those it doesn't know."""

    def encode(self) -> bytes:
        """The whole frame."""
        return encode(CHALLENGE, _CHALLENGE.pack(VERSION, self.flags, self.relay_key.raw, self.session))


def decode_challenge_untrusted(body: bytes) -> Challenge:
    """A Challenge's body. Raises RemoteProtocolError for another version or another size."""
    if not body:
        raise RemoteProtocolError("Challenge is empty")
    if body[0] != VERSION:
        raise RemoteProtocolError(f"Challenge of version {body[0]}, this agent knows version {VERSION}")
    if len(body) != _CHALLENGE.size:
        raise RemoteProtocolError(f"Challenge carries {len(body)} bytes, version 1 has {_CHALLENGE.size}")
    _, flags, key, session = _CHALLENGE.unpack(body)
    return Challenge(PublicKey(key), session, flags)


class _Admission(msgspec.Struct, frozen=True, omit_defaults=True):
    token: Annotated[bytes, Meta(max_length=MAX_TOKEN_BYTES)] = b""


@dataclass(frozen=True, slots=True)
class Proof:
    """What an agent says of itself; sealed, so that saying it proves the key that Register named."""

    session: bytes
    """The Challenge's."""

    agent_nonce: bytes
    home_key: PublicKey
    """The node for whose sake the agent connects: its own key, or a peer's."""

    token: bytes
    """Empty: the agent has none."""

    def encode(self, shared: bytes, nonce: bytes) -> bytes:
        """The whole frame, sealed with `shared` (`boxes.shared_key_untrusted`). Raises ValueError for a token
        longer than MAX_TOKEN_BYTES."""
        if len(self.token) > MAX_TOKEN_BYTES:
            raise ValueError(f"a token of {len(self.token)} bytes, {MAX_TOKEN_BYTES} are allowed")
        fixed = _PROOF.pack(_PROOF_LABEL, self.session, self.agent_nonce, self.home_key.raw)
        content = fixed + msgspec.msgpack.encode(_Admission(self.token))
        return encode(PROOF, nonce + seal(shared, nonce, content))

    def is_for(self, session: bytes) -> bool:
        """Whether it answers the Challenge with `session`."""
        return hmac.compare_digest(self.session, session)


_admission_decoder = msgspec.msgpack.Decoder(_Admission)


def decode_proof_untrusted(body: bytes, shared: bytes) -> Proof:
    """A Proof's body, opened with the key shared with the node that Register named.

    The caller still compares the session. Raises RemoteProtocolError when it is too long or too short, when
    its box isn't that node's, or when the box holds something else than a Proof.
    """
    content = _open(body, shared, what="Proof", limit=MAX_PROOF_BYTES)
    if len(content) < _PROOF.size or not content.startswith(_PROOF_LABEL):
        raise RemoteProtocolError("Proof holds a box made for another purpose")
    _, session, agent_nonce, home_key = _PROOF.unpack_from(content)
    admission = _decode_map(_admission_decoder, content[_PROOF.size :], what="admission")
    return Proof(session, agent_nonce, PublicKey(home_key), admission.token)


_Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
_HostPort = Annotated[str, Meta(min_length=1, max_length=MAX_HOST_PORT)]
_Port = Annotated[int, Meta(ge=1, le=65535)]


class Welcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the relay says of itself to an agent that it has admitted. What it leaves out has its default."""

    relay: Annotated[bytes, Meta(max_length=MAX_NAME)] = b""
    """Instance id, random for each process: another one means that the relay was restarted."""

    observed: Annotated[str, Meta(max_length=MAX_HOST_PORT)] = ""
    """The agent's address and port as the relay sees them; "": it doesn't say."""

    keepalive_s: Annotated[float, Meta(ge=1.0, le=MAX_KEEPALIVE_S)] = 25.0
    stun: Annotated[tuple[_Port, ...], Meta(max_length=MAX_LIST)] = ()
    """UDP ports on which the relay answers STUN."""

    features: Annotated[tuple[_Name, ...], Meta(max_length=MAX_LIST)] = ()
    replicas: Annotated[tuple[_HostPort, ...], Meta(max_length=MAX_LIST)] = ()
    """HOST:PORT of relays that serve the same mesh."""

    def observed_endpoint(self) -> Endpoint | None:
        """`observed` as a value; None when the relay doesn't say. What was decoded never raises here."""
        return Endpoint.parse(self.observed) if self.observed else None

    def encode(self, shared: bytes, nonce: bytes, agent_nonce: bytes) -> bytes:
        """The whole frame, sealed with `shared`. Raises ValueError when that gets too long."""
        content = _WELCOME.pack(_WELCOME_LABEL, agent_nonce) + msgspec.msgpack.encode(self)
        body = nonce + seal(shared, nonce, content)
        if len(body) > MAX_WELCOME_BYTES:
            raise ValueError(f"a Welcome of {len(body)} bytes, {MAX_WELCOME_BYTES} are allowed")
        return encode(WELCOME, body)


_welcome_decoder = msgspec.msgpack.Decoder(Welcome)


def decode_welcome_untrusted(body: bytes, shared: bytes, agent_nonce: bytes) -> Welcome:
    """A Welcome's body, opened with the key shared with the relay that the Challenge named.

    Raises RemoteProtocolError when it is too long or too short, when its box isn't that relay's, when it
    isn't for `agent_nonce`, or when a field is out of range.
    """
    content = _open(body, shared, what="Welcome", limit=MAX_WELCOME_BYTES)
    if len(content) < _WELCOME.size or not content.startswith(_WELCOME_LABEL):
        raise RemoteProtocolError("Welcome holds a box made for another purpose")
    _, returned = _WELCOME.unpack_from(content)
    if not hmac.compare_digest(returned, agent_nonce):
        raise RemoteProtocolError("Welcome answers another connection than this one")
    welcome = _decode_map(_welcome_decoder, content[_WELCOME.size :], what="welcome")
    try:
        welcome.observed_endpoint()
    except ValueError as error:
        raise RemoteProtocolError(f"welcome: observed is not an address: {error}") from error
    return welcome


class Gone(IntEnum):
    """Why data for a peer is being lost."""

    ABSENT = 0
    """It isn't connected here."""

    STALLED = 1
    """It is connected and doesn't read."""


@dataclass(frozen=True, slots=True)
class PeerGone:
    """Data for `key` is being lost at this relay."""

    key: PublicKey
    reason: int
    """One of `Gone`, or a number that this side doesn't know yet: gone all the same."""

    def encode(self) -> bytes:
        """The whole frame."""
        return encode(PEER_GONE, _PEER_GONE.pack(self.key.raw, self.reason))


def decode_peer_gone_untrusted(body: bytes) -> PeerGone:
    """A PeerGone's body. Raises RemoteProtocolError for another size."""
    key, reason = _PEER_GONE.unpack(_exactly(body, _PEER_GONE.size, "PeerGone"))
    return PeerGone(PublicKey(key), reason)


def encode_drain(seconds: int) -> bytes:
    """The relay's request to connect elsewhere within `seconds` (0 to 65535). Raises ValueError past that."""
    if not 0 <= seconds <= 0xFFFF:
        raise ValueError(f"Drain in {seconds} s: 0 to 65535 fit")
    return encode(DRAIN, _DRAIN.pack(seconds))


def decode_drain_untrusted(body: bytes) -> int:
    """Seconds for which the old connection goes on. Raises RemoteProtocolError for another size."""
    (seconds,) = _DRAIN.unpack(_exactly(body, _DRAIN.size, "Drain"))
    return int(seconds)


def encode_health(text: str) -> bytes:
    """What is wrong between relay and agent, for the agent's log; "": healthy again. Cut as an Error is."""
    return encode(HEALTH, text.encode()[:MAX_ERROR_BYTES].decode(errors="ignore").encode())


def decode_health_untrusted(body: bytes) -> str:
    """The text, printable and cut to MAX_ERROR_BYTES. Never raises, as no text of an Error does."""
    return decode_error_untrusted(body)


def encode_ping(token: bytes) -> bytes:
    """ "Are you there?", either way. Raises ValueError unless `token` has PING_TOKEN_BYTES."""
    return encode(PING, _ping_token(token))


def encode_pong(token: bytes) -> bytes:
    """The answer to the Ping with `token`. Raises ValueError unless it has PING_TOKEN_BYTES."""
    return encode(PONG, _ping_token(token))


def decode_ping_untrusted(body: bytes) -> bytes:
    """The token of a Ping or a Pong. Raises RemoteProtocolError for another size."""
    return _exactly(body, PING_TOKEN_BYTES, "Ping or Pong")


def _ping_token(token: bytes) -> bytes:
    if len(token) != PING_TOKEN_BYTES:
        raise ValueError(f"a Ping's token has {PING_TOKEN_BYTES} bytes, not {len(token)}")
    return token


def _exactly(body: bytes, size: int, what: str) -> bytes:
    if len(body) != size:
        raise RemoteProtocolError(f"{what} carries {len(body)} bytes, it has {size}")
    return bytes(body)


def _open(body: bytes, shared: bytes, *, what: str, limit: int) -> bytes:
    """The content of nonce[24] box. Sizes first: nothing is decrypted that can't be right."""
    if len(body) < NONCE_BYTES + TAG_BYTES:
        raise RemoteProtocolError(f"{what} carries {len(body)} bytes, too few for a box")
    if len(body) > limit:
        raise RemoteProtocolError(f"{what} carries {len(body)} bytes, {limit} are allowed")
    body = bytes(body)
    try:
        return open_untrusted(shared, body[:NONCE_BYTES], body[NONCE_BYTES:])
    except RemoteProtocolError as error:
        raise RemoteProtocolError(f"{what}: {error}") from error


M = TypeVar("M")


def _decode_map(decoder: msgspec.msgpack.Decoder[M], data: bytes, *, what: str) -> M:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"{what}: {error}") from error
    except RecursionError as error:  # msgspec walks through unknown keys: a thousand arrays in one another
        raise RemoteProtocolError(f"{what}: nested too deeply") from error
