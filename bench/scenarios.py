"""The rows that are measured: what load, against what, and what must be reached."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from bench.model import BenchError, Measurement, Mode, Spec

Kind = Literal["load", "search"]
STALLED, ALL_READ = "one stalled", "all read"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of the best run that must be at least or at most `bound`.

    `of` says what `bound` counts: units of the figure itself, or multiples of the same figure of the
    control, or of the run of the same relay in which everybody reads.
    """

    figure: str
    sense: Literal["least", "most"]
    bound: float
    of: Literal["units", "control", "all read"] = "units"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row: a name to select it by, a title for the table, the load, and the goals."""

    name: str
    title: str
    spec: Spec
    kind: Kind = "load"
    goals: tuple[Goal, ...] = ()
    control: bool = True
    """Whether a plain forwarder can do it at all."""
    variants: tuple[str, ...] = field(default=("",))
    most_p99_us: float = 0.0
    """A search's steps pass only up to this latency; 0: any."""
    shown: tuple[str, ...] = ("frames_per_s", "gbit_per_s", "frames_per_cpu_s")
    """The figures that the row is about."""

    def spec_of(self, variant: str) -> Spec:
        """The load of one of the variants."""
        return msgspec.structs.replace(self.spec, stalled=variant == STALLED)


NOTHING_LOST = Goal("lost", "most", 0)
PER_CPU = "frames_per_cpu_s"
_PACED = ("frames_per_cpu_s", "p50", "p99", "p999")
_SEARCH = ("frames_per_s", "gbit_per_s", "frames_per_cpu_s")

SCENARIOS = (
    Scenario(
        "bulk-1452-1",
        "bulk, 1452 bytes, 1 pair",
        Spec(mode="bulk", pairs=1),
        goals=(Goal(PER_CPU, "least", 750_000), NOTHING_LOST),
    ),
    Scenario(
        "bulk-1452-100",
        "bulk, 1452 bytes, 100 pairs",
        Spec(mode="bulk", pairs=100),
        goals=(Goal(PER_CPU, "least", 750_000), NOTHING_LOST),
    ),
    Scenario(
        "bulk-64-1",
        "bulk, 64 bytes, 1 pair",
        Spec(mode="bulk", pairs=1, payload=64),
        goals=(Goal(PER_CPU, "least", 2_200_000), NOTHING_LOST),
    ),
    Scenario(
        "highest-20",
        "highest rate without loss, 20 pairs, 1452 bytes, one write a frame",
        Spec(mode="flood", pairs=20, rate=60_000, seconds=1.0, warmup=0.2),
        kind="search",
        goals=(Goal("frames_per_s", "least", 1.0, "control"),),
        shown=_SEARCH,
    ),
    Scenario(
        "highest-20-burst-8",
        "highest rate without loss, 20 pairs, 1452 bytes, bursts of 8",
        Spec(mode="flood", pairs=20, burst=8, rate=200_000, seconds=1.0, warmup=0.2),
        kind="search",
        goals=(Goal("frames_per_s", "least", 0.8, "control"),),
        shown=_SEARCH,
    ),
    Scenario(
        "paced-20k",
        "paced, 20,000 frames/s, 100 pairs, 1452 bytes",
        Spec(mode="paced", pairs=100, rate=20_000),
        goals=(Goal(PER_CPU, "least", 45_000), Goal("p99", "most", 1.25, "control"), NOTHING_LOST),
        shown=_PACED,
    ),
    Scenario(
        "paced-1k",
        "paced, 1,000 frames/s, 20 pairs, 128 bytes",
        Spec(mode="paced", pairs=20, payload=128, rate=1_000),
        goals=(Goal(PER_CPU, "least", 22_000), NOTHING_LOST),
        shown=_PACED,
    ),
    Scenario(
        "fanout-50",
        "one sender, 50 receivers in random order, 512 bytes",
        Spec(mode="bulk", receivers=50, payload=512, window=512 * 1024),
        goals=(Goal(PER_CPU, "least", 450_000), NOTHING_LOST),
        control=False,
    ),
    Scenario(
        "stalled-1-of-50",
        "one stalled reader (5,000 frames/s for it) beside 50 pairs, 10,000 frames/s, 1452 bytes",
        Spec(mode="paced", pairs=50, rate=10_000, extra_rate=5_000),
        goals=(Goal("p99", "most", 1.10, "all read"), NOTHING_LOST),
        variants=(ALL_READ, STALLED),
        shown=("p50", "p99", "p999", "lost"),
    ),
    Scenario(
        "idle-10k",
        "10,000 idle connections",
        Spec(mode="idle", connections=10_000, seconds=2.0, warmup=0.0),
        goals=(
            Goal("pss_per_connection_kib", "most", 4.0),
            Goal("memory_before_kib", "most", 40e6 / 1024),
        ),
        # io.Copy holds a pipe for each direction, idle or not: 30,000 open files.
        control=False,
        shown=("pss_per_connection_kib", "rss_per_connection_kib", "memory_before_kib", "cpu_share"),
    ),
    Scenario(
        "handshakes",
        "complete handshakes (counted as frames), one after the other",
        Spec(mode="handshakes"),
        goals=(Goal(PER_CPU, "least", 2_000),),
        control=False,
        shown=("frames_per_s", PER_CPU),
    ),
    Scenario(
        "silent",
        "10,000 connections that say nothing, and an agent that is admitted meanwhile, again and again",
        Spec(mode="silent", connections=10_000),
        goals=(Goal("memory_kib", "most", 100e6 / 1024), Goal("p99", "most", 1e6)),
        control=False,
        shown=("memory_kib", "memory_before_kib", "p50", "p99", "p999"),
    ),
    Scenario(
        "agent-path",
        "agent path UDP-TCP-UDP, 1452 bytes, two agents and the relay on one core",
        Spec(mode="agents", rate=60_000, seconds=1.0, warmup=0.3),
        kind="search",
        most_p99_us=3_000,
        goals=(
            Goal("frames_per_s", "least", 150_000),
            Goal("p99", "most", 3_000),
            NOTHING_LOST,
        ),
        control=False,
        shown=("frames_per_s", "gbit_per_s", "frames_per_cpu_s", "p50", "p99"),
    ),
    Scenario(
        "stun",
        "STUN answers (counted as frames), 4,096 addresses, 1,024 requests in flight",
        Spec(mode="stun", payload=44),
        goals=(Goal(PER_CPU, "least", 50_000), NOTHING_LOST),
        control=False,
        shown=("frames_per_s", "frames_per_cpu_s"),
    ),
)


