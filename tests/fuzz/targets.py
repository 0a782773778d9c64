"""One function for each parser: any bytes in, nothing out. It raises only where there is a bug.

tests/fuzz/test_targets.py   hypothesis, and every input that was kept, in each run of the tests
tests/fuzz/__main__.py       atheris (`make fuzz`), guided by coverage; it keeps what found something new
tests/fuzz/corpus/TARGET/    what was kept
"""

from __future__ import annotations

from collections.abc import Callable

from relayd.errors import ConfigError, RemoteProtocolError
from relayd.join import JoinString
from relayd.keys import PublicKey
from relayd.relay.admission import Gate, parse_allow_list, parse_tokens
from relayd.wire import frames, identity_frames, sealed, sealed_messages, stun
from relayd.wire.boxes import NONCE_BYTES, seal, shared_key_untrusted
from relayd.wire.identity import Admitted
from relayd.wire.runs import Run, scan
from tests.helpers.identities import ALICE, MALLORY, RELAY, agent_side, drawn, frames_of, relay_side

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    """Enter it in TARGETS."""
    TARGETS[function.__name__] = function
    return function


SHARED = shared_key_untrusted(ALICE, RELAY.public)
UNKNOWN = shared_key_untrusted(MALLORY, RELAY.public)
"""A key that no input is sealed with."""

NONCE = bytes(NONCE_BYTES)


def decodes(decode: Callable[[bytes], object], data: bytes) -> object | None:
    """What a decoder makes of it; None: it said no, as decoders do."""
    try:
        return decode(data)
    except RemoteProtocolError:
        return None


@target
def base_frames(data: bytes) -> None:
    """Part 1, one frame's body at a time."""
    key = decodes(frames.decode_register_untrusted, data)
    assert key is None or key == PublicKey(data)
    probe = decodes(frames.decode_nat_probe_untrusted, data)
    if isinstance(probe, frames.NatProbe):
        assert probe.encode()[frames.HEADER_BYTES :] == data[:6]
    text = frames.decode_error_untrusted(data)
    assert text.isprintable() or not text
    assert len(text) <= frames.MAX_ERROR_BYTES


@target
def runs(data: bytes) -> None:
    """The scanner: whole frames are found, however many equal ones stand in a row, and cut anywhere."""
    found: list[Run] = []
    buffer = bytearray(data)
    try:
        rest = scan(buffer, 0, len(buffer), ALICE.public().raw, found)
    except RemoteProtocolError:
        rest = found[-1][3] if found else 0
    position = 0
    for kind, key, start, stop, size in found:
        assert start == position
        assert (stop - start) % size == 0
        assert size <= frames.MAX_LENGTH + frames.LENGTH_BYTES
        for at in range(start, stop, size):
            assert int.from_bytes(data[at : at + 4], "big") + 4 == size
            assert data[at + 4] == kind
            if key:
                assert data[at + 5 : at + 37] == key
                assert buffer[at + 5 : at + 37] == ALICE.public().raw
        position = stop
    assert position == rest <= len(data)


@target
def identity_bodies(data: bytes) -> None:
    """Part 2, one frame's body at a time, boxes as strangers make them."""
    challenge = decodes(identity_frames.decode_challenge_untrusted, data)
    if isinstance(challenge, identity_frames.Challenge):
        assert challenge.encode()[frames.HEADER_BYTES :] == data
    gone = decodes(identity_frames.decode_peer_gone_untrusted, data)
    if isinstance(gone, identity_frames.PeerGone):
        assert gone.encode()[frames.HEADER_BYTES :] == data
    drain = decodes(identity_frames.decode_drain_untrusted, data)
    if isinstance(drain, int):
        assert identity_frames.encode_drain(drain)[frames.HEADER_BYTES :] == data
    decodes(identity_frames.decode_ping_untrusted, data)
    assert identity_frames.decode_health_untrusted(data).isprintable() or not data
    # Whoever doesn't know the shared key never gets as far as the content.
    assert decodes(lambda body: identity_frames.decode_proof_untrusted(body, UNKNOWN), data) is None
    assert decodes(lambda body: identity_frames.decode_welcome_untrusted(body, UNKNOWN, NONCE), data) is None


@target
def proof_content(data: bytes) -> None:
    """What an agent that holds its key may seal: anything."""
    body = NONCE + seal(SHARED, NONCE, data)
    proof = decodes(lambda sealed: identity_frames.decode_proof_untrusted(sealed, SHARED), body)
    if isinstance(proof, identity_frames.Proof):
        assert len(proof.token) <= 256


@target
def proof_admission(data: bytes) -> None:
    """As above, with the fixed fields right: msgpack from a stranger."""
    proof_content(b"relayd proof v1" + bytes(96) + data)


