"""The agent's side of the handshake: what it takes from a relay, and what it holds against one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.keys import PublicKey
from relayd.wire import frames, identity_frames
from relayd.wire.agent_handshake import AgentHandshake, State
from relayd.wire.frames import encode
from relayd.wire.identity import (
    BEFORE_PROOF,
    AgentOutcome,
    AgentStep,
    Refusal,
    Refused,
    Trust,
    Unproved,
    Welcomed,
)
from tests.helpers.identities import (
    ALICE,
    OTHER_RELAY,
    RELAY,
    WELCOME,
    agent_side,
    complete,
    drawn,
    frames_of,
    proof_for,
    relay_side,
    to_agent,
)

KEY = ALICE.public()
CHALLENGE = identity_frames.Challenge(RELAY.public, drawn("session 1")).encode()
AFTERWARDS = {
    "PeerGone": identity_frames.PeerGone(KEY, 0).encode(),
    "Drain": identity_frames.encode_drain(1),
    "Health": identity_frames.encode_health("no"),
    "Ping": identity_frames.encode_ping(bytes(8)),
    "Pong": identity_frames.encode_pong(bytes(8)),
}
FROM_AGENT = {"Register": frames.encode_register(KEY), "Proof": encode(identity_frames.PROOF, bytes(100))}
PART_1 = [
    frames.encode_data(KEY, b"echo"),
    frames.encode_hint(KEY),
    frames.KEEPALIVE_FRAME,
    frames.encode_relay_probe(bytes(8)),
    encode(0x3F, b"from a later day"),
    encode(0x10),
]


def refused(outcome: AgentOutcome | None) -> Refused:
    assert isinstance(outcome, Refused), outcome
    return outcome


def in_state(state: State, *, insecure: bool = False) -> AgentHandshake:
    agent = agent_side(insecure=insecure)
    if state is State.DONE:
        complete(relay_side(), agent)
    elif state is State.WELCOME:
        to_agent(agent, CHALLENGE)
    assert agent.state is state
    return agent


def test_a_relay_that_proves_its_key_is_trusted_and_heard() -> None:
    agent = agent_side(pin=RELAY.public)
    _, last = complete(relay_side(), agent)
    assert last == AgentStep(outcome=Welcomed(RELAY.public, Trust.PINNED, WELCOME))
    assert agent.next_at == math.inf


def test_hello_is_the_register_of_part_1() -> None:
    assert agent_side().hello() == frames.encode_register(KEY)


# Every frame in every state -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.CHALLENGE, State.WELCOME, State.DONE])
@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("name", FROM_AGENT)
def test_what_only_agents_send_is_refused_from_a_relay(state: State, insecure: bool, name: str) -> None:
    outcome = refused(to_agent(in_state(state, insecure=insecure), FROM_AGENT[name]).outcome)
    assert outcome == Refused(Refusal.PROTOCOL, f"{name} is an agent's to send")


@pytest.mark.parametrize("state", [State.CHALLENGE, State.WELCOME])
@pytest.mark.parametrize("name", AFTERWARDS)
def test_liveness_comes_after_welcome(state: State, name: str) -> None:
    outcome = refused(to_agent(in_state(state), AFTERWARDS[name]).outcome)
    assert outcome == Refused(Refusal.PROTOCOL, f"{name} before Welcome")


@pytest.mark.parametrize("name", AFTERWARDS)
def test_liveness_is_not_the_handshakes_business_once_it_is_over(name: str) -> None:
    assert to_agent(in_state(State.DONE), AFTERWARDS[name]) == AgentStep()


def test_welcome_before_challenge_is_refused() -> None:
    relay, agent = relay_side(), agent_side()
    welcome = relay.receive(proof_for(relay, agent), 0.0).send
    outcome = refused(to_agent(agent_side(), welcome).outcome)
    assert outcome == Refused(Refusal.PROTOCOL, "Welcome before Challenge")


@pytest.mark.parametrize("state", [State.WELCOME, State.DONE])
def test_a_second_challenge_is_refused(state: State) -> None:
    step = to_agent(in_state(state), CHALLENGE)
    assert step == AgentStep(outcome=Refused(Refusal.PROTOCOL, "a second Challenge"))


def test_a_second_welcome_is_refused() -> None:
    relay, agent = relay_side(), agent_side()
    welcome = relay.receive(proof_for(relay, agent), 0.0).send
    assert isinstance(to_agent(agent, welcome).outcome, Welcomed)
    assert to_agent(agent, welcome).outcome == Refused(Refusal.PROTOCOL, "a second Welcome")


@pytest.mark.parametrize("state", [State.CHALLENGE, State.WELCOME])
@pytest.mark.parametrize("frame", PART_1)
def test_part_1_before_welcome_is_dropped_and_ends_nothing(state: State, frame: bytes) -> None:
    agent = in_state(state)
    assert to_agent(agent, frame) == AgentStep(dropped=BEFORE_PROOF)
    assert not agent.may_carry
    assert agent.state is state


@pytest.mark.parametrize("frame", PART_1)
def test_part_1_is_not_the_handshakes_business_once_it_is_over(frame: bytes) -> None:
    agent = in_state(State.DONE)
    assert to_agent(agent, frame, 1e9) == AgentStep()
    assert agent.may_carry


@pytest.mark.parametrize("state", [State.CHALLENGE, State.WELCOME])
def test_error_ends_it_with_the_relays_words(state: State) -> None:
    outcome = refused(to_agent(in_state(state), frames.encode_error("no room")).outcome)
    assert outcome == Refused(Refusal.REFUSED_BY_RELAY, "the relay says: no room")


def test_error_after_welcome_is_for_the_link() -> None:
    assert to_agent(in_state(State.DONE), frames.encode_error("replaced")) == AgentStep()


@pytest.mark.parametrize("frame", [CHALLENGE, *PART_1, *AFTERWARDS.values()])
def test_a_refusal_is_final(frame: bytes) -> None:
    agent = agent_side()
    first = to_agent(agent, frames.encode_error("no")).outcome
    assert to_agent(agent, frame) == AgentStep(outcome=first)
    assert agent.due(1e9) == AgentStep(outcome=first)
    assert not agent.may_carry


@given(st.integers(0, 255), st.binary(max_size=300), st.sampled_from([State.CHALLENGE, State.WELCOME]))
def test_garbage_is_refused_or_dropped_and_nothing_else(kind: int, body: bytes, state: State) -> None:
    step = in_state(state).on_frame(kind, body, 0.0)
    assert isinstance(step.outcome, Refused) or (step.outcome is None and not step.send)


def test_challenge_of_another_version_is_refused() -> None:
    outcome = refused(agent_side().on_frame(identity_frames.CHALLENGE, b"\x02" + bytes(65), 0.0).outcome)
    assert outcome.refusal is Refusal.PROTOCOL
    assert "version 2" in outcome.reason


# Which key ------------------------------------------------------------------------------------------------


def test_another_key_than_the_pinned_one_gets_no_proof() -> None:
    step = to_agent(agent_side(pin=OTHER_RELAY.public, insecure=True), CHALLENGE)
    assert step.send == b""
    assert refused(step.outcome).refusal is Refusal.RELAY_KEY
    assert RELAY.public.short() in refused(step.outcome).reason
    assert OTHER_RELAY.public.short() in refused(step.outcome).reason


@pytest.mark.parametrize(
    ("remembered", "trust", "previous"),
    [
        (None, Trust.FIRST, None),
        (RELAY.public, Trust.REMEMBERED, None),
        (OTHER_RELAY.public, Trust.CHANGED, OTHER_RELAY.public),
    ],
)
def test_without_a_pin_the_first_key_is_trusted_and_a_change_is_told(
    remembered: PublicKey | None, trust: Trust, previous: PublicKey | None
) -> None:
    _, last = complete(relay_side(), agent_side(remembered=remembered))
    assert last.outcome == Welcomed(RELAY.public, trust, WELCOME, previous)


def test_a_key_is_remembered_only_once_it_is_proved() -> None:
    # Until then the relay has shown a number: there is no outcome that names it.
    step = to_agent(agent_side(), CHALLENGE)
    assert step.outcome is None


# Relays that prove nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize("insecure", [False, True])
def test_no_challenge_and_a_pin_is_refused_after_five_seconds(insecure: bool) -> None:
    agent = agent_side(pin=RELAY.public, insecure=insecure)
    assert not agent.may_carry
    assert agent.next_at == 5.0
    assert agent.due(4.99) == AgentStep()
    outcome = refused(agent.due(5.0).outcome)
    assert outcome.refusal is Refusal.NO_CHALLENGE
    assert "is pinned" in outcome.reason


def test_no_challenge_is_refused_unless_it_is_allowed_and_says_how() -> None:
    agent = agent_side()
    outcome = refused(agent.due(5.0).outcome)
    assert outcome.refusal is Refusal.NO_CHALLENGE
    assert "--insecure-relay" in outcome.reason


def test_a_relay_that_need_not_prove_itself_carries_at_once_and_is_told_of_once() -> None:
    agent = agent_side(insecure=True)
    assert agent.may_carry
    assert to_agent(agent, PART_1[0]) == AgentStep()
    assert isinstance(agent.due(5.0).outcome, Unproved)
    assert agent.due(1e9) == AgentStep()
    assert agent.may_carry


def test_a_relay_that_proved_itself_before_and_does_not_now_is_told_of() -> None:
    outcome = agent_side(insecure=True, remembered=RELAY.public).due(5.0).outcome
    assert isinstance(outcome, Unproved)
    assert RELAY.public.short() in outcome.reason


def test_a_challenge_that_comes_late_is_answered_where_none_was_needed() -> None:
    relay, agent = relay_side(), agent_side(insecure=True)
    challenge = relay.receive(agent.hello(), 0.0).send
    step = to_agent(agent, challenge, 6.0)
    assert isinstance(step.outcome, Unproved)
    welcome = relay.receive(step.send, 6.0).send
    assert isinstance(to_agent(agent, welcome, 6.0).outcome, Welcomed)
    assert agent.next_at == math.inf


def test_a_challenge_that_comes_late_is_refused_where_one_was_needed() -> None:
    step = to_agent(agent_side(), CHALLENGE, 5.0)
    assert step.send == b""
    assert refused(step.outcome).refusal is Refusal.NO_CHALLENGE


def test_errors_of_a_relay_that_need_not_prove_itself_are_for_the_link() -> None:
    assert to_agent(agent_side(insecure=True), frames.encode_error("slow down")) == AgentStep()


def test_a_relay_that_begins_to_prove_itself_must_go_through_with_it() -> None:
    agent = agent_side(insecure=True)
    to_agent(agent, CHALLENGE)
    assert (
        refused(agent.on_frame(identity_frames.WELCOME, bytes(100), 0.0).outcome).refusal
        is Refusal.BAD_WELCOME
    )
    assert not agent.may_carry


# Time -----------------------------------------------------------------------------------------------------


def test_no_welcome_is_refused_after_five_seconds_more() -> None:
    agent = agent_side()
    to_agent(agent, CHALLENGE, 4.0)
    assert agent.next_at == 9.0
    assert agent.due(8.99) == AgentStep()
    assert refused(agent.due(9.0).outcome) == Refused(Refusal.TIMEOUT, "no Welcome within 5 s of our Proof")


def test_a_good_welcome_that_comes_late_is_refused() -> None:
    for at, good in ((4.99, True), (5.0, False)):
        relay, agent = relay_side(), agent_side()
        welcome = relay.receive(proof_for(relay, agent), 0.0).send
        assert isinstance(to_agent(agent, welcome, at).outcome, Welcomed if good else Refused)


def test_time_starts_at_the_connection_whatever_the_clock_says() -> None:
    for start in (-3e8, 3e8):  # a clock ten years off
        agent = agent_side(now=start)
        assert agent.due(start + 4.9) == AgentStep()
        assert isinstance(to_agent(agent, CHALLENGE, start + 4.9).send, bytes)
        assert agent.state is State.WELCOME


def test_nonces_have_their_size() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        AgentHandshake(ALICE, agent_nonce=b"", nonce=bytes(24), now=0.0)


def test_one_proof_is_one_frame() -> None:
    ((kind, body),) = frames_of(proof_for(relay_side(), agent_side()))
    assert kind == identity_frames.PROOF
    assert len(body) <= identity_frames.MAX_PROOF_BYTES
