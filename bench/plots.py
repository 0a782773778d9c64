"""Which plots a report gives, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.judge import Verdict
from bench.model import Report
from bench.report import NAMES, number
from bench.scenarios import Scenario
from bench.svg import Bar, Series, goal_plot, latency_plot


def bar_of(verdict: Verdict) -> Bar | None:
    """A goal as a bar; None when there is nothing to draw, as for a goal of 0."""
    bound, reached = verdict.bound, verdict.reached
    if not bound or reached is None:
        return None
    # A bar beyond the line is good either way: for "at most" the share is turned round.
    share = reached / bound if verdict.goal.sense == "least" else bound / max(reached, bound / 100)
    unit = NAMES.get(verdict.goal.figure, verdict.goal.figure)
    return Bar(f"{verdict.scenario.name}: {unit}", share, number(reached), bool(verdict.met))


def write_plots(
    folder: Path, report: Report, scenarios: Sequence[Scenario], verdicts: Sequence[Verdict]
) -> list[Path]:
    """Write goals.svg, and latency-ROW.svg for each row that has one; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        path = folder / name
        path.write_text(text)
        written.append(path)

    bars = [bar for verdict in verdicts if (bar := bar_of(verdict))]
    if bars:
        write("goals.svg", goal_plot("What was reached, against the goal (the line)", bars))
    for scenario in scenarios:
        series: list[Series] = []
        for result in report.results:
            curves = [run.latency for run in result.runs if run.latency]
            if result.scenario == scenario.name and curves and scenario.spec.mode in ("paced", "agents"):
                best = min(curves, key=lambda latency: latency.p99)
                series.append(Series(f"{result.target} {result.variant}".strip(), best.curve))
        if series:
            write(f"latency-{scenario.name}.svg", latency_plot(f"Latency: {scenario.title}", series))
    return written
