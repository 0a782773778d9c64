"""Part 2's handshake, what both roles share: outcomes, limits, and which frame goes which way.

    agent                                   relay
      | -- Register(key) ----------------->  |
      | <- Challenge ----------------------  |   a relay without this never sends one
      | -- Proof: box(agent -> relay) ---->  |
      | <- Welcome: box(relay -> agent) ---  |   or Error and close

`RelayHandshake` and `AgentHandshake` are its two state machines: frames and `now` in, a `Step` out. They own
no socket and no clock, and draw no random numbers. Each machine takes every frame of its connection until
its outcome, and then goes on taking the handshake's own (`HANDSHAKE`): a second one is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from relayd.keys import PublicKey
from relayd.wire.frames import ERROR, REGISTER
from relayd.wire.identity_frames import (
    CHALLENGE,
    DRAIN,
    HEALTH,
    PEER_GONE,
    PING,
    PONG,
    PROOF,
    WELCOME,
    IdentityType,
    Welcome,
)

ADMISSION_S = 10.0
"""From accept to Proof, at the relay. An agent across the world and on a lossy link needs two."""

CHALLENGE_S = 5.0
"""From Register to Challenge, at the agent: a relay without one by then doesn't know this part."""

WELCOME_S = 5.0
"""From Proof to Welcome, at the agent; together with CHALLENGE_S, the relay's own ADMISSION_S."""

MAX_INPUT_BYTES = 4096
"""What a connection may send before it is admitted: Register, the largest Proof, and some echoes and
keepalives of an agent that doesn't wait."""

HANDSHAKE = frozenset((REGISTER, CHALLENGE, PROOF, WELCOME))
"""Types that a machine still wants to see after its outcome."""

FROM_RELAY = frozenset((CHALLENGE, WELCOME, PEER_GONE, DRAIN, HEALTH, ERROR))
"""Types that no agent sends."""

FROM_AGENT = frozenset((REGISTER, PROOF))
"""Types that no relay sends."""

AFTERWARDS = frozenset((PEER_GONE, DRAIN, HEALTH, PING, PONG))
"""Types for those who completed the handshake."""

REPLACED = "replaced by a newer connection"
"""Text of the Error that a displaced connection gets; an agent knows it by this."""

NO_TOKEN = "this relay asks for a token, and the agent has none"
WRONG_TOKEN = "the token is not one of this relay's"
TLS_ONLY = "this relay speaks TLS only: its address begins with relayds://"
"""Texts of Errors of whose cause `relayd check` knows what mends it."""

BEFORE_PROOF = "before_proof"
"""Why a frame of Part 1 was dropped during the handshake, as drops are counted."""


class Refusal(Enum):
    """Why there is no admission, in one word for a counter."""

    PROTOCOL = "protocol error"
    """Malformed, out of turn, in the wrong direction, or too much of it."""

    TIMEOUT = "timeout"
    BAD_PROOF = "bad proof"
    """Its holder hasn't the private key, or made it for another session or another relay."""

    NOT_ADMITTED = "not admitted"
    """Proved, and not let in: no token, a wrong one, or a key that isn't on the list."""

    RELAY_KEY = "wrong relay key"
    """The relay's key isn't the pinned one, or none that anybody can own."""

    BAD_WELCOME = "bad welcome"
    """The relay hasn't the private key of the one that it showed."""

    NO_CHALLENGE = "no challenge"
    """The relay doesn't prove who it is."""

    REFUSED_BY_RELAY = "refused by the relay"


@dataclass(frozen=True, slots=True)
class Refused:
    """The end of this connection. A relay says `reason` in an Error frame, an agent in its log."""

    refusal: Refusal
    reason: str


@dataclass(frozen=True, slots=True)
class Registered:
    """Relay, policy `optional`: a bare Register. `RelayHandshake.let_in` when its key is free for that."""

    key: PublicKey


@dataclass(frozen=True, slots=True)
class Admitted:
    """Relay: `key` is proved and let in, and displaces any other holder of it at once."""

    key: PublicKey
    home_key: PublicKey
    admission: str
    """What let it in, for the log: as `Admit` said."""


class Trust(Enum):
    """How the agent knows the relay's key."""

    PINNED = "pinned"
    REMEMBERED = "remembered"
    """The same as last time."""

    FIRST = "first use"
    """None was known: to be remembered now."""

    CHANGED = "changed"
    """Another than last time: to be warned of, and to be remembered now."""


@dataclass(frozen=True, slots=True)
class Welcomed:
    """Agent: the relay holds `relay_key`, and has let us in."""

    relay_key: PublicKey
    trust: Trust
    welcome: Welcome
    previous: PublicKey | None = None
    """The key that was remembered, when it is another."""


@dataclass(frozen=True, slots=True)
class Unproved:
    """Agent: the relay proves nothing, and that is allowed (`--insecure-relay`)."""

    reason: str


RelayOutcome: TypeAlias = Registered | Admitted | Refused
AgentOutcome: TypeAlias = Welcomed | Unproved | Refused


@dataclass(frozen=True, slots=True)
class RelayStep:
    """What the relay does after a frame: send `send` first, then act on `outcome`, if there is one."""

    send: bytes = b""
    outcome: RelayOutcome | None = None


@dataclass(frozen=True, slots=True)
class AgentStep:
    """What the agent does after a frame: send `send` first, then act on `outcome`, if there is one."""

    send: bytes = b""
    outcome: AgentOutcome | None = None
    dropped: str = ""
    """Why the frame is not to be used; empty: the handshake has nothing against it."""


def frame_name(kind: int) -> str:
    """What a type is called in a reason."""
    names = {REGISTER: "Register", ERROR: "Error", PEER_GONE: "PeerGone"}
    if kind in names:
        return names[kind]
    try:
        return IdentityType(kind).name.capitalize()
    except ValueError:
        return f"type {kind:#04x}"
