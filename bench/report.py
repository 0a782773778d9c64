"""The tables: rich on a terminal, the same without colour or frames elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench.judge import Change, Verdict, is_disturbed, summary, was_limited
from bench.model import Report, Result
from bench.scenarios import Scenario
from bench.stats import disturbance

PLAIN_WIDTH = 200
COLUMNS = (
    *("row", "target", "frames/s", "Gbit/s", "lost", "p50 µs", "p99 µs", "p99.9 µs"),
    *("frames/CPU-s", "CPU", "peak MiB", "spread", "remarks"),
)
NAMES = {
    "frames_per_s": "frames/s",
    "gbit_per_s": "Gbit/s",
    "frames_per_cpu_s": "frames/CPU-s",
    "p50": "p50 µs",
    "p99": "p99 µs",
    "p999": "p99.9 µs",
    "lost": "lost",
    "pss_per_connection_kib": "KiB/connection (Pss)",
    "rss_per_connection_kib": "KiB/connection (RSS)",
    "memory_before_kib": "KiB with none",
    "cpu_share": "CPU share",
}


def console_for() -> Console:
    """A console; wide where nothing says how wide, so that a log file's lines don't wrap."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, no_color=True)


def number(value: float | None) -> str:
    """Four digits that matter, with thousands apart; a dash for none."""
    if value is None:
        return "-"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(console: Console, title: str) -> Table:
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2
    )


def _cell(result: Result, name: str) -> str:
    found = summary(result, name)
    return number(found.best if found else None)


def _remarks(result: Result) -> str:
    """What a reader has to know before believing the figures."""
    remarks: list[str] = []
    if result.error:
        remarks.append(result.error.splitlines()[-1][:120])
    runs = result.runs
    if was_limited(result):
        remarks.append("the load was the limit")
    if is_disturbed(result):
        remarks.append(f"disturbed: others had a core for {min(map(disturbance, runs)):.0%}")
    if any(run.unsent for run in runs) and not any(run.steps for run in runs):
        remarks.append(f"{max(run.unsent for run in runs):,} not sent in time")
    remarks += sorted({note for run in runs for note in run.notes})
    return "; ".join(remarks)


def print_results(console: Console, report: Report, scenarios: Sequence[Scenario]) -> None:
    """Every row, every target: the best of its undisturbed runs, and the spread of the row's main figure."""
    table = _table(console, f"{report.relay}, {report.control}")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("row", "target", "remarks") else "right")
    for scenario in scenarios:
        for result in report.results:
            if result.scenario != scenario.name:
                continue
            main = summary(result, scenario.goals[0].figure if scenario.goals else scenario.shown[0])
            memory = summary(result, "memory_kib")
            share = summary(result, "cpu_share")
            remarks = _remarks(result)
            if scenario.spec.mode == "idle" and result.runs:
                remarks = "; ".join(
                    filter(
                        None,
                        (
                            f"{_cell(result, 'pss_per_connection_kib')} KiB Pss, "
                            f"{_cell(result, 'rss_per_connection_kib')} KiB RSS a connection, "
                            f"{_cell(result, 'memory_before_kib')} KiB with none",
                            remarks,
                        ),
                    )
                )
            table.add_row(
                scenario.name,
                " ".join(filter(None, (result.target, result.variant))),
                *(
                    _cell(result, name)
                    for name in ("frames_per_s", "gbit_per_s", "lost", "p50", "p99", "p999")
                ),
                _cell(result, "frames_per_cpu_s"),
                f"{share.median:.0%}" if share else "-",
                number(memory.best / 1024 if memory else None),
                f"{main.spread:.0%}" if main else "-",
                remarks,
            )
    console.print(table)


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Goal by goal: what was asked, what was reached."""
    if not verdicts:
        return
    table = _table(console, "goals")
    for name in ("row", "figure", "asked", "reached", ""):
        table.add_column(name, justify="right" if name in ("asked", "reached") else "left")
    words = {"least": "≥", "most": "≤"}
    for verdict in verdicts:
        goal = verdict.goal
        asked = f"{words[goal.sense]} {number(verdict.bound)}"
        if goal.of != "units":
            asked += f" ({goal.bound:g} x {goal.of})"
        outcome = {True: "[green]met[/]", False: "[red]missed[/]", None: "[yellow]not known[/]"}[verdict.met]
        if verdict.met is None and verdict.limited:
            outcome += " [yellow](the load was the limit)[/]"
        if verdict.disturbed:
            outcome += " [yellow](disturbed)[/]"
        table.add_row(
            verdict.scenario.name,
            NAMES.get(goal.figure, goal.figure),
            asked,
            number(verdict.reached),
            outcome,
        )
    console.print(table)


def print_changes(console: Console, found: Sequence[Change], before: Report) -> None:
    """What is different from an earlier report."""
    table = _table(console, f"against {before.started} ({before.version or 'unknown version'})")
    for name in ("row", "target", "figure", "before", "after", "change"):
        table.add_column(name, justify="right" if name in ("before", "after", "change") else "left")
    for change in found:
        colour = "green" if change.better else "red" if abs(change.share) > 0.02 else "default"
        table.add_row(
            change.scenario,
            " ".join(filter(None, (change.target, change.variant))),
            NAMES.get(change.figure, change.figure),
            number(change.before),
            number(change.after),
            f"[{colour}]{change.share:+.1%}[/]",
        )
    console.print(table if found else "nothing in the earlier report can be compared")
