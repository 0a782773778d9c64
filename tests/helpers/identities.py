"""Both sides of a handshake with everything drawn beforehand, so that a test is the same each time."""

from __future__ import annotations

from hashlib import sha256

from relayd.keys import PrivateKey, PublicKey
from relayd.relay.admission import Gate
from relayd.wire.agent_handshake import AgentHandshake
from relayd.wire.boxes import NONCE_BYTES
from relayd.wire.frames import HEADER, HEADER_BYTES, LENGTH_BYTES
from relayd.wire.identity import AgentStep, RelayStep
from relayd.wire.identity_frames import Welcome
from relayd.wire.relay_handshake import Admit, RelayHandshake, RelayIdentity

TOKEN = "a-token-of-some-length"
GATE = Gate(tokens=(TOKEN,))


def drawn(name: str, size: int = 32) -> bytes:
    """Bytes that look random, the same for the same name."""
    return sha256(name.encode()).digest()[:size]


def private(name: str) -> PrivateKey:
    """Somebody's private key."""
    return PrivateKey(drawn(f"key of {name}"))


ALICE, BOB, MALLORY = (private(name) for name in ("alice", "bob", "mallory"))
RELAY, OTHER_RELAY = (RelayIdentity.of(private(name)) for name in ("relay", "other relay"))
WELCOME = Welcome(relay=b"instance", observed="192.0.2.1:40000", stun=(3478,), features=("health",))

SMALL_ORDER = tuple(
    PublicKey(bytes.fromhex(point))
    for point in (
        # cr.yp.to/ecdh.html, "validation": of order 1, 2, 4 and 8 on the curve and its twist.
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ec" + "ff" * 30 + "7f",
    )
)
SMALL_ORDER_SECOND_SPELLINGS = tuple(
    PublicKey(bytes.fromhex(point))
    for point in (
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
        "cdeb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880",
        "4c9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7",
        "d9" + "ff" * 31,
        "da" + "ff" * 31,
        "db" + "ff" * 31,
    )
)


def relay_side(
    name: str = "1",
    *,
    identity: RelayIdentity = RELAY,
    admit: Admit = GATE.admit,
    proof_required: bool = True,
    welcome: Welcome = WELCOME,
    now: float = 0.0,
) -> RelayHandshake:
    """A relay's connection; another `name` has another session."""
    return RelayHandshake(
        identity,
        admit=admit,
        welcome=welcome,
        session=drawn(f"session {name}"),
        nonce=drawn(f"relay nonce {name}", NONCE_BYTES),
        now=now,
        proof_required=proof_required,
    )


def agent_side(
    name: str = "1",
    *,
    key: PrivateKey = ALICE,
    token: str = TOKEN,
    home_key: PublicKey | None = None,
    pin: PublicKey | None = None,
    remembered: PublicKey | None = None,
    insecure: bool = False,
    now: float = 0.0,
) -> AgentHandshake:
    """An agent's connection; another `name` has another nonce."""
    return AgentHandshake(
        key,
        agent_nonce=drawn(f"agent nonce {name}"),
        nonce=drawn(f"box nonce {name}", NONCE_BYTES),
        now=now,
        home_key=home_key,
        token=token.encode(),
        pin=pin,
        remembered=remembered,
        insecure=insecure,
    )


def frames_of(stream: bytes) -> list[tuple[int, bytes]]:
    """(type, body) of each frame in a stream of whole ones."""
    found: list[tuple[int, bytes]] = []
    while stream:
        length, kind = HEADER.unpack_from(stream)
        found.append((kind, stream[HEADER_BYTES : length + LENGTH_BYTES]))
        stream = stream[length + LENGTH_BYTES :]
    return found


def to_agent(agent: AgentHandshake, stream: bytes, now: float = 0.0) -> AgentStep:
    """Give one frame to the agent."""
    ((kind, body),) = frames_of(stream)
    return agent.on_frame(kind, body, now)


def proof_for(relay: RelayHandshake, agent: AgentHandshake) -> bytes:
    """The agent's Proof frame for this connection of the relay, which has its Register then."""
    challenge = relay.receive(agent.hello(), 0.0).send
    return to_agent(agent, challenge).send


def complete(relay: RelayHandshake, agent: AgentHandshake) -> tuple[RelayStep, AgentStep]:
    """The whole handshake: the last step of either side."""
    last = relay.receive(proof_for(relay, agent), 0.0)
    return last, to_agent(agent, last.send)
