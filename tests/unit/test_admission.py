"""Who is let in, what a list and a token file may say, and who gives way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.errors import ConfigError
from relayd.keys import PublicKey
from relayd.relay.admission import (
    CALM_S,
    FLAPPING_S,
    LIVED_S,
    Displacements,
    Gate,
    ProvedKeys,
    Verdict,
    claim,
    parse_allow_list,
    parse_tokens,
)
from relayd.wire.relay_handshake import NotAdmittedError
from tests.helpers.identities import ALICE, BOB, drawn

A, B = ALICE.public(), BOB.public()
OLD, NEW = "the-old-token-0001", "the-new-token-0002"


# Who is let in --------------------------------------------------------------------------------------------


def test_while_a_token_is_being_changed_both_are_good() -> None:
    gate = Gate(tokens=(NEW, OLD))
    assert gate.admit(A, OLD.encode()) == gate.admit(A, NEW.encode()) == "token"
    with pytest.raises(NotAdmittedError, match="not one of"):
        Gate(tokens=(NEW,)).admit(A, OLD.encode())


def test_no_token_and_a_wrong_one_are_told_apart() -> None:
    gate = Gate(tokens=(NEW,))
    with pytest.raises(NotAdmittedError, match="agent has none"):
        gate.admit(A, b"")
    with pytest.raises(NotAdmittedError, match="not one of") as caught:
        gate.admit(A, b"guess")
    assert NEW not in str(caught.value)


def test_a_list_lets_in_who_is_on_it() -> None:
    gate = Gate(allowed=frozenset({A}))
    assert gate.admit(A, b"") == gate.admit(A, b"any token") == "list"
    with pytest.raises(NotAdmittedError, match="not on this relay's list"):
        gate.admit(B, b"")


def test_an_empty_list_lets_in_nobody() -> None:
    with pytest.raises(NotAdmittedError):
        Gate(allowed=frozenset()).admit(A, b"")


def test_with_a_list_and_a_token_a_key_needs_both() -> None:
    gate = Gate(tokens=(NEW,), allowed=frozenset({A}))
    assert gate.admit(A, NEW.encode()) == "list and token"
    with pytest.raises(NotAdmittedError, match="list"):
        gate.admit(B, NEW.encode())
    with pytest.raises(NotAdmittedError, match="token"):
        gate.admit(A, b"guess")


def test_open_lets_in_any_key_whatever_else_is_set() -> None:
    assert Gate(open=True).admit(A, b"") == "open"
    gate = Gate(open=True, tokens=(NEW,), allowed=frozenset({B}))
    assert gate.admit(A, b"guess") == "open"
    assert gate.still_admits(A)
    assert gate.admit_bare(A) == "unproved"


def test_a_gate_without_any_lock_is_never_open_by_accident() -> None:
    with pytest.raises(ValueError, match="nobody can be let in"):
        Gate()


@pytest.mark.parametrize("token", ["", "short", "with a blank in the middle"])
def test_a_gate_takes_no_token_that_can_be_guessed(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Gate(tokens=(NEW, token))


def test_a_token_never_shows_in_a_repr() -> None:
    assert NEW not in repr(Gate(tokens=(NEW,)))


def test_a_key_that_is_taken_off_the_list_may_not_stay_and_a_changed_token_disconnects_nobody() -> None:
    assert Gate(allowed=frozenset({A})).still_admits(A)
    assert not Gate(tokens=(NEW,), allowed=frozenset({B})).still_admits(A)
    assert Gate(tokens=(NEW,)).still_admits(A)


def test_a_bare_register_needs_no_token_but_the_list_holds_for_it() -> None:
    assert Gate(tokens=(NEW,)).admit_bare(A) == "unproved"
    with pytest.raises(NotAdmittedError, match="list"):
        Gate(allowed=frozenset({B})).admit_bare(A)


# The files ------------------------------------------------------------------------------------------------


def test_an_allow_list_has_keys_comments_and_empty_lines() -> None:
    text = f"\N{ZERO WIDTH NO-BREAK SPACE}# nodes\r\n\n  {A}  # alice\r\n{B}\t# bob\n{A}"
    assert parse_allow_list(text, source="allow") == {A, B}
    assert parse_allow_list("", source="allow") == frozenset()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense!", "not base64"),
        (str(A)[:-2] + "=", "not base64"),
        ("AAAA", "3 bytes"),
        (str(A) + " " + str(B), "not"),
        ("A" * 43 + "=", "all zeros"),
        ("B" + "A" * 41 + "B=", "last character"),
        ("\N{GREEK SMALL LETTER ALPHA}" * 44, "not"),
    ],
)
def test_a_broken_allow_list_names_the_line_and_quotes_nothing(line: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_allow_list(f"# nodes\n{A}\n{line}\n{B}\n", source="/etc/allow")
    assert str(caught.value).startswith("/etc/allow:3: not a WireGuard key")
    assert line not in str(caught.value)
    assert caught.value.line == 3


@given(st.lists(st.binary(min_size=32, max_size=32).filter(any), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_an_allow_list_survives_the_round_trip(raws: list[bytes], end: str) -> None:
    keys = [PublicKey(raw) for raw in raws]
    assert parse_allow_list(end.join(map(str, keys)), source="allow") == set(keys)


@given(st.text(max_size=200))
def test_any_text_is_a_list_or_an_error_with_a_line(text: str) -> None:
    for parse in (parse_allow_list, parse_tokens):
        error = None
        try:
            parse(text, source="file")
        except ConfigError as caught:
            error = caught
        if error is not None:
            assert error.source == "file"
            assert error.line is None or 1 <= error.line <= text.count("\n") + 1


def test_a_token_file_keeps_its_order_and_each_token_once() -> None:
    text = f"# rotated\n{NEW}\n{OLD} # until all have moved\n{NEW}\nhas#a-hash-inside\n"
    assert parse_tokens(text, source="tokens") == (NEW, OLD, "has#a-hash-inside")


def test_a_broken_token_file_names_the_line_and_quotes_nothing() -> None:
    with pytest.raises(ConfigError, match="tokens:2: 8 characters") as caught:
        parse_tokens(f"{NEW}\nguess-me\n", source="tokens")
    assert "guess-me" not in str(caught.value)


def test_an_empty_token_file_is_an_error() -> None:
    with pytest.raises(ConfigError, match="holds no token"):
        parse_tokens("# nothing\n", source="tokens")


# Who gives way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proved", "holder_proved", "proved_before", "verdict"),
    [
        (True, None, False, Verdict.GRANT),
        (True, None, True, Verdict.GRANT),
        (True, False, False, Verdict.DISPLACE),
        (True, False, True, Verdict.DISPLACE),
        (True, True, True, Verdict.DISPLACE),
        (False, True, True, Verdict.WAIT),
        (False, True, False, Verdict.WAIT),
        (False, False, True, Verdict.WAIT),
        (False, None, True, Verdict.WAIT),
        (False, None, False, Verdict.GRANT),
        (False, False, False, Verdict.ASK),
    ],
)
def test_who_gives_way(
    proved: bool, holder_proved: bool | None, proved_before: bool, verdict: Verdict
) -> None:
    assert claim(proved=proved, holder_proved=holder_proved, proved_before=proved_before) is verdict


def test_a_key_that_was_proved_stays_so_when_its_agent_is_away() -> None:
    proved = ProvedKeys()
    assert A not in proved
    proved.add(A)
    assert A in proved
    assert B not in proved


def test_proved_keys_are_bounded_and_the_oldest_is_forgotten() -> None:
    proved = ProvedKeys(max_keys=2)
    keys = [PublicKey(drawn(str(number))) for number in range(3)]
    for key in (keys[0], keys[1], keys[0], keys[2]):
        proved.add(key)
    assert [key in proved for key in keys] == [True, False, True]


SILENT_S = LIVED_S
"""Of an agent that comes back from a fault."""


def test_g7_a_second_displacement_within_thirty_seconds_is_told() -> None:
    displaced = Displacements()
    assert not displaced.record(A, 100.0, silent_s=SILENT_S)
    assert not displaced.record(B, 101.0, silent_s=SILENT_S)
    assert displaced.record(A, 100.0 + FLAPPING_S - 0.1, silent_s=SILENT_S)


def test_an_agent_that_comes_back_now_and_then_is_told_nothing() -> None:
    displaced = Displacements()
    for number in range(10):
        assert not displaced.record(A, number * FLAPPING_S, silent_s=SILENT_S)


def test_g7_two_agents_that_pause_are_told_for_as_long_as_they_go_on() -> None:
    displaced = Displacements()
    displaced.record(A, 0.0, silent_s=SILENT_S)
    assert displaced.record(A, 1.0, silent_s=SILENT_S)
    for number in range(1, 20):
        assert displaced.record(A, 1.0 + number * 31, silent_s=SILENT_S)
    assert not displaced.record(A, 1.0 + 19 * 31 + CALM_S, silent_s=SILENT_S)


def test_g7_two_agents_that_pause_from_the_first_are_told_at_the_third_turn() -> None:
    displaced = Displacements()
    assert [displaced.record(A, number * 35.0, silent_s=1.0) for number in range(4)] == [False] * 2 + [
        True
    ] * 2


def test_turns_that_are_far_apart_are_no_turns() -> None:
    displaced = Displacements()
    assert not any(displaced.record(A, number * CALM_S, silent_s=1.0) for number in range(5))


def test_an_agent_that_comes_back_from_faults_and_once_moved_is_told_nothing() -> None:
    displaced = Displacements()
    for number, silent_s in enumerate((1.0, SILENT_S, SILENT_S, 1.0, SILENT_S)):
        assert not displaced.record(A, number * 40.0, silent_s=silent_s)


def test_a_key_that_was_displaced_again_is_not_the_oldest() -> None:
    displaced = Displacements(max_keys=2)
    displaced.record(A, 0.0, silent_s=SILENT_S)
    displaced.record(B, 1.0, silent_s=SILENT_S)
    displaced.record(A, 2.0, silent_s=SILENT_S)
    displaced.record(PublicKey(drawn("third")), 3.0, silent_s=SILENT_S)
    assert displaced.record(A, 4.0, silent_s=SILENT_S)


def test_displacements_are_forgotten_when_they_are_old_and_bounded_until_then() -> None:
    displaced = Displacements(max_keys=2)
    for number in range(5):
        displaced.record(PublicKey(drawn(str(number))), float(number), silent_s=SILENT_S)
    assert len(displaced) == 2
    displaced.forget(3.0 + CALM_S - 0.1)
    assert len(displaced) == 2
    displaced.forget(3.0 + CALM_S)
    assert len(displaced) == 1
    displaced.forget(4.0 + CALM_S)
    assert len(displaced) == 0
