"""The relay's side of the handshake: each state, each frame, each way of cutting the stream."""

from __future__ import annotations

import pytest

from relayd.keys import PublicKey
from relayd.relay.admission import Gate
from relayd.wire import frames, identity_frames
from relayd.wire.frames import encode
from relayd.wire.identity import (
    ADMISSION_S,
    BEFORE_PROOF,
    Admitted,
    Refusal,
    Refused,
    Registered,
    RelayOutcome,
    RelayStep,
)
from relayd.wire.relay_handshake import RelayHandshake, State
from tests.helpers.identities import (
    ALICE,
    BOB,
    RELAY,
    agent_side,
    complete,
    drawn,
    frames_of,
    private,
    proof_for,
    relay_side,
    to_agent,
)

KEY = ALICE.public()
REGISTER = frames.encode_register(KEY)
ECHO = frames.encode_data(KEY, b"echo")
FROM_RELAY = {
    "Challenge": identity_frames.Challenge(RELAY.public, drawn("any")).encode(),
    "Welcome": encode(identity_frames.WELCOME, bytes(100)),
    "PeerGone": identity_frames.PeerGone(KEY, 0).encode(),
    "Drain": identity_frames.encode_drain(1),
    "Health": identity_frames.encode_health("no"),
    "Error": frames.encode_error("no"),
}
PART_1 = [ECHO, frames.encode_hint(KEY), frames.KEEPALIVE_FRAME, frames.encode_relay_probe(bytes(8))]
UNKNOWN = [encode(0x10), encode(0x3F, b"from a later day"), encode(0xFE, b"x" * 50)]


def give(relay: RelayHandshake, stream: bytes, now: float = 0.0) -> RelayStep:
    return relay.receive(stream, now)


def refused(outcome: RelayOutcome | None) -> Refused:
    assert isinstance(outcome, Refused), outcome
    return outcome


def in_state(state: State) -> RelayHandshake:
    relay = relay_side(proof_required=state is not State.BARE)
    if state is State.ADMITTED:
        last, _ = complete(relay, agent_side())
        assert isinstance(last.outcome, Admitted)
    elif state is not State.REGISTER:
        give(relay, REGISTER)
        if state is State.BARE:
            relay.let_in()
    assert relay.state is state
    return relay


def test_an_agent_that_proves_its_key_is_admitted_and_told_so() -> None:
    relay, agent = relay_side(), agent_side(home_key=BOB.public())
    last, _ = complete(relay, agent)
    assert last.outcome == Admitted(KEY, BOB.public(), "token")
    assert [kind for kind, _ in frames_of(last.send)] == [identity_frames.WELCOME]
    assert relay.deadline is None


def test_home_key_is_the_agents_own_unless_it_says_otherwise() -> None:
    last, _ = complete(relay_side(), agent_side())
    assert isinstance(last.outcome, Admitted)
    assert last.outcome.home_key == KEY


# Every frame in every state -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame", [*FROM_RELAY.values(), *PART_1, *UNKNOWN, identity_frames.encode_ping(bytes(8))]
)
def test_nothing_comes_before_register(frame: bytes) -> None:
    ((kind, body),) = frames_of(frame)
    by_bytes = refused(give(relay_side(), frame).outcome)
    by_frame = refused(relay_side().on_frame(kind, body, 0.0).outcome)
    assert "first frame must be Register" in by_bytes.reason
    assert "first frame must be Register" in by_frame.reason
    assert by_bytes.refusal is by_frame.refusal is Refusal.PROTOCOL


def test_proof_before_register_is_refused() -> None:
    proof = proof_for(relay_side(), agent_side())
    assert "first frame must be Register" in refused(give(relay_side(), proof).outcome).reason


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_register_of_any_other_size_is_refused(size: int) -> None:
    assert (
        "first frame must be Register" in refused(give(relay_side(), encode(1, bytes(size))).outcome).reason
    )
    assert f"carries {size} bytes" in refused(relay_side().on_frame(1, bytes(size), 0.0).outcome).reason


