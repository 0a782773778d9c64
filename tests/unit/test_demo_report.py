"""How the demo tells what happened: plain lines, a live terminal, JSON; and what it calls a success."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from rich.console import Console

from relayd.demo import plan as plans
from relayd.demo.plan import Outcome, Stage, Throughput, outcome, plan
from relayd.demo.report import JsonReport, LiveReport, PlainReport, choose
from relayd.demo.rows import bar, cells, row, summary
from relayd.demo.timeline import Timeline
from relayd.demo.traffic import Answer, Missing, Rate

START = 1_000_000.0
STAGE = Stage(
    relay_addresses=(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1")),
    node_addresses=(IPv4Address("192.0.2.2"), IPv4Address("198.51.100.2")),
    tunnel_addresses=(IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2")),
    wireguard="wireguard-go",
)
FAULTS = [("relay", START + 2.0, START + 3.0), ("agent on a", START + 5.0, START + 5.5)]


def told() -> Timeline:
    """Eight seconds, ten probes each: silent from 2.0 to 3.5 and from 5.0 to 6.0."""
    timeline = Timeline(START)
    for n in range(80):
        at = START + n / 10
        silent = 20 <= n < 35 or 50 <= n < 60
        timeline.add(Missing(n, at) if silent else Answer(n, at, 0.0015))
    timeline.event(START + 2.04, "relay killed (SIGKILL)")
    timeline.add_rate(Rate(0.0, 1.0, 512.4, 0, ""), START + 1.0)
    return timeline


def success() -> Outcome:
    return outcome(
        STAGE, told(), FAULTS, throughput=Throughput(512.4, 6.0, 3), ready_s=1.25,
        endpoints=("127.90.1.2:22347", "127.100.3.4:22347"),
    )  # fmt: skip


@pytest.mark.parametrize("seconds", range(plans.MIN_SECONDS, plans.MAX_SECONDS + 1))
def test_the_acts_add_up_and_each_is_long_enough_to_be_seen(seconds: int) -> None:
    acts = plan(seconds)
    assert acts.throughput_s + 2 * acts.calm_s + 2 * acts.fault_s == pytest.approx(seconds)
    assert acts.throughput_s >= 3
    assert acts.calm_s >= 2
    assert acts.fault_s > plans.DOWN_S + 2


def test_it_is_a_success_when_the_traffic_came_back_each_time() -> None:
    assert success().ok


def test_it_is_no_success_when_the_traffic_did_not_come_back() -> None:
    timeline = told()
    for n in range(80, 90):
        timeline.add(Missing(n, START + n / 10))
    gone = outcome(
        STAGE, timeline, [FAULTS[0], ("agent on a", START + 8.0, START + 8.5)],
        throughput=Throughput(512.4, 6.0, 3), ready_s=1.25,
    )  # fmt: skip
    assert not gone.ok
    assert (
        "fault",
        "agent on a killed at 8.0 s, started again 0.5 s later: the traffic did not come back",
    ) in (summary(gone))
    assert summary(gone)[-1] == ("result", "FAILED: the traffic did not come back each time")


def test_it_is_no_success_without_throughput_or_with_an_act_missing_or_an_error() -> None:
    assert not replace(success(), throughput=None).ok
    assert not replace(success(), faults=success().faults[:1]).ok
    assert not replace(success(), error="ping ended").ok
    assert summary(replace(success(), error="ping ended"))[-1] == ("result", "FAILED: ping ended")


def test_a_plain_row_shows_each_ping_and_what_happened() -> None:
    first, second, third, *_ = told().seconds()
    assert row(first).split() == ["0", "s", "##########", "10/10", "1.5", "ms"]
    assert row(second).split() == ["1", "s", "##########", "10/10", "1.5", "ms", "512", "Mbit/s"]
    assert cells(third) == ".........."
    assert row(third).split() == [
        "2",
        "s",
        "..........",
        "0/10",
        "relay",
        "killed",
        "(SIGKILL)",
        "(2.0",
        "s)",
    ]


def test_bars_grow_with_the_round_trip_and_stay_within_their_range() -> None:
    assert [bar(ms) for ms in (0.0, 0.4, 1.0, 2.0, 63.9, 64.0, 900.0)] == ["▁", "▁", "▂", "▃", "▇", "█", "█"]


def test_the_summary_gives_the_gaps_in_seconds_and_the_throughput() -> None:
    lines = summary(success())
    assert ("throughput", "512 Mbit/s for 6 s (iperf3, TCP, a to b)") in lines
    assert [words for subject, words in lines if subject == "fault"] == [
        "relay killed at 2.0 s, started again 1.0 s later: "
        "silent for 1.50 s, 15 pings lost, traffic back 0.50 s after the restart",
        "agent on a killed at 5.0 s, started again 0.5 s later: "
        "silent for 1.00 s, 10 pings lost, traffic back 0.50 s after the restart",
    ]
    assert ("pings", "80 sent, 55 answered, 25 lost") in lines
    assert "other gaps" not in dict(lines)
    assert lines[-1] == ("result", "the traffic came back each time")


def test_a_gap_that_no_kill_explains_is_not_hidden() -> None:
    timeline = told()
    for n, silent in enumerate([True, True, False, True, False]):
        at = START + 8.0 + n / 10
        timeline.add(Missing(80 + n, at) if silent else Answer(80 + n, at, 0.001))
    found = outcome(STAGE, timeline, FAULTS, throughput=Throughput(512.4, 6.0, 3), ready_s=1.25)
    assert ("other gaps", "3 pings lost, at most 2 in a row (at 8.0 s)") in summary(found)


def test_json_is_one_document_with_every_second_gap_and_fault() -> None:
    stream = io.StringIO()
    report = JsonReport(stream)
    report.opened(STAGE)
    for second in told().seconds():
        report.settled(second)
    assert stream.getvalue() == ""
    report.closed(success())
    found = json.loads(stream.getvalue())
    assert found["ok"] is True
    assert found["error"] is None
    assert found["pings"] == {"sent": 80, "answered": 55, "lost": 25}
    assert found["throughput"] == {"megabits_per_s": 512.4, "seconds": 6.0, "retransmits": 3}
    assert [(fault["what"], fault["silent_s"], fault["lost"]) for fault in found["faults"]] == [
        ("relay", 1.5, 15),
        ("agent on a", 1.0, 10),
    ]
    assert found["gaps"][0] == {"start_s": 2.0, "end_s": 3.5, "lost": 15}
    assert len(found["seconds"]) == 8
    assert found["seconds"][2]["events"] == [{"at_s": 2.04, "what": "relay killed (SIGKILL)"}]
    assert found["nodes"]["b"]["tunnel_address"] == "198.18.0.2"
    assert found["endpoints"] == ["127.90.1.2:22347", "127.100.3.4:22347"]


def test_a_stream_that_is_no_terminal_gets_plain_lines() -> None:
    stream = io.StringIO()
    report = choose(as_json=False, stream=stream)
    assert isinstance(report, PlainReport)
    report.opened(STAGE)
    report.said("waiting")
    for second in told().seconds():
        report.running([second])
        report.settled(second)
    report.closed(success())
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.isascii()
    assert text.count(" s  ##") + text.count(" s  ..") == 8


def test_json_is_chosen_by_the_flag() -> None:
    assert isinstance(choose(as_json=True, stream=io.StringIO()), JsonReport)


def test_a_terminal_gets_colours_and_keeps_every_settled_second() -> None:
    stream = io.StringIO()
    report = LiveReport(Console(file=stream, force_terminal=True, width=140, color_system="standard"))
    report.opened(STAGE)
    report.said("waiting for the first answer")
    for second in told().seconds():
        report.running([second])
        report.settled(second)
    report.closed(success())
    text = stream.getvalue()
    assert "waiting for the first answer" in text
    assert "relay killed (SIGKILL) (2.0 s)" in text
    assert "the traffic came back each time" in text
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
