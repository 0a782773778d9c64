"""`relayd top` without a terminal: keys, choices, rates, and what the screen looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.observe.units import brief, compact
from relayd.top.columns import columns_of
from relayd.top.keys import keys_of
from relayd.top.samples import Samples
from relayd.top.state import MAX_FILTER, TopState
from relayd.top.view import BARS, MIN_COLUMNS, MIN_LINES, screen, spark
from tests.helpers.observed import agent_peer, agent_status, key, relay_peer, relay_status

COLUMNS = ("key", "in", "out")


def samples(*statuses: dict[str, Any]) -> Samples:
    """A process that has answered this."""
    one = Samples("/run/relayd/x.sock")
    for status in statuses:
        one.heard(status)
    return one


def shown(
    one: Samples | Sequence[Samples], state: TopState | None = None, *, width: int = 80, height: int = 24
) -> str:
    many = [one] if isinstance(one, Samples) else list(one)
    lines = screen(many, state or TopState(), width=width, height=height, now=100.0)
    assert len(lines) == height
    assert all(line.cell_len <= width for line in lines), [
        line.plain for line in lines if line.cell_len > width
    ]
    return "\n".join(line.plain for line in lines)


# Keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1bOB\x1b[C\x1b[D", ["up", "down", "right", "left"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~\x1b[Z", ["pageup", "pagedown", "home", "end", "backtab"]),
        (b"\x1b", ["escape"]),
        (b"\t\r\x7f /", ["tab", "enter", "backspace", " ", "/"]),
        ("ä".encode(), ["ä"]),
        (b"\x1b[1;5C\x1b[200~x", ["x"]),  # Ctrl-Right, the begin of a paste: not ours
        (b"\x00\x01\xff", []),
    ],
)
def test_keys_are_told_by_their_names(data: bytes, keys: list[str]) -> None:
    assert keys_of(data) == keys


@given(st.binary(max_size=64))
def test_any_bytes_are_keys_or_nothing(data: bytes) -> None:
    assert all(len(one) > 1 or one.isprintable() for one in keys_of(data))


# Choices


def press(state: TopState, *keys: str, sort: str = "out") -> TopState:
    for one in keys:
        state = state.pressed(one, COLUMNS, processes=2, sort=state.sort or sort)
    return state


def test_the_order_goes_from_column_to_column_and_round() -> None:
    assert press(TopState(), "left").sort == "in"
    assert press(TopState(), "right").sort == "key"
    assert press(TopState(), "<", "<", "<").sort == "out"
    assert press(TopState(), "r").ascending


def test_typing_goes_into_the_filter_until_enter_or_escape() -> None:
    state = press(TopState(), "/", "q", "?", "backspace", "r")
    assert (state.typing, state.wanted, state.quit, state.ascending) == (True, "qr", False, False)
    state = press(state, "enter", "r")
    assert (state.typing, state.wanted, state.ascending) == (False, "qr", True)
    assert press(state, "escape").wanted == ""
    assert press(TopState(), "/", "x", "escape") == TopState()
    assert len(press(TopState(), "/", *("x" * 200)).wanted) == MAX_FILTER


def test_help_ends_at_any_key_and_q_quits_from_there_too() -> None:
    assert press(TopState(), "?").help
    assert press(TopState(), "?", "r") == TopState()
    assert press(TopState(), "?", "q").quit
    assert press(TopState(), "q").quit


def test_scrolling_processes_and_pausing() -> None:
    assert press(TopState(), "down", "down", "up").first_row == 1
    assert press(TopState(), "up").first_row == 0
    assert press(TopState(), "pagedown", "home").first_row == 0
    assert press(TopState(), "tab").process == 1
    assert press(TopState(), "tab", "tab").process == 0
    assert press(TopState(), "backtab").process == 1
    assert press(TopState(), "p").paused
    assert not press(TopState(), "p", " ").paused


@given(
    st.lists(st.sampled_from(["q", "?", "/", "p", "r", "up", "end", "tab", "left", "x", "escape", "enter"]))
)
def test_no_keys_lead_astray(keys: list[str]) -> None:
    state = press(TopState(), *keys)
    assert state.sort in ("", *COLUMNS)
    shown([samples(relay_status(30)), samples(agent_status())], state)


# What was heard


def test_rates_are_by_the_processs_own_clock() -> None:
    one = samples(relay_status(0, uptime_s=10.0), relay_status(0, uptime_s=12.0, bytes_out=9_250_000))
    assert one.rate("bytes_out") == 125_000
    assert list(one.sent) == [1_000_000]


def test_a_restart_and_a_new_connection_begin_without_a_rate() -> None:
    first, later = relay_status(1, uptime_s=10.0), relay_status(1, uptime_s=12.0)
    first["peers"] = [relay_peer(1, bytes_in=500, bytes_out=500)]
    later["peers"] = [relay_peer(1, bytes_in=5, bytes_out=750)]
    (peer,) = samples(first, later).peers()
    assert (peer["in_rate"], peer["out_rate"]) == (None, 1000)
    assert samples(later, first).rate("bytes_out") is None


def test_an_agents_traffic_is_that_of_its_tunnels() -> None:
    first = agent_status(("direct", "relay"), uptime_s=10.0)
    later = agent_status(("direct", "relay"), uptime_s=12.0)
    later["peers"][1]["rx_bytes"] += 250
    assert list(samples(first, later).received) == [1000]


# The screen


def test_a_relay_at_80_columns() -> None:
    later = relay_status(200, uptime_s=7514.3)
    later["drops"] = later["drops"] | {"full": 24}
    text = shown(samples(relay_status(200), later))
    for part in (
        "relay   0.0.0.0:3478",
        "agents  200, 2 on their way in",
        "64.0 KiB, 1 behind",
        "full 24 (9.0/s)",
    ):
        assert part in text
    assert "KEY      ADDRESS" in text
    assert "OUT bit/s▾" in text
    assert "1 to 13 of 200" in text
    assert text.endswith("/ find   p pause ")


def test_an_agent_at_80_columns_shows_those_without_a_way_first() -> None:
    text = shown(samples(agent_status(("direct", "none", "relay"), host_problems=["no route"])))
    assert "1 direct, 1 by the relay, 1 without a way" in text
    assert "problem no route" in text
    rows = text[text.index("PEER") :].splitlines()[1:4]
    assert [row.split()[1] for row in rows] == ["no", "relay", "direct"]


def test_no_answer_is_said_with_since_when_and_the_figures_stay() -> None:
    one = samples(relay_status(3))
    one.missed("no relayd process answers", 58.0)
    one.missed("no relayd process answers", 60.0)
    text = shown(one)
    assert "no answer for 42 s  no relayd process answers" in text
    assert "agents  3," in text
    one.heard(relay_status(3))
    assert "no answer" not in shown(one)


def test_before_the_first_answer_there_is_nothing_wrong() -> None:
    assert "relayd top" in shown(Samples("x"))


def test_a_filter_keeps_what_has_it_and_says_when_nothing_does() -> None:
    one = samples(relay_status(30))
    text = shown(one, TopState(wanted="203.0.113.17:"))
    assert text.count("203.0.113.") == 2  # the row, and the words in the first line
    assert "only '203.0.113.17:'" in text
    assert "nothing has 'zzz' in it" in shown(one, TopState(wanted="zzz"))


def test_it_scrolls_to_the_end_and_no_further() -> None:
    text = shown(samples(relay_status(30)), TopState(first_row=1 << 30, sort="key", ascending=True))
    assert "18 to 30 of 30" in text


@pytest.mark.parametrize("role", ["relay", "agent"])
@pytest.mark.parametrize("ascending", [False, True])
def test_every_column_can_be_sorted_by_whatever_is_missing(role: str, ascending: bool) -> None:
    status = relay_status(5) if role == "relay" else agent_status()
    status["peers"] += [{"key": key(70)}, {"key": key(71), "path": None, "drops": None}]
    for column in columns_of(role, 200):
        shown(samples(status, status), TopState(sort=column.name, ascending=ascending), width=200)


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (39, 7), (40, 8), (60, 12), (80, 24), (120, 40), (300, 100)]
)
def test_any_size_is_filled_and_not_overrun(width: int, height: int) -> None:
    for status in (
        relay_status(200),
        agent_status(("direct", "relay", "none") * 20, host_problems=["x" * 500]),
    ):
        text = shown(samples(status, status), width=width, height=height)
        if width < MIN_COLUMNS or height < MIN_LINES:
            assert "40x8" in text or width < 5
    shown(samples(relay_status(3)), TopState(help=True), width=width, height=height)


def test_a_wide_terminal_has_more_columns() -> None:
    assert "WHY" not in shown(samples(agent_status()))
    assert "no handshake for 180 s" in shown(samples(agent_status()), width=120)


def test_what_peers_choose_moves_no_cursor() -> None:
    hostile = "\x1b[2J\x1b]0;pwned\x07\n\u202e"
    status = agent_status((), interface=hostile, host_problems=[hostile])
    status["relay"] |= {"address": hostile, "reason": hostile, "state": hostile}
    status["peers"] = [agent_peer(1, name=hostile, endpoint=hostile, reason=hostile)]
    text = shown(samples(status), width=200)
    assert not any(bad in text for bad in ("\x1b", "\x07", "\u202e"))


def test_wide_characters_take_the_room_that_they_take() -> None:
    status = agent_status(())
    status["peers"] = [agent_peer(1, name="節点" * 20)]
    shown(samples(status))


def test_sparklines() -> None:
    assert spark([0, 0], BARS) == "▁▁"
    assert spark([1, 4, 8], BARS) == "▂▅█"
    assert spark([], BARS) == ""


@pytest.mark.parametrize(
    ("value", "decimal", "binary"),
    [(None, "-", "-"), (0, "0", "0"), (999, "999", "999"), (1500, "1.5k", "1.5K"), (536e6, "536M", "511M")],
)
def test_narrow_columns_have_short_figures(value: float | None, decimal: str, binary: str) -> None:
    assert (compact(value), compact(value, 1024)) == (decimal, binary)


def test_narrow_columns_have_short_durations() -> None:
    assert [brief(one) for one in (None, 0, 59, 60, 86399, 86400 * 400)] == [
        "-",
        "0 s",
        "59 s",
        "1 min",
        "23 h",
        "400 d",
    ]
