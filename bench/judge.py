"""What the runs of a row come to: the best and the spread of each figure, and whether goals are met. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.model import Measurement, Report, Result
from bench.scenarios import ALL_READ, Goal, Scenario, figure
from bench.stats import MOST_DISTURBANCE, disturbance, median, spread

SMALLER_IS_BETTER = frozenset(
    {"p50", "p99", "p999", "lost", "memory_kib", "memory_before_kib", "pss_per_connection_kib",
     "rss_per_connection_kib", "cpu_share", "drain_s", "waited_share"}
)  # fmt: skip
WORST_COUNTS = frozenset({"lost", "memory_kib"})
"""Figures of which the worst run is taken: one lost frame is a lost frame."""

SAME_DISTURBANCE = 0.01


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over the runs of a Result."""

    best: float
    median: float
    spread: float


def summary(result: Result, name: str) -> Figure | None:
    """The figure's best undisturbed run (of losses the worst of all), median and spread; None if none has it.

    Undisturbed, and not simply best: a relay that has to wait for its core finds more frames each time that
    it gets it, and looks cheaper than it is, while its latency is ruined.
    """
    values = [value for run in result.runs if (value := figure(run, name)) is not None]
    if not values:
        return None
    counted = result.runs if name in WORST_COUNTS else quiet_runs(result.runs)
    chosen = [value for run in counted if (value := figure(run, name)) is not None] or values
    smaller = (name in SMALLER_IS_BETTER) != (name in WORST_COUNTS)
    return Figure(min(chosen) if smaller else max(chosen), median(values), spread(values))


def quiet_runs(runs: Sequence[Measurement]) -> list[Measurement]:
    """The least disturbed run, and those that hardly were more; of searches the one that got furthest.

    A rate that got through did so whatever else the machine was doing.
    """
    if any(run.steps for run in runs):
        return [max(runs, key=lambda run: run.frames_per_s)]
    limit = min((disturbance(run) for run in runs), default=0.0) + SAME_DISTURBANCE
    return [run for run in runs if disturbance(run) <= limit]


def is_disturbed(result: Result) -> bool:
    """Whether even the quietest run can't be believed."""
    return bool(result.runs) and min(map(disturbance, result.runs)) > MOST_DISTURBANCE


def was_limited(result: Result) -> bool:
    """Whether the load set the figures of one of the runs that count."""
    return any(run.generator is not None and run.generator.was_limit for run in quiet_runs(result.runs))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal of a row, and what was reached; None where it could not be measured."""

    scenario: Scenario
    goal: Goal
    bound: float | None
    reached: float | None
    disturbed: bool = False
    """Other work on the machine had the cores for so long that neither outcome means much."""
    limited: bool = False
    """The load gave all that it could: the relay might have reached more."""

    @property
    def met(self) -> bool | None:
        """Whether it was reached; None: not known."""
        if self.bound is None or self.reached is None:
            return None
        if self.goal.sense == "most":
            return self.reached <= self.bound
        if self.reached >= self.bound:
            return True
        return None if self.limited else False


def _find(results: Sequence[Result], scenario: str, *, control: bool, variant: str) -> Result | None:
    for result in results:
        same = (result.scenario, result.variant) == (scenario, variant)
        if same and result.target.startswith("control") == control:
            return result
    return None


def judge(scenario: Scenario, results: Sequence[Result]) -> list[Verdict]:
    """The goals of a row against the results of its last variant. With several controls, the first counts."""
    variant = scenario.variants[-1]
    own = _find(results, scenario.name, control=False, variant=variant)
    verdicts: list[Verdict] = []
    for goal in scenario.goals:
        against: Result | None = None
        if goal.of == "control":
            against = _find(results, scenario.name, control=True, variant=variant)
        elif goal.of == ALL_READ:
            against = _find(results, scenario.name, control=False, variant=ALL_READ)
        reached = summary(own, goal.figure) if own and not own.error else None
        bound: float | None = goal.bound
        if goal.of != "units":
            other = summary(against, goal.figure) if against else None
            bound = goal.bound * other.best if other else None
        disturbed = any(is_disturbed(result) for result in (own, against) if result)
        limited = goal.figure == "frames_per_s" and own is not None and was_limited(own)
        verdicts.append(Verdict(scenario, goal, bound, reached.best if reached else None, disturbed, limited))
    return verdicts


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after."""

    scenario: str
    target: str
    variant: str
    figure: str
    before: float
    after: float

    @property
    def share(self) -> float:
        """The change as a share of what was before; 0 where that was 0."""
        return (self.after - self.before) / self.before if self.before else 0.0

    @property
    def better(self) -> bool:
        """Whether it went the right way."""
        return (self.after < self.before) == (self.figure in SMALLER_IS_BETTER) and self.after != self.before


def changes(before: Report, after: Report, scenarios: Sequence[Scenario]) -> list[Change]:
    """Every figure of the given rows that both reports have."""
    old = {(r.scenario, r.target, r.variant): r for r in before.results}
    found: list[Change] = []
    for scenario in scenarios:
        for result in after.results:
            if result.scenario != scenario.name:
                continue
            earlier = old.get((result.scenario, result.target, result.variant))
            if earlier is None:
                continue
            for name in scenario.shown:
                then, now = summary(earlier, name), summary(result, name)
                if then and now:
                    found.append(
                        Change(scenario.name, result.target, result.variant, name, then.best, now.best)
                    )
    return found