def select(names: list[str]) -> list[Scenario]:
    """The rows with these names, in the table's order; all of them for none. Raises BenchError."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    for name in names:
        if name not in known:
            raise BenchError(f"no row is called {name}; there are {', '.join(known)}")
    return [scenario for scenario in SCENARIOS if not names or scenario.name in names]


def custom(mode: Mode | Literal["highest"], **settings: float | None) -> Scenario:
    """A row of one's own. Raises BenchError for a mode that is not measured so."""
    given = {name: value for name, value in settings.items() if value is not None}
    kind: Kind = "search" if mode == "highest" else "load"
    if mode in ("agents", "stun", "handshakes", "silent"):
        raise BenchError(f"that is measured by a row of its own: {mode.replace('agents', 'agent-path')}")
    if mode in ("paced", "flood") and "rate" not in given:
        raise BenchError(f"--mode {mode} needs a --rate")
    spec = msgspec.convert({"mode": "flood" if mode == "highest" else mode, **given}, Spec)
    if mode == "highest":
        spec = msgspec.structs.replace(spec, rate=spec.rate or 20_000.0, seconds=1.0, warmup=0.2)
    if spec.receivers > 1 and spec.mode != "bulk":
        raise BenchError("several receivers of one sender are measured in --mode bulk")
    if spec.mode == "idle" and not spec.connections:
        raise BenchError("--mode idle needs --connections")
    if spec.extra_rate and spec.mode != "paced":
        raise BenchError("a stalled reader is measured in --mode paced")
    shown = {
        "bulk": SCENARIOS[0].shown,
        "flood": _PACED,
        "paced": _PACED,
        "idle": ("pss_per_connection_kib", "rss_per_connection_kib", "memory_before_kib", "cpu_share"),
    }[spec.mode]
    return Scenario(
        "custom",
        " ".join([mode, *(f"{name}={value:g}" for name, value in given.items())]),
        spec,
        kind=kind,
        control=spec.receivers == 1,
        variants=(ALL_READ, STALLED) if spec.extra_rate else ("",),
        shown=_SEARCH if kind == "search" else shown,
    )


def timed(scenario: Scenario, seconds: float | None, quick: bool) -> Scenario:
    """The row with other durations: `--seconds` for each measurement, or a third for `--quick`."""
    spec = scenario.spec
    if quick:
        spec = msgspec.structs.replace(
            spec,
            seconds=min(spec.seconds, 1.0) if scenario.kind != "search" else 0.5,
            connections=min(spec.connections, 2_000),
        )
    if seconds is not None:
        spec = msgspec.structs.replace(spec, seconds=seconds)
    return replace(scenario, spec=spec)


def figure(measurement: Measurement, name: str) -> float | None:
    """A figure by its name in goals and tables; None when the measurement doesn't have it."""
    if name in ("p50", "p99", "p999"):
        return None if measurement.latency is None else float(getattr(measurement.latency, name))
    value = getattr(measurement, name)
    return None if value is None else float(value)
