"""Each line of the selector's table: the evidence that makes the change, and what doesn't."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from math import inf

import pytest

from relayd.endpoints import Endpoint
from relayd.paths.damping import CAP_S, FIRST_S, HELD_S, Damping
from relayd.paths.evidence import Evidence, PeerWord, ValidPair
from relayd.paths.selector import (
    ASKED_S,
    GRACE_S,
    HURRIED_S,
    LATE_S,
    RULES,
    SETTLE_S,
    SILENT_S,
    Selector,
    State,
)

HERE, THERE = (Endpoint(ip_address(a), 51820) for a in ("203.0.113.1", "203.0.113.2"))
T = 1000.0


def evidence(now: float = T, **more: object) -> Evidence:
    """A peer that talks and can be pinged; ours to lead."""
    base = Evidence(now=now, able=True, talks=True, leads=True, session=True, relay_answered_at=now)
    return replace(base, **more)  # type: ignore[arg-type]


def valid(remote: Endpoint = HERE, at: float = T, *, may_get_better: bool = False) -> tuple[ValidPair, ...]:
    return (ValidPair(remote, at, 100, may_get_better),)


def on_relay() -> Selector:
    selector = Selector(T - 100)
    selector.step(evidence(T - 100))
    assert (selector.ours, selector.state) == (True, State.RELAY)
    return selector


def direct(at: float = T - 60) -> Selector:
    selector = on_relay()
    selector.step(evidence(at, valid=valid(at=at)))
    assert (selector.state, selector.endpoint) == (State.DIRECT, HERE)
    return selector


def dead(now: float = T, **more: object) -> Evidence:
    """Silence on the direct path while the kernel sends and the relay answers."""
    return evidence(
        now,
        kernel=HERE,
        answered_at=now - SILENT_S,
        unanswered=20,
        unanswered_since=now - ASKED_S,
        sent_at=now - 0.5,
        heard_at=now - SILENT_S,
        relay_answered_at=now - 0.3,
        **more,
    )


def test_a_peer_that_does_not_talk_is_never_ours() -> None:
    for e in (
        evidence(talks=False, kernel=HERE, kernel_failed=True),
        evidence(able=False, valid=valid()),
        evidence(able=False, kernel=HERE, kernel_answered=True),
        evidence(talks=False),
    ):
        selector = Selector(T)
        assert selector.step(e) is None
        assert not selector.ours


def test_a_working_direct_endpoint_is_taken_over_as_it_is() -> None:
    selector = Selector(T)
    assert selector.step(evidence(kernel=HERE)) is None  # not before it has answered
    selector.step(evidence(kernel=HERE, kernel_answered=True))
    assert (selector.ours, selector.state, selector.endpoint) == (True, State.DIRECT, HERE)
    assert selector.changes == 0


def test_an_endpoint_that_answers_nothing_is_left_only_without_a_session_or_anything_received() -> None:
    silent = evidence(kernel=HERE, kernel_failed=True, relay_answered_at=T - 1)
    assert Selector(T).step(silent) is None
    assert Selector(T).step(replace(silent, sent_at=T - 1, heard_at=T - 2)) is None
    for e in (replace(silent, session=False), replace(silent, sent_at=T - 1, heard_at=T - 5)):
        selector = Selector(T)
        selector.step(e)
        assert (selector.ours, selector.state) == (True, State.RELAY)
        assert Selector(T).step(replace(e, relay_answered_at=T - 60)) is None  # the relay is no better


def test_without_a_session_the_first_pings_are_enough_to_leave_an_endpoint() -> None:
    slow = evidence(kernel=HERE, kernel_unanswered=True, relay_answered_at=T - 1)
    assert Selector(T).step(slow) is None
    assert Selector(T).step(replace(slow, sent_at=T - 1, heard_at=T - 5)) is None
    selector = Selector(T)
    selector.step(replace(slow, session=False))
    assert (selector.ours, selector.state) == (True, State.RELAY)


def test_a_full_size_answer_promotes() -> None:
    selector = on_relay()
    change = selector.step(evidence(valid=valid()))
    assert change is not None
    assert (change.state, change.endpoint) == (State.DIRECT, HERE)
    assert selector.changes == 1


def test_the_end_that_does_not_lead_waits_for_the_other() -> None:
    selector = on_relay()
    assert selector.step(evidence(leads=False, valid=valid())) is None
    word = PeerWord(direct=True, remote=HERE, at=T)
    assert selector.step(evidence(leads=False, word=word)) is None  # nothing valid: a word alone moves nobody
    selector.step(evidence(leads=False, valid=valid(), word=word))
    assert selector.state is State.DIRECT


def test_a_valid_pair_waits_a_moment_for_a_better_one() -> None:
    selector = on_relay()
    waiting = valid(may_get_better=True)
    assert selector.step(evidence(T + SETTLE_S / 2, valid=waiting)) is None
    selector.step(evidence(T + SETTLE_S + 0.01, valid=waiting))
    assert selector.state is State.DIRECT


def test_probing_is_told_and_ends_with_its_reason() -> None:
    selector = on_relay()
    selector.step(evidence(checking=True))
    assert selector.state is State.PROBING
    selector.step(evidence(T + 5, why_not="none of the peer's 2 addresses answered"))
    assert (selector.state, selector.reason) == (State.RELAY, "none of the peer's 2 addresses answered")
    assert selector.changes == 0


def test_rounds_that_end_alike_are_told_once() -> None:
    selector = on_relay()
    for round_ in range(100):
        selector.step(evidence(T + 10 * round_, checking=True))
        selector.step(evidence(T + 10 * round_ + 5, why_not="no answer"))
    assert len(selector.history) <= 4


def test_silence_while_something_is_sent_and_the_relay_answers_demotes() -> None:
    selector = direct()
    selector.step(dead())
    assert selector.state is State.RELAY
    assert selector.damping.until == T + FIRST_S


def test_a_mesh_may_want_more_silence_before_a_path_is_given_up() -> None:
    selector = direct()
    selector.silent_s = 2 * SILENT_S
    assert selector.step(dead()) is None
    longer = replace(
        dead(), answered_at=T - 2 * SILENT_S, unanswered_since=T - 2 * ASKED_S, heard_at=T - 2 * SILENT_S
    )
    change = selector.step(longer)
    assert change is not None
    assert change.state is State.RELAY
    assert "for 6 s" in change.reason


@pytest.mark.parametrize(
    "what",
    [
        {"sent_at": -inf, "heard_at": -inf},  # an idle tunnel, since ever
        {"sent_at": T - 100, "heard_at": T - 101},  # an idle tunnel
        {"heard_at": T - 0.5, "sent_at": T - 0.5},  # the kernel hears the peer
        {"heard_at": T - ASKED_S + 0.2},  # it did until a moment ago
        {"relay_answered_at": T - SILENT_S},  # the relay doesn't answer either
        {"relay_answered_at": -inf},
        {"answered_at": T - SILENT_S + 0.5},  # a Ping was answered lately
        {"unanswered": 2},  # we were asleep ourselves
        {"unanswered_since": T - 0.5},
        {"unanswered": 0, "unanswered_since": inf},
    ],
    ids=str,
)
def test_anything_less_than_that_demotes_nothing(what: dict[str, float]) -> None:
    selector = direct()
    selector.step(replace(dead(), **what))  # type: ignore[arg-type]
    assert selector.state is State.DIRECT


def test_after_an_address_change_silence_is_believed_sooner_and_not_held_against_the_path() -> None:
    soon = replace(
        dead(), hurried=True, answered_at=T - HURRIED_S, unanswered_since=T - HURRIED_S, heard_at=T -
        HURRIED_S, unanswered=6,
    )  # fmt: skip
    assert direct().step(replace(soon, hurried=False)) is None
    selector = direct()
    selector.step(soon)
    assert selector.state is State.RELAY
    assert selector.damping.failures == 0


def test_when_the_peer_goes_to_the_relay_we_go_too() -> None:
    selector = direct()
    old = PeerWord(direct=False, remote=None, at=selector.since - 1)
    assert selector.step(evidence(kernel=HERE, word=old)) is None
    selector.step(evidence(kernel=HERE, word=PeerWord(direct=False, remote=None, at=T)))
    assert selector.state is State.RELAY
    assert selector.damping.failures == 1


def test_a_peer_that_roams_is_followed() -> None:
    selector = direct()
    selector.step(evidence(kernel=THERE))
    assert (selector.state, selector.endpoint) == (State.DIRECT, THERE)
    assert selector.changes == 1  # of the path; this was one of the endpoint


def test_a_late_relayed_packet_moves_nothing() -> None:
    selector = direct()
    assert selector.step(evidence(kernel=None)) is None
    assert selector.endpoint == HERE


def test_another_pair_takes_over_from_one_that_went_silent() -> None:
    selector = direct()
    silent = evidence(
        kernel=HERE, answered_at=T - 1, unanswered=5, unanswered_since=T - 0.9, valid=valid(THERE, T - 0.1)
    )
    assert selector.step(replace(silent, valid=valid(THERE, T - 2))) is None  # valid before the silence
    selector.step(silent)
    assert (selector.state, selector.endpoint) == (State.DIRECT, THERE)


def test_on_the_relay_an_endpoint_that_the_kernel_roamed_to_may_stay_for_a_moment() -> None:
    selector = on_relay()
    e = evidence(T, kernel=HERE)
    selector.step(e)
    assert selector.tolerates(e)
    assert not selector.tolerates(evidence(T + GRACE_S, kernel=HERE))
    selector.step(evidence(T + 1, kernel=HERE, valid=valid(at=T + 1), leads=False))
    assert selector.state is State.DIRECT


def test_after_a_demotion_late_direct_packets_move_nothing() -> None:
    selector = direct()
    selector.step(dead())
    late = evidence(T + LATE_S / 2, kernel=HERE, valid=valid(at=T + 0.1), leads=False)
    assert selector.step(late) is None
    assert not selector.tolerates(late)


def test_an_agent_that_falls_silent_loses_its_peer_no_session() -> None:
    selector = direct()
    assert selector.step(evidence(talks=False, kernel=HERE)) is None
    selector.step(evidence(talks=False, session=False, kernel=HERE))
    assert not selector.ours
    assert selector.changes == 1


def test_each_failure_soon_after_a_promotion_doubles_the_wait() -> None:
    damping = Damping()
    waits = []
    for _ in range(12):
        damping.failed(10.0, T)
        waits.append(damping.until - T)
    assert waits[:4] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S]
    assert waits[-1] == CAP_S
    damping.failed(HELD_S, T)
    assert damping.until - T == FIRST_S


def test_a_damped_path_is_not_promoted_and_says_why() -> None:
    selector = direct()
    selector.step(dead())
    selector.step(evidence(T + 1, checking=True))
    selector.step(evidence(T + 2, valid=valid(at=T + 2)))
    assert (selector.state.value, "waiting" in selector.reason) == ("relay", True)
    selector.step(evidence(T + FIRST_S, valid=valid(at=T + FIRST_S)))
    assert selector.state.value == "direct"


def test_every_state_has_a_way_out_and_every_rule_a_reason() -> None:
    for state in State:
        assert any(state in rule.states and rule.to is not state for rule in RULES if rule.ours)
    assert len({(rule.holds, rule.states) for rule in RULES}) == len(RULES)