@pytest.mark.parametrize("state", [State.PROOF, State.BARE, State.ADMITTED])
@pytest.mark.parametrize("name", FROM_RELAY)
def test_what_only_relays_send_is_refused_from_an_agent(state: State, name: str) -> None:
    ((kind, body),) = frames_of(FROM_RELAY[name])
    outcome = refused(in_state(state).on_frame(kind, body, 0.0).outcome)
    assert outcome == Refused(Refusal.PROTOCOL, f"{name} is a relay's to send")


@pytest.mark.parametrize("state", [State.PROOF, State.BARE, State.ADMITTED])
def test_a_second_register_is_refused(state: State) -> None:
    outcome = refused(in_state(state).on_frame(frames.REGISTER, KEY.raw, 0.0).outcome)
    assert outcome == Refused(Refusal.PROTOCOL, "a second Register")


def test_a_second_proof_is_refused() -> None:
    relay = relay_side()
    proof = proof_for(relay, agent_side())
    assert isinstance(give(relay, proof).outcome, Admitted)
    ((kind, body),) = frames_of(proof)
    outcome = refused(relay.on_frame(kind, body, 0.0).outcome)
    assert outcome == Refused(Refusal.PROTOCOL, "a second Proof")


@pytest.mark.parametrize("state", [State.PROOF, State.BARE])
@pytest.mark.parametrize("kind", [identity_frames.PING, identity_frames.PONG])
def test_liveness_comes_after_proof(state: State, kind: int) -> None:
    outcome = refused(in_state(state).on_frame(kind, bytes(8), 0.0).outcome)
    assert outcome.reason == f"{'Ping' if kind == identity_frames.PING else 'Pong'} before Proof"


@pytest.mark.parametrize("frame", PART_1 + UNKNOWN)
def test_part_1_before_proof_is_dropped_and_counted_and_ends_nothing(frame: bytes) -> None:
    relay = in_state(State.PROOF)
    assert give(relay, frame) == RelayStep()
    assert relay.dropped == {BEFORE_PROOF: 1}
    assert isinstance(give(relay, _proof_on(relay)).outcome, Admitted)


@pytest.mark.parametrize("state", [State.BARE, State.ADMITTED])
@pytest.mark.parametrize("frame", PART_1 + UNKNOWN)
def test_part_1_is_not_the_handshakes_business_once_it_is_in(state: State, frame: bytes) -> None:
    relay = in_state(state)
    ((kind, body),) = frames_of(frame)
    assert relay.on_frame(kind, body, 1e9) == RelayStep()
    assert not relay.dropped


def test_liveness_is_not_the_handshakes_business_once_it_is_over() -> None:
    assert in_state(State.ADMITTED).on_frame(identity_frames.PING, bytes(8), 0.0) == RelayStep()


@pytest.mark.parametrize("frame", [REGISTER, *FROM_RELAY.values(), *PART_1, *UNKNOWN])
def test_a_refusal_is_final(frame: bytes) -> None:
    relay = in_state(State.PROOF)
    proof = _proof_on(relay)
    first = give(relay, REGISTER).outcome
    ((kind, body),) = frames_of(frame)
    assert relay.on_frame(kind, body, 0.0) == RelayStep(outcome=first)
    assert give(relay, frame) == RelayStep(outcome=first)
    assert give(relay, proof) == RelayStep(outcome=first)
    assert relay.due(1e9) == RelayStep(outcome=first)


def _proof_on(relay: RelayHandshake) -> bytes:
    """Alice's proof for a relay that has her Register already, and session 1."""
    return to_agent(agent_side(), identity_frames.Challenge(RELAY.public, drawn("session 1")).encode()).send


# Time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.REGISTER, State.PROOF])
def test_ten_seconds_are_all_there_is(state: State) -> None:
    relay = in_state(state)
    assert relay.deadline == ADMISSION_S == 10.0
    assert relay.due(9.99) == RelayStep()
    assert refused(relay.due(10.0).outcome).refusal is Refusal.TIMEOUT


def test_a_good_proof_that_comes_late_is_refused() -> None:
    for late in (False, True):
        relay = relay_side()
        proof = proof_for(relay, agent_side())
        outcome = give(relay, proof, 10.0 if late else 9.99).outcome
        assert isinstance(outcome, Refused if late else Admitted)
        relay = relay_side()
        ((kind, body),) = frames_of(proof_for(relay, agent_side()))
        assert isinstance(
            relay.on_frame(kind, body, 10.0 if late else 9.99).outcome, Refused if late else Admitted
        )


