"""Figures of the bench: percentiles, which runs count, and which goals are met."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bench.judge import Verdict, changes, judge, summary
from bench.model import Generator, Latency, Measurement, Report, Result, Step
from bench.scenarios import SCENARIOS, Goal, Scenario
from bench.stats import latency_of, median, percentile, spread


def run(
    frames_per_cpu_s: float | None = None,
    *,
    waited: float = 0.0,
    lost: int = 0,
    p99: float | None = None,
    frames_per_s: float = 0.0,
    limited: bool = False,
) -> Measurement:
    latency = None if p99 is None else Latency(count=1, p50=p99 / 2, p99=p99, p999=p99, max=p99)
    return Measurement(
        elapsed_s=1.0,
        frames_per_cpu_s=frames_per_cpu_s,
        frames_per_s=frames_per_s,
        foreign_share=waited,
        lost=lost,
        latency=latency,
        generator=Generator(cpu_share=1.0, busy_share=1.0, was_limit=limited),
    )


def result(*runs: Measurement, target: str = "relay", variant: str = "", name: str = "bulk-1452-1") -> Result:
    return Result(scenario=name, target=target, variant=variant, runs=list(runs))


def scenario(*goals: Goal, variants: tuple[str, ...] = ("",)) -> Scenario:
    first = SCENARIOS[0]
    return Scenario(first.name, first.title, first.spec, goals=goals, variants=variants)


def test_percentile_is_a_value_that_was_measured() -> None:
    values = list(range(1, 101))
    assert [percentile(values, percent) for percent in (0, 1, 50, 99, 99.9, 100)] == [1, 1, 50, 99, 100, 100]


def test_percentile_of_a_thousand_is_not_pushed_over_by_binary_fractions() -> None:
    assert percentile(list(range(1, 1001)), 99.9) == 999


@given(st.lists(st.integers(), min_size=1), st.floats(0, 100))
def test_at_least_so_many_percent_are_not_above_a_percentile(values: list[int], percent: float) -> None:
    found = percentile(sorted(values), percent)
    assert sum(value <= found for value in values) >= percent * len(values) / 100 - 1e-6


@pytest.mark.parametrize(("values", "percent"), [([], 50.0), ([1.0], -1.0), ([1.0], 101.0)])
def test_a_percentile_of_nothing_or_beyond_the_ends_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match=r"no values|not a percentage"):
        percentile(values, percent)


def test_latency_is_told_in_microseconds() -> None:
    latency = latency_of([3_000_000, 1_000, 2_000])
    assert latency is not None
    assert (latency.count, latency.p50, latency.max) == (3, 2.0, 3000.0)
    assert latency_of([]) is None


def test_median_and_spread() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
    assert spread([90, 100, 110]) == pytest.approx(0.2)
    assert spread([0, 0]) == 0


def test_a_disturbed_run_does_not_count_even_when_it_looks_better() -> None:
    figure = summary(result(run(130_000, waited=0.6), run(47_000, waited=0.01)), "frames_per_cpu_s")
    assert figure is not None
    assert figure.best == 47_000


def test_of_undisturbed_runs_the_best_counts_and_of_losses_the_worst() -> None:
    both = result(run(100, lost=7), run(200, lost=0))
    cpu, lost = summary(both, "frames_per_cpu_s"), summary(both, "lost")
    assert cpu is not None
    assert lost is not None
    assert (cpu.best, lost.best) == (200, 7)


def test_losses_of_a_disturbed_run_count() -> None:
    lost = summary(result(run(1, lost=7, waited=0.9), run(1)), "lost")
    assert lost is not None
    assert lost.best == 7


def test_of_searches_the_one_that_got_furthest_counts() -> None:
    step = Step(rate=1, passed=True, reason="", frames_per_s=1)
    searches = [
        replace(run(frames_per_s=200, waited=0.3, p99=9), steps=[step]),
        replace(run(p99=1), steps=[step]),
    ]
    rate, p99 = (summary(result(*searches), name) for name in ("frames_per_s", "p99"))
    assert rate is not None
    assert p99 is not None
    assert (rate.best, p99.best) == (200, 9)


def only(verdicts: list[Verdict]) -> Verdict:
    assert len(verdicts) == 1
    return verdicts[0]


def test_a_goal_in_units() -> None:
    row = scenario(Goal("frames_per_cpu_s", "least", 100))
    assert only(judge(row, [result(run(100))])).met is True
    assert only(judge(row, [result(run(99))])).met is False
    assert only(judge(row, [])).met is None


def test_a_goal_against_the_control() -> None:
    row = scenario(Goal("p99", "most", 1.25, "control"))
    control = result(run(p99=100), target="control (go io.Copy)")
    assert only(judge(row, [result(run(p99=125)), control])).met is True
    assert only(judge(row, [result(run(p99=126)), control])).met is False
    assert only(judge(row, [result(run(p99=1))])).met is None


def test_a_goal_against_the_same_relay_with_all_reading() -> None:
    row = scenario(Goal("p99", "most", 1.1, "all read"), variants=("all read", "one stalled"))
    results = [result(run(p99=100), variant="all read"), result(run(p99=150), variant="one stalled")]
    assert only(judge(row, results)).met is False


def test_a_miss_is_not_known_when_the_load_was_the_limit() -> None:
    row = scenario(Goal("frames_per_s", "least", 1.0, "control"))
    control = result(run(frames_per_s=300), target="control (go io.Copy)")
    assert only(judge(row, [result(run(frames_per_s=290, limited=True)), control])).met is None
    assert only(judge(row, [result(run(frames_per_s=290)), control])).met is False
    assert only(judge(row, [result(run(frames_per_s=310, limited=True)), control])).met is True


def test_a_result_with_an_error_meets_nothing() -> None:
    broken = Result(scenario="bulk-1452-1", target="relay", runs=[run(100)], error="frames came twice")
    assert only(judge(scenario(Goal("frames_per_cpu_s", "least", 1)), [broken])).met is None


def test_a_change_knows_which_way_is_better() -> None:
    row = Scenario("bulk-1452-1", "", SCENARIOS[0].spec, shown=("frames_per_cpu_s", "p99"))
    before = Report(results=[result(run(100, p99=50))])
    after = Report(results=[result(run(150, p99=75)), result(run(1), name="another")])
    cpu, p99 = changes(before, after, [row])
    assert (cpu.share, cpu.better) == (0.5, True)
    assert (p99.share, p99.better) == (0.5, False)
