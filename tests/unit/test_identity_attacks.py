"""Attacks on the handshake, each by what the attacker has: none of them gets a key, or passes for a relay."""

from __future__ import annotations

import hmac

import pytest

from relayd.keys import PublicKey
from relayd.relay.admission import Gate
from relayd.wire import identity_frames
from relayd.wire.boxes import NONCE_BYTES, shared_key_untrusted
from relayd.wire.frames import HEADER_BYTES, encode, encode_register
from relayd.wire.identity import Admitted, AgentOutcome, Refusal, Refused, RelayOutcome, Trust, Welcomed
from tests.helpers.identities import (
    ALICE,
    MALLORY,
    OTHER_RELAY,
    RELAY,
    SMALL_ORDER,
    SMALL_ORDER_SECOND_SPELLINGS,
    TOKEN,
    WELCOME,
    agent_side,
    complete,
    drawn,
    frames_of,
    proof_for,
    relay_side,
    to_agent,
)

NONCE = bytes(NONCE_BYTES)
OPEN = Gate(open=True).admit


def refusal_of(outcome: RelayOutcome | AgentOutcome | None) -> Refusal:
    assert isinstance(outcome, Refused), outcome
    return outcome.refusal


# A stranger wants Alice's key at the relay (G5) -----------------------------------------------------------


def test_g5_no_proof_is_no_admission() -> None:
    relay = relay_side(admit=OPEN)
    assert relay.receive(encode_register(ALICE.public()), 0.0).outcome is None
    assert refusal_of(relay.due(10.0).outcome) is Refusal.TIMEOUT


def test_g5_a_proof_of_another_key_is_no_admission() -> None:
    relay = relay_side(admit=OPEN)
    challenge = relay.receive(encode_register(ALICE.public()), 0.0).send
    proof = to_agent(agent_side(key=MALLORY), challenge).send
    assert refusal_of(relay.receive(proof, 0.0).outcome) is Refusal.BAD_PROOF


def test_g5_a_replayed_proof_is_no_admission() -> None:
    proof = proof_for(relay_side("1", admit=OPEN), agent_side())
    for session, admitted in (("2", False), ("1", True)):
        relay = relay_side(session, admit=OPEN)
        relay.receive(encode_register(ALICE.public()), 0.0)
        outcome = relay.receive(proof, 0.0).outcome
        assert isinstance(outcome, Admitted if admitted else Refused)
        if not admitted:
            assert refusal_of(outcome) is Refusal.BAD_PROOF


def test_g5_a_proof_for_another_relay_is_no_admission() -> None:
    # Even where the other relay copies the session: the box is to its key.
    proof = proof_for(relay_side(identity=OTHER_RELAY, admit=OPEN), agent_side())
    relay = relay_side(admit=OPEN)
    relay.receive(encode_register(ALICE.public()), 0.0)
    assert refusal_of(relay.receive(proof, 0.0).outcome) is Refusal.BAD_PROOF


def test_g5_a_relay_in_the_middle_can_not_pass_a_proof_on() -> None:
    # Alice trusts the relay in the middle, which wants to be Alice at the real one.
    real = relay_side(admit=OPEN)
    ((_, body),) = frames_of(real.receive(encode_register(ALICE.public()), 0.0).send)
    asked = identity_frames.decode_challenge_untrusted(body)
    own_challenge = identity_frames.Challenge(OTHER_RELAY.public, asked.session).encode()
    proof = to_agent(agent_side(pin=OTHER_RELAY.public), own_challenge).send
    assert refusal_of(real.receive(proof, 0.0).outcome) is Refusal.BAD_PROOF
    # It can open the proof, but not close it again with Alice's key.
    shared = shared_key_untrusted(OTHER_RELAY.private, ALICE.public())
    opened = identity_frames.decode_proof_untrusted(proof[HEADER_BYTES:], shared)
    real = relay_side(admit=OPEN)
    real.receive(encode_register(ALICE.public()), 0.0)
    forged = opened.encode(shared_key_untrusted(OTHER_RELAY.private, RELAY.public), NONCE)
    assert refusal_of(real.receive(forged, 0.0).outcome) is Refusal.BAD_PROOF


def test_g5_a_relay_in_the_middle_that_shows_the_real_key_can_not_be_that_relay() -> None:
    # It has another key than the pinned one, so it shows the pinned one, and forwards what it likes.
    agent = agent_side(pin=RELAY.public)
    to_agent(agent, identity_frames.Challenge(RELAY.public, drawn("any")).encode())
    shared = shared_key_untrusted(OTHER_RELAY.private, ALICE.public())
    welcome = WELCOME.encode(shared, NONCE, drawn("agent nonce 1"))
    assert refusal_of(to_agent(agent, welcome).outcome) is Refusal.BAD_WELCOME


@pytest.mark.parametrize("point", SMALL_ORDER + SMALL_ORDER_SECOND_SPELLINGS, ids=str)
def test_g5_a_key_that_anybody_could_prove_is_no_admission(point: PublicKey) -> None:
    # The box key that everybody shares with such a point: HSalsa20 of the all-zero secret.
    everybodys = bytes.fromhex("351f86faa3b988468a850122b65b0acece9c4826806aeee63de9c0da2bd7f91e")
    relay = relay_side(admit=OPEN)
    relay.receive(encode_register(point), 0.0)
    proof = identity_frames.Proof(drawn("session 1"), drawn("mine"), point, b"").encode(everybodys, NONCE)
    outcome = relay.receive(proof, 0.0).outcome
    assert refusal_of(outcome) is Refusal.BAD_PROOF
    assert isinstance(outcome, Refused)
    assert "small-order" in outcome.reason or "canonical" in outcome.reason