def test_bytes_do_not_buy_time() -> None:
    relay = relay_side()
    for number, byte in enumerate(REGISTER[:20]):
        outcome = give(relay, bytes([byte]), number * 0.6).outcome
        assert (outcome is not None) == (number * 0.6 >= 10)


def test_time_starts_at_accept_whatever_the_clock_says() -> None:
    for start in (-3e8, 3e8):  # a clock ten years off
        relay = relay_side(now=start)
        assert relay.due(start + 9) == RelayStep()
        assert refused(relay.due(start + 10).outcome).refusal is Refusal.TIMEOUT


@pytest.mark.parametrize("state", [State.BARE, State.ADMITTED])
def test_who_is_in_has_no_deadline(state: State) -> None:
    assert in_state(state).due(1e9) == RelayStep()


# Policies -------------------------------------------------------------------------------------------------


def test_required_says_nothing_of_a_bare_register() -> None:
    step = give(relay_side(), REGISTER)
    assert step.outcome is None
    assert [kind for kind, _ in frames_of(step.send)] == [identity_frames.CHALLENGE]


def test_optional_asks_all_the_same_and_says_who_registered() -> None:
    relay = relay_side(proof_required=False)
    step = give(relay, REGISTER)
    assert step.outcome == Registered(KEY)
    assert [kind for kind, _ in frames_of(step.send)] == [identity_frames.CHALLENGE]


def test_optional_takes_a_proof_before_and_after_it_was_let_in() -> None:
    for let_in in (False, True):
        relay = relay_side(proof_required=False)
        proof = proof_for(relay, agent_side())
        if let_in:
            relay.let_in()
        ((kind, body),) = frames_of(proof)
        outcome = relay.on_frame(kind, body, 1e6 if let_in else 0.0).outcome
        assert isinstance(outcome, Admitted)


def test_optional_refuses_a_bad_proof_of_one_that_was_let_in() -> None:
    relay = in_state(State.BARE)
    outcome = refused(relay.on_frame(identity_frames.PROOF, bytes(200), 0.0).outcome)
    assert outcome.refusal is Refusal.BAD_PROOF


def test_optional_and_not_let_in_is_held_to_the_same_limits() -> None:
    relay = relay_side(proof_required=False)
    give(relay, REGISTER)
    assert give(relay, ECHO) == RelayStep()
    assert relay.dropped == {BEFORE_PROOF: 1}
    assert refused(relay.due(10.0).outcome).refusal is Refusal.TIMEOUT


def test_nobody_is_let_in_whose_proof_is_required_or_who_has_not_registered() -> None:
    relay = relay_side(proof_required=False)
    with pytest.raises(ValueError, match="nothing to let in"):
        relay.let_in()
    with pytest.raises(ValueError, match="nothing to let in"):
        in_state(State.PROOF).let_in()


def test_a_key_that_is_not_admitted_is_told_why() -> None:
    gate = Gate(allowed=frozenset({BOB.public()}))
    relay, agent = relay_side(admit=gate.admit), agent_side()
    outcome = refused(give(relay, proof_for(relay, agent)).outcome)
    assert outcome.refusal is Refusal.NOT_ADMITTED
    assert "is not on this relay's list" in outcome.reason
    relay = relay_side(admit=gate.admit)
    last, _ = complete(relay, agent_side(key=BOB))
    assert last.outcome == Admitted(BOB.public(), BOB.public(), "list")


def test_the_gate_is_asked_only_for_keys_that_are_proved() -> None:
    asked: list[PublicKey] = []

    def admit(key: PublicKey, token: bytes) -> str:
        asked.append(key)
        return "open"

    relay = relay_side(admit=admit)
    give(relay, REGISTER)
    give(relay, encode(identity_frames.PROOF, bytes(200)))
    assert asked == []
    complete(relay_side(admit=admit), agent_side())
    assert asked == [KEY]


def test_sessions_have_their_size() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        RelayHandshake(
            RELAY,
            admit=Gate(open=True).admit,
            welcome=identity_frames.Welcome(),
            session=b"",
            nonce=bytes(24),
            now=0.0,
        )


def test_a_relays_identity_has_both_halves() -> None:
    assert RELAY.public == private("relay").public()
