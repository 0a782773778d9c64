"""relay_session against a relay that lies: whatever comes, it raises nothing, sends little, and carries
nothing from a relay that hasn't proved itself. The pure machines against each other, and against noise.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.agent.link_state import LinkState, Moved
from relayd.agent.relay_session import MAX_ANSWERS_S, Connected, RelaySession, Step
from relayd.keys import PublicKey
from relayd.wire.agent_handshake import State
from relayd.wire.frames import MAX_LENGTH, RELAY_PROBE, encode_error
from relayd.wire.identity import WELCOME_S
from relayd.wire.identity_frames import (
    CHALLENGE,
    DRAIN,
    HEALTH,
    PEER_GONE,
    PING,
    PONG,
    PROOF,
    WELCOME,
    Challenge,
)
from tests.helpers.identities import ALICE, OTHER_RELAY, RELAY, agent_side, drawn, frames_of, relay_side

KINDS = st.one_of(
    st.sampled_from([CHALLENGE, WELCOME, PROOF, PING, PONG, PEER_GONE, DRAIN, HEALTH, RELAY_PROBE]),
    st.integers(0, 255),
)
BODIES = st.one_of(
    st.binary(max_size=80), st.sampled_from([bytes(8), bytes(32), bytes(33), bytes(66), bytes(2)])
)


class Sitting:
    """A session and the machine of its handshake."""

    def __init__(
        self, *, pin: PublicKey | None = RELAY.public, insecure: bool = False, name: str = "1"
    ) -> None:
        self.handshake = agent_side(name, pin=pin, insecure=insecure)
        state = LinkState(ALICE.public(), b"nonc", 0.0, keepalive_s=25.0, probe_s=8.0)
        self.session = RelaySession(self.handshake, state, 0.0)

    def take(self, stream: bytes, now: float = 0.0) -> Step:
        """Give one frame to the session."""
        ((kind, body),) = frames_of(stream)
        return self.session.on_frame(kind, body, now)

    def welcomed(self) -> Sitting:
        """After an honest relay's whole handshake."""
        relay = relay_side()
        challenge = relay.receive(self.session.hello(), 0.0).send
        (proof,) = self.take(challenge).frames
        step = self.take(relay.receive(proof, 0.0).send)
        assert isinstance(step.events[0], Connected)
        return self