def test_g5_a_second_name_of_a_key_is_no_admission() -> None:
    raw = MALLORY.public().raw
    alias = PublicKey(raw[:31] + bytes([raw[31] | 0x80]))
    relay = relay_side(admit=OPEN)
    challenge = relay.receive(encode_register(alias), 0.0).send
    proof = to_agent(agent_side(key=MALLORY), challenge).send
    assert refusal_of(relay.receive(proof, 0.0).outcome) is Refusal.BAD_PROOF


def test_g5_a_box_that_was_made_for_another_purpose_is_no_proof() -> None:
    # A Welcome of this very relay to Alice is sealed with the same box key: it can't be turned round.
    relay = relay_side(admit=OPEN)
    relay.receive(encode_register(ALICE.public()), 0.0)
    shared = shared_key_untrusted(RELAY.private, ALICE.public())
    welcome = WELCOME.encode(shared, NONCE, drawn("session 1"))
    turned = encode(identity_frames.PROOF, welcome[HEADER_BYTES:])
    outcome = relay.receive(turned, 0.0).outcome
    assert isinstance(outcome, Refused)
    assert "another purpose" in outcome.reason


# Somebody wants to be the relay ---------------------------------------------------------------------------


def test_a_relay_that_only_shows_a_key_is_not_believed() -> None:
    agent = agent_side()
    to_agent(agent, identity_frames.Challenge(RELAY.public, drawn("any")).encode())
    forged = encode(identity_frames.WELCOME, drawn("a", 24) + drawn("b") * 4)
    assert refusal_of(to_agent(agent, forged).outcome) is Refusal.BAD_WELCOME


def test_a_replayed_welcome_is_not_believed() -> None:
    # Recorded from an earlier connection of the same agent with the same relay.
    earlier, agent = relay_side("1"), agent_side("1")
    welcome = earlier.receive(proof_for(earlier, agent), 0.0).send
    later = agent_side("2", pin=RELAY.public)
    to_agent(later, identity_frames.Challenge(RELAY.public, drawn("session 1")).encode())
    outcome = to_agent(later, welcome).outcome
    assert refusal_of(outcome) is Refusal.BAD_WELCOME
    assert isinstance(outcome, Refused)
    assert "another connection" in outcome.reason


def test_a_proof_that_comes_back_is_no_welcome() -> None:
    agent = agent_side()
    proof = to_agent(agent, identity_frames.Challenge(RELAY.public, drawn("any")).encode()).send
    turned = encode(identity_frames.WELCOME, proof[HEADER_BYTES:])
    outcome = to_agent(agent, turned).outcome
    assert refusal_of(outcome) is Refusal.BAD_WELCOME
    assert isinstance(outcome, Refused)
    assert "another purpose" in outcome.reason


@pytest.mark.parametrize("point", SMALL_ORDER + SMALL_ORDER_SECOND_SPELLINGS, ids=str)
def test_a_relay_key_that_anybody_could_prove_gets_no_proof(point: PublicKey) -> None:
    step = to_agent(agent_side(pin=point), identity_frames.Challenge(point, drawn("any")).encode())
    assert step.send == b""
    assert refusal_of(step.outcome) is Refusal.RELAY_KEY


def test_a_relay_that_shows_the_agents_own_key_gets_no_proof() -> None:
    step = to_agent(agent_side(), identity_frames.Challenge(ALICE.public(), drawn("any")).encode())
    assert step.send == b""
    assert refusal_of(step.outcome) is Refusal.RELAY_KEY


def test_a_token_is_never_seen_by_who_listens() -> None:
    relay, agent = relay_side(), agent_side()
    proof = proof_for(relay, agent)
    welcome = relay.receive(proof, 0.0).send
    assert TOKEN.encode() not in agent.hello() + proof + welcome


def test_a_change_of_the_relays_key_is_never_silent() -> None:
    _, last = complete(relay_side(identity=OTHER_RELAY), agent_side(remembered=RELAY.public))
    assert isinstance(last.outcome, Welcomed)
    assert (last.outcome.trust, last.outcome.previous) == (Trust.CHANGED, RELAY.public)


# A stranger wants in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("guess", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "x" * 256])
def test_a_guessed_token_is_no_admission(guess: str) -> None:
    relay = relay_side()
    proof = proof_for(relay, agent_side(key=MALLORY, token=guess))
    assert refusal_of(relay.receive(proof, 0.0).outcome) is Refusal.NOT_ADMITTED


def test_one_connection_is_one_guess() -> None:
    relay = relay_side()
    challenge = relay.receive(encode_register(MALLORY.public()), 0.0).send
    wrong = to_agent(agent_side("1", key=MALLORY, token="x" * 20), challenge).send
    right = to_agent(agent_side("2", key=MALLORY), challenge).send
    assert refusal_of(relay.receive(wrong, 0.0).outcome) is Refusal.NOT_ADMITTED
    assert refusal_of(relay.receive(right, 0.0).outcome) is Refusal.NOT_ADMITTED


def test_tokens_are_compared_in_constant_time_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Time itself can't be asserted; what is asserted is that nothing but compare_digest sees a token, that it
    # sees digests of one length, and that it sees every one of them wherever the match is.
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    tokens = tuple(f"token-number-{number:04}" for number in range(3))
    gate = Gate(tokens=tokens)
    monkeypatch.setattr("relayd.relay.admission.hmac.compare_digest", spy)
    for token in tokens:
        compared.clear()
        assert gate.admit(ALICE.public(), token.encode()) == "token"
        assert len(compared) == 3
        assert {len(side) for pair in compared for side in pair} == {32}
