"""The bench's rows, search, tables and plots, and that it puts load on nobody else's machine."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from bench.__main__ import address_of, main
from bench.judge import judge
from bench.model import BenchError, Generator, Latency, Measurement, Report, Result, Spec
from bench.plots import write_plots
from bench.report import number, print_results, print_verdicts
from bench.scenarios import SCENARIOS, custom, select, timed
from bench.search import highest
from bench.svg import Bar, Series, goal_plot, latency_plot, percentile_place


@pytest.mark.parametrize("option", ["--json", "--svg"])
def test_what_cannot_be_written_is_found_before_anything_is_measured(
    option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    command = ["bench", "bulk-64-1", "--target", "127.0.0.1:1", option, str(tmp_path / "file" / "inside")]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr("bench.__main__._cpus", lambda: (0, 0))
    monkeypatch.setattr("bench.__main__.run_row", lambda *_, **__: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["127.0.0.1:3478", "127.1.2.3:1", "[::1]:3478"])
def test_a_loopback_address_is_a_target(target: str) -> None:
    assert address_of(target)[1] in (3478, 1)


@pytest.mark.parametrize(
    "target",
    ["192.0.2.1:3478", "[2001:db8::1]:3478", "0.0.0.0:3478", "localhost:3478", "127.0.0.1", "127.0.0.1:0"],
)
def test_any_other_is_refused(target: str) -> None:
    with pytest.raises(BenchError):
        address_of(target)


def test_rows_are_selected_by_name_in_the_tables_order() -> None:
    assert [row.name for row in select(["paced-20k", "bulk-1452-1"])] == ["bulk-1452-1", "paced-20k"]
    assert select([]) == list(SCENARIOS)
    with pytest.raises(BenchError, match="paced-20k"):
        select(["paced-20"])


def test_a_row_of_ones_own() -> None:
    row = custom("highest", pairs=3, burst=8)
    assert (row.kind, row.spec.mode, row.spec.pairs, row.spec.burst) == ("search", "flood", 3, 8)
    assert custom("paced", rate=100.0, extra_rate=10.0).variants == ("all read", "one stalled")


@pytest.mark.parametrize(
    ("mode", "settings"),
    [("paced", {}), ("paced", {"rate": 1.0, "receivers": 2}), ("idle", {}), ("bulk", {"extra_rate": 1.0})],
)
def test_a_row_that_makes_no_sense_is_refused(mode: str, settings: dict[str, float]) -> None:
    with pytest.raises(BenchError):
        custom(mode, **settings)  # type: ignore[arg-type]  # as the command line gives it


def test_quick_is_shorter_for_every_row() -> None:
    for row in SCENARIOS:
        assert timed(row, None, True).spec.seconds <= min(row.spec.seconds, 1.0)
        assert timed(row, 7.0, True).spec.seconds == 7.0


def test_a_spec_survives_the_way_to_the_load() -> None:
    for row in SCENARIOS:
        spec = row.spec_of(row.variants[-1])
        assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec


def relay_that_manages(most: float, tried: list[float]) -> object:
    def try_rate(rate: float) -> Measurement:
        tried.append(rate)
        return Measurement(elapsed_s=1.0, frames_per_s=rate, sent=100, lost=0 if rate <= most else 1)

    return try_rate


@pytest.mark.parametrize("most", [1_000.0, 60_000.0, 61_000.0, 413_000.0])
def test_the_search_finds_the_highest_rate_to_two_percent(most: float) -> None:
    tried: list[float] = []
    best, steps, limited = highest(60_000, relay_that_manages(most, tried))  # type: ignore[arg-type]
    assert best is not None
    assert 0.98 * most <= best.frames_per_s <= most
    assert len(steps) == len(tried) <= 44
    assert not limited


def test_the_search_gives_up_on_what_never_works() -> None:
    best, steps, _ = highest(60_000, relay_that_manages(0, []))  # type: ignore[arg-type]
    assert best is None
    assert steps
    assert all("lost" in step.reason for step in steps)


def test_a_step_that_failed_once_is_tried_again() -> None:
    failed: set[float] = set()

    def try_rate(rate: float) -> Measurement:
        first = rate not in failed
        failed.add(rate)
        return Measurement(elapsed_s=1.0, frames_per_s=rate, sent=9, lost=int(first or rate > 100_000))

    best, _, _ = highest(60_000, try_rate)
    assert best is not None
    assert best.frames_per_s >= 98_000


def test_the_search_says_when_the_load_was_the_limit() -> None:
    def try_rate(rate: float) -> Measurement:
        late = int(max(rate - 100_000, 0))
        return Measurement(elapsed_s=1.0, frames_per_s=rate, sent=9, unsent=late)

    best, _, limited = highest(60_000, try_rate)
    assert best is not None
    assert limited


def report_of(*results: Result) -> Report:
    return Report(started="now", relay="relayd serve", control="control (go io.Copy)", results=list(results))


def paced(p99: float) -> Measurement:
    curve = [(0.0, 10.0), (50.0, 40.0), (99.0, p99), (100.0, 5000.0)]
    return Measurement(
        elapsed_s=1.0,
        frames_per_s=20_000,
        frames_per_cpu_s=50_000,
        latency=Latency(count=4, p50=40.0, p99=p99, p999=5000.0, max=5000.0, curve=curve),
        generator=Generator(cpu_share=1.0, busy_share=0.4),
    )


def test_the_table_tells_what_was_measured_and_what_went_wrong() -> None:
    rows = select(["bulk-1452-1", "paced-20k"])
    report = report_of(
        Result(scenario="paced-20k", target="relay", runs=[paced(93.5)]),
        Result(scenario="bulk-1452-1", target="relay", runs=[], error="frames came twice or out of order"),
    )
    console = Console(file=io.StringIO(), width=200, no_color=True)
    print_results(console, report, rows)
    print_verdicts(console, judge(rows[1], report.results))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for expected in ("93.5", "20,000", "frames came twice", "≥ 45,000", "met"):
        assert expected in text


def test_numbers_are_told_with_the_digits_that_matter() -> None:
    assert [number(value) for value in (None, 0.0, 0.8834, 93.47, 148.06, 1234567.8)] == [
        "-", "0", "0.883", "93.5", "148.1", "1,234,568",
    ]  # fmt: skip


def test_plots_are_well_formed_and_names_are_escaped() -> None:
    for text in (
        latency_plot("a < b", [Series("relay & co", [(0, 5.0), (99.0, 120.0), (100, 9000.0)])]),
        latency_plot("nothing", []),
        goal_plot("goals", [Bar("<row>", 0.5, "1", False), Bar("row", 7.0, "2", True)]),
    ):
        ElementTree.fromstring(text)


def test_each_further_nine_has_the_same_room() -> None:
    assert [round(percentile_place(percent), 6) for percent in (0, 90, 99, 99.9, 99.99, 100)] == [
        0,
        1,
        2,
        3,
        4,
        4,
    ]


def test_a_report_gives_one_plot_of_goals_and_one_for_each_latency(tmp_path: Path) -> None:
    rows = select(["paced-20k"])
    report = report_of(
        Result(scenario="paced-20k", target="relay", runs=[paced(93.5)]),
        Result(scenario="paced-20k", target="control (go io.Copy)", runs=[paced(110.0)]),
    )
    written = write_plots(tmp_path, report, rows, judge(rows[0], report.results))
    assert [path.name for path in written] == ["goals.svg", "latency-paced-20k.svg"]
    assert "control (go io.Copy)" in written[1].read_text()
