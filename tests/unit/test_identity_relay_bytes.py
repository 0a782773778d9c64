"""The relay's side of the handshake: how its stream may be cut, and how much of it there may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.wire import frames, identity_frames
from relayd.wire.frames import HEADER_BYTES, KEYED_BYTES, encode
from relayd.wire.identity import BEFORE_PROOF, MAX_INPUT_BYTES, Admitted, Refusal, Refused, RelayStep
from relayd.wire.relay_handshake import RelayHandshake
from tests.helpers.identities import ALICE, agent_side, proof_for, relay_side, to_agent

REGISTER = frames.encode_register(ALICE.public())
ECHO = frames.encode_data(ALICE.public(), b"echo")


def give(relay: RelayHandshake, stream: bytes, now: float = 0.0) -> RelayStep:
    return relay.receive(stream, now)


def refused(step: RelayStep) -> Refused:
    assert isinstance(step.outcome, Refused), step
    return step.outcome


@given(cuts=st.lists(st.integers(1, 60), max_size=30))
def test_the_stream_may_be_cut_anyhow(cuts: list[int]) -> None:
    relay, agent = relay_side(), agent_side()
    stream, send, outcome = agent.hello(), b"", None
    challenged = False
    while stream:
        size = cuts.pop() if cuts else 1
        step = relay.receive(stream[:size], 0.0)
        stream = stream[size:]
        send += step.send
        outcome = step.outcome
        if send and not challenged:
            challenged = True
            stream += frames.KEEPALIVE_FRAME + ECHO + to_agent(agent, send).send
            send = b""
    assert isinstance(outcome, Admitted)
    assert to_agent(agent, send).outcome is not None
    assert relay.dropped == {BEFORE_PROOF: 2}


def test_a_shell_that_reads_what_is_wanted_reads_not_a_byte_behind_the_proof() -> None:
    relay, agent = relay_side(), agent_side()
    stream = agent.hello()
    read = outcome = None
    challenged = False
    while outcome is None:
        assert relay.wants > 0
        read, stream = stream[: relay.wants], stream[relay.wants :]
        step = relay.receive(read, 0.0)
        outcome = step.outcome
        if step.send and not challenged:
            challenged = True
            stream += ECHO + to_agent(agent, step.send).send + b"what comes behind"
    assert isinstance(outcome, Admitted)
    assert stream == b"what comes behind"
    assert relay.unread == b""


def test_what_was_read_behind_the_proof_is_not_lost() -> None:
    relay = relay_side()
    proof = proof_for(relay, agent_side())
    behind = ECHO * 500  # more than may be sent before, and it doesn't come before
    assert isinstance(give(relay, proof + behind).outcome, Admitted)
    assert relay.unread == behind


def test_register_is_wanted_whole_and_nothing_behind_it() -> None:
    relay = relay_side()
    assert relay.wants == KEYED_BYTES
    give(relay, REGISTER[:10])
    assert relay.wants == KEYED_BYTES - 10
    give(relay, REGISTER[10:])
    assert relay.wants == HEADER_BYTES


def test_four_kibibytes_without_a_proof_are_the_end() -> None:
    relay = relay_side()
    give(relay, REGISTER)
    sent = len(REGISTER)
    outcome = None
    while outcome is None:
        outcome = give(relay, ECHO).outcome
        sent += len(ECHO)
        assert sent < MAX_INPUT_BYTES + len(ECHO)
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.PROTOCOL
    assert "4096" in outcome.reason
    assert sent >= MAX_INPUT_BYTES - len(ECHO)


def test_four_kibibytes_are_counted_through_frames_that_fit_exactly() -> None:
    relay = relay_side()
    give(relay, REGISTER)
    rest = MAX_INPUT_BYTES - len(REGISTER) - HEADER_BYTES
    assert "without a proof" in refused(give(relay, encode(frames.KEEPALIVE, bytes(rest)))).reason
    relay = relay_side()
    give(relay, REGISTER)
    assert give(relay, encode(frames.KEEPALIVE, bytes(rest - 1))) == RelayStep()


@pytest.mark.parametrize("length", [0, 5000, 65536, 65537, 2**32 - 1])
def test_a_frame_that_is_announced_too_long_is_refused_before_its_bytes_come(length: int) -> None:
    for kind in (frames.DATA, identity_frames.PROOF):
        relay = relay_side()
        give(relay, REGISTER)
        header = frames.HEADER.pack(length, kind)
        assert refused(give(relay, header)).refusal is Refusal.PROTOCOL
        assert relay.unread == b""
    first = relay_side()
    assert refused(give(first, frames.HEADER.pack(length, frames.REGISTER)))


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_garbage_is_refused_or_waited_on_and_nothing_else(data: bytes, registered: bool, whole: bool) -> None:
    relay = relay_side()
    if registered:
        give(relay, REGISTER)
    for part in [data] if whole else [data[at : at + 1] for at in range(len(data))]:
        step = give(relay, part)
        assert step.outcome is None or isinstance(step.outcome, Refused)
        assert relay.wants > 0