@given(st.lists(st.tuples(KINDS, BODIES, st.floats(0, 30)), max_size=40), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_noise_raises_nothing_and_proves_nothing(
    frames: list[tuple[int, bytes, float]], pinned: bool, insecure: bool
) -> None:
    sitting = Sitting(pin=RELAY.public if pinned else None, insecure=insecure)
    for kind, body, now in sorted(frames, key=lambda one: one[2]):
        step = sitting.session.on_frame(kind, body, now)
        step = sitting.session.due(now, Moved()) if not step.end else step
        assert sitting.session.proved is None
        assert not sitting.session.connected
        if pinned or not insecure:
            assert not sitting.session.may_carry
        if sitting.handshake.state is State.REFUSED:
            assert not sitting.session.may_carry


@given(st.lists(st.tuples(KINDS, BODIES, st.floats(0, 5)), max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_proved_relay_that_lies_raises_nothing_and_is_answered_within_bounds(
    frames: list[tuple[int, bytes, float]],
) -> None:
    sitting = Sitting().welcomed()
    answers = 0
    for kind, body, now in sorted(frames, key=lambda one: one[2]):
        step = sitting.session.on_frame(kind, body, now)
        answers += len(step.frames)
        if step.end:
            break
    assert answers <= len(frames)
    assert answers <= MAX_ANSWERS_S * 6


@given(st.binary(max_size=200))
def test_data_from_our_own_key_is_no_sign_of_life_unless_we_sent_it(payload: bytes) -> None:
    sitting = Sitting(pin=None, insecure=True)
    sitting.session.due(0.0, Moved())
    sitting.session.on_own_data(payload, 0.1)
    assert not sitting.session.connected


def test_a_relay_in_the_middle_that_passes_everything_on_is_the_relay() -> None:
    """It sees ciphertext, as any wire does; what it can't do is to pass for the relay, or for the agent."""
    sitting, relay = Sitting(), relay_side()
    challenge = relay.receive(sitting.session.hello(), 0.0).send
    (proof,) = sitting.take(challenge).frames
    assert sitting.take(relay.receive(proof, 0.0).send).events


def test_a_relay_in_the_middle_with_a_key_of_its_own_gets_no_proof_for_a_pinned_one() -> None:
    step = Sitting().take(Challenge(OTHER_RELAY.public, drawn("s")).encode())
    assert not step.frames
    assert "is pinned" in step.end


def test_a_proof_that_was_made_for_the_middle_is_worth_nothing_at_the_relay() -> None:
    """Without a pin the agent trusts whom it meets; what it proves there can't be used elsewhere."""
    sitting, real = Sitting(pin=None), relay_side()
    real.receive(sitting.session.hello(), 0.0)
    (proof,) = sitting.take(Challenge(OTHER_RELAY.public, drawn("s")).encode()).frames
    outcome = real.receive(proof, 0.0).outcome
    assert "no proof of key" in str(outcome)


def test_a_welcome_of_another_connection_is_refused() -> None:
    first, relay = Sitting(name="1"), relay_side("1")
    (proof,) = first.take(relay.receive(first.session.hello(), 0.0).send).frames
    replayed = relay.receive(proof, 0.0).send
    second, relay = Sitting(name="2"), relay_side("2")
    assert second.take(relay.receive(second.session.hello(), 0.0).send).frames
    step = second.take(replayed)
    assert "no proof of the relay's key" in step.end
    assert not second.session.may_carry


def test_our_own_proof_reflected_as_a_welcome_is_refused() -> None:
    sitting = Sitting()
    (proof,) = sitting.take(Challenge(RELAY.public, drawn("s")).encode()).frames
    ((_, body),) = frames_of(proof)
    assert sitting.session.on_frame(WELCOME, body, 0.0).end


@pytest.mark.parametrize("after", ["nothing", "challenge", "welcome"])
def test_a_second_challenge_never_gets_a_second_proof(after: str) -> None:
    sitting = Sitting().welcomed() if after == "welcome" else Sitting()
    challenge = Challenge(RELAY.public, drawn("s")).encode()
    if after != "welcome":
        assert sitting.take(challenge).frames
    if after == "nothing":
        return
    step = sitting.take(challenge)
    assert (step.frames, bool(step.end)) == ((), True)


def test_a_relay_that_stalls_after_its_challenge_is_left_in_time() -> None:
    sitting = Sitting()
    sitting.take(Challenge(RELAY.public, drawn("s")).encode(), 1.0)
    assert sitting.session.next_at <= 1.0 + WELCOME_S
    assert sitting.session.due(1.0 + WELCOME_S, Moved()).end
    assert sitting.handshake.state is State.REFUSED


def test_a_relay_that_dribbles_useless_frames_gains_no_time() -> None:
    sitting = Sitting()
    now, end = 0.0, ""
    while not end and now < 60.0:
        now += 0.1
        end = sitting.session.on_frame(0x7E, b"still here", now).end or sitting.session.due(now, Moved()).end
    assert now < 5.2


def test_a_text_as_long_as_a_frame_is_cut_and_shows_nothing_odd() -> None:
    sitting = Sitting().welcomed()
    (health,) = sitting.session.on_frame(HEALTH, b"\x1b[2J" * (MAX_LENGTH // 5), 0.0).events
    assert len(str(health)) < 4096
    assert "\x1b" not in str(health)
    (complaint,) = sitting.take(encode_error("\x1b[2Jgone")).events
    assert "\x1b" not in str(complaint)


def test_a_clock_ten_years_off_changes_nothing() -> None:
    """G14: only differences of a clock that nobody sets are used, whatever it shows."""
    for began in (0.0, 3.2e8, -3.2e8):
        handshake = agent_side(pin=RELAY.public, now=began)
        state = LinkState(ALICE.public(), b"nonc", began, keepalive_s=25.0, probe_s=8.0)
        session = RelaySession(handshake, state, began)
        relay = relay_side(now=-began)
        ((kind, body),) = frames_of(relay.receive(session.hello(), -began).send)
        (proof,) = session.on_frame(kind, body, began + 0.1).frames
        ((kind, body),) = frames_of(relay.receive(proof, -began).send)
        assert session.on_frame(kind, body, began + 0.2).events
        assert session.connected