@target
def welcome_content(data: bytes) -> None:
    """What a relay that holds its key may seal."""
    agent_nonce = bytes(32)
    for content in (data, b"relayd welcome v1" + agent_nonce + data):
        body = NONCE + seal(SHARED, NONCE, content)

        def decode(sealed: bytes) -> object:
            return identity_frames.decode_welcome_untrusted(sealed, SHARED, agent_nonce)

        welcome = decodes(decode, body)
        if isinstance(welcome, identity_frames.Welcome):
            welcome.observed_endpoint()


def chunks_of(data: bytes) -> list[bytes]:
    """The data in pieces whose sizes it chooses itself: a first byte each says how long."""
    pieces, at = [], 0
    while at < len(data):
        size = data[at] or 256
        pieces.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    return pieces


@target
def relay_handshake(data: bytes) -> None:
    """A connection's bytes, in pieces: it is refused, or waits; it never gets in without a proof."""
    for required in (True, False):
        relay = relay_side("another", admit=Gate(open=True).admit, proof_required=required)
        for piece in chunks_of(data):
            assert relay.wants >= 1
            step = relay.receive(piece, 0.0)
            assert not isinstance(step.outcome, Admitted)
            frames_of(step.send)
            if step.outcome is not None:
                break


@target
def agent_handshake(data: bytes) -> None:
    """Frames from a relay: first byte of each piece is the type."""
    agent = agent_side("another")
    agent.hello()
    for piece in chunks_of(data):
        if piece:
            step = agent.on_frame(piece[0], piece[1:], 0.0)
            frames_of(step.send)
            assert not agent.may_carry


@target
def join_string(data: bytes) -> None:
    """What somebody pastes after --relay. No error quotes what may be secret."""
    text = data.decode(errors="replace")
    for one in (text, f"relayd://{text}", f"relayds://h:1?{text}"):
        try:
            join = JoinString.parse(one)
        except ValueError:
            continue
        assert JoinString.parse(join.format()) == join


@target
def admission_files(data: bytes) -> None:
    """An allow-list and a token file, as an editor or a disk left them."""
    text = data.decode(errors="replace")
    for parse in (parse_allow_list, parse_tokens):
        try:
            parse(text, source="file")
        except ConfigError as error:
            if not str(error).startswith("file:"):
                raise AssertionError("no place is named") from error


@target
def peer_messages(data: bytes) -> None:
    """Part 3, the plaintext of a sealed message: a peer may say anything too."""
    message = decodes(sealed_messages.decode_untrusted, data)
    if message is not None:
        sealed_messages.encode(message)  # type: ignore[arg-type]
    decodes(sealed.sender_untrusted, data)


@target
def stun_messages(data: bytes) -> None:
    """STUN, from anybody who reaches a UDP port."""
    decodes(stun.decode_untrusted, data)
    decodes(stun.decode_answer_untrusted, data)


def seeds() -> dict[str, list[bytes]]:
    """What each target is good for: inputs that are right, for a fuzzer to begin with."""
    register = frames.encode_register(ALICE.public())
    relay = relay_side()
    challenge = relay.receive(register, 0.0).send
    agent = agent_side()
    proof = agent.on_frame(challenge[4], challenge[5:], 0.0).send
    welcome = relay.receive(proof, 0.0).send

    def piece(data: bytes) -> bytes:
        return b"".join(
            bytes([len(part) % 256]) + part
            for part in (data[at : at + 255] for at in range(0, len(data), 255))
        )

    key, token = str(ALICE.public()), "a-token-of-some-length"
    return {
        "base_frames": [register[5:], bytes([192, 0, 2, 1, 0x9C, 0x40]), "Fehler \xfc".encode()],
        "runs": [frames.encode_data(ALICE.public(), b"x" * 40) * 40, register + frames.KEEPALIVE_FRAME],
        "identity_bodies": [challenge[5:], proof[5:], welcome[5:], drawn("gone", 33)],
        "proof_content": [b"relayd proof v1" + bytes(96) + b"\x81\xa5token\xc4\x03abc"],
        "proof_admission": [b"\x80", b"\x81\xa5token\xc4\x03abc"],
        "welcome_content": [
            b"\x81\xa5relay\xc4\x02id",
            b"\x82\xa8observed\xab192.0.2.1:1\xa4stun\x91\xcd\x0d\x96",
        ],
        "relay_handshake": [piece(register + proof), piece(register) + piece(proof)],
        "agent_handshake": [piece(challenge[4:]) + piece(welcome[4:])],
        "join_string": [JoinString("h", 1, ALICE.public(), token).format().encode()],
        "peer_messages": [b"\x01" + bytes(12), b"\x02" + bytes(12) + b"\x04" + bytes(6), b"\x03\x84"],
        "stun_messages": [stun.encode_request(bytes(12))],
        "admission_files": [f"{key} # alice\n".encode(), f"# new\n{token}\n".encode()],
    }
