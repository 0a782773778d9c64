"""`python -m bench`: the command line."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from bench import kube_cost, kube_start, startup
from bench.judge import Verdict, changes, judge
from bench.load import require_loopback
from bench.model import BenchError, Report, Result
from bench.plots import write_plots
from bench.process import pin, urgent
from bench.report import console_for, print_changes, print_results, print_verdicts
from bench.runner import Relay, run_row
from bench.scenarios import SCENARIOS, Scenario, custom, select, timed
from bench.targets import Address, Control, ForeignRelay, OwnRelay, control_of

CUSTOM = ("pairs", "payload", "burst", "rate", "receivers", "window", "connections", "extra_rate")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure a relay on this machine: one core for it, another for the load.",
        epilog="rows: " + ", ".join(scenario.name for scenario in SCENARIOS),
    )
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help="rows to measure (all of them if none is named)")
    add("--list", action="store_true", help="say what the rows are, and end")
    add("--target", metavar="HOST:PORT", help="a relay that runs already, on a loopback address")
    add("--pid", type=int, default=0, help="its process, for CPU time and memory")
    add("--pin", action="store_true", help="bind that process to the relay's core")
    add("--control", choices=("auto", "go", "python", "both", "none"), default="auto",
        help="the plain TCP forwarder to compare with (auto: the Go one where there is Go)")  # fmt: skip
    add("--repeats", type=int, default=0, help="runs of each (3; 1 with --quick)")
    add("--seconds", type=float, help="measured time of a run")
    add("--patience", type=float, default=5.0, metavar="SECONDS",
        help="wait so long before each run for the machine to be quiet (5)")  # fmt: skip
    add("--urgent", action="store_true",
        help="give relay, control and load alike priority over all else (needs root)")  # fmt: skip
    add("--quick", action="store_true", help="shorter, and once: to see that it works")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--svg", type=Path, metavar="DIR", help="write plots")
    add("--baseline", type=Path, metavar="FILE", help="print the change against an earlier --json")
    add("--startup", action="store_true", help="measure nothing but how long relayd takes to begin")
    add("--strict", action="store_true", help="exit status 1 when a goal was missed, too")
    own = parser.add_argument_group("a row of your own, instead of named ones")
    own.add_argument("--mode", choices=("bulk", "paced", "flood", "highest", "idle"))
    own.add_argument("--pairs", type=int)
    own.add_argument("--payload", type=int, metavar="BYTES")
    own.add_argument("--burst", type=int, metavar="FRAMES", help="frames in one write")
    own.add_argument("--rate", type=float, metavar="FRAMES/S", help="over all pairs (highest: to start from)")
    own.add_argument("--receivers", type=int, help="of one sender, in random order (bulk)")
    own.add_argument("--window", type=int, metavar="BYTES", help="in flight per sender (bulk)")
    own.add_argument("--connections", type=int, help="that do nothing (idle)")
    own.add_argument("--extra-rate", type=float, metavar="FRAMES/S",
                     help="to one more pair, whose reader stalls (paced)")  # fmt: skip
    return parser


def address_of(text: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT, loopback only. Raises BenchError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BenchError(f"--target {text}: HOST:PORT is needed")
    host = host.removeprefix("[").removesuffix("]")
    require_loopback(host)
    return host, int(port)


def _cpus() -> tuple[int, int]:
    """The relay's core and the load's. Raises BenchError where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise BenchError("two cores are needed, one for the relay and one for the load")
    return usable[-1], usable[0]


def _relay_of(options: argparse.Namespace, cpu: int) -> Relay:
    if not options.target:
        if options.pid or options.pin:
            raise BenchError("--pid and --pin go with --target")
        return OwnRelay(cpu)
    host, port = address_of(options.target)
    if options.pin:
        if not options.pid:
            raise BenchError("--pin needs --pid")
        try:
            pin(options.pid, cpu)
        except OSError as error:
            raise BenchError(f"--pid {options.pid}: {error.strerror}") from error
    affinity = os.sched_getaffinity(options.pid) if options.pid else set()
    return ForeignRelay(Address(host, port, options.pid), cpu if affinity == {cpu} else -1)


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    settings = {name: getattr(options, name) for name in CUSTOM}
    if options.mode:
        if options.rows:
            raise BenchError("name rows or give a --mode, not both")
        chosen = [custom(options.mode, **settings)]
    elif any(value is not None for value in settings.values()):
        raise BenchError("a row of your own needs a --mode")
    else:
        chosen = select(options.rows)
    return [timed(scenario, options.seconds, options.quick) for scenario in chosen]


def _version() -> str:
    try:
        return version("relayd")
    except PackageNotFoundError:
        return ""


def _machine() -> dict[str, str]:
    return {"kernel": platform.release(), "python": platform.python_version(), "cores": str(os.cpu_count())}


def run(options: argparse.Namespace) -> int:
    """Measure and print; the exit status. Raises BenchError when nothing can be measured."""
    console = console_for()
    if options.list:
        for scenario in SCENARIOS:
            console.print(f"{scenario.name:20} {scenario.title}", highlight=False)
        console.print(f"{kube_start.NAME:20} an agent's start in a cluster of {kube_start.PEERS} nodes")
        console.print(f"{kube_cost.NAME:20} what agents cost an API server, as that counts it")
        return 0
    if options.startup:
        return _startup(options)
    if kube_start.NAME in options.rows:
        return _kube_start(options)
    if kube_cost.NAME in options.rows:
        return _kube_cost(options)
    relay_cpu, load_cpu = _cpus()
    scenarios = _scenarios(options)
    baseline = msgspec.json.decode(options.baseline.read_bytes(), type=Report) if options.baseline else None
    if options.json:
        options.json.open("ab").close()  # minutes later is too late to find out that it can't be written
    if options.svg:
        options.svg.mkdir(parents=True, exist_ok=True)
    relay = _relay_of(options, relay_cpu)
    controls: list[Control] = control_of(options.control, relay_cpu)
    repeats = options.repeats or (1 if options.quick else 3)
    results: list[Result] = []
    begun = time.strftime("%Y-%m-%d %H:%M:%S")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        for scenario in scenarios:
            results += run_row(
                scenario,
                relay,
                controls,
                repeats=repeats,
                relay_cpu=relay_cpu,
                load_cpu=load_cpu,
                patience_s=options.patience,
                say=say,
            )
    except KeyboardInterrupt:
        say("stopped; what was measured until now:")
    report = Report(
        version=_version(),
        started=begun,
        machine=_machine(),
        relay=options.target or "relayd serve",
        control=", ".join(control.name for control in controls) or "no control",
        quick=options.quick,
        results=results,
    )
    verdicts: list[Verdict] = [verdict for scenario in scenarios for verdict in judge(scenario, results)]
    print_results(console, report, scenarios)
    print_verdicts(console, verdicts)
    if baseline:
        print_changes(console, changes(baseline, report, scenarios), baseline)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    if options.svg:
        write_plots(options.svg, report, scenarios, verdicts)
    broken = any(result.error for result in results)
    missed = any(verdict.met is False for verdict in verdicts)
    return 1 if broken or (options.strict and missed) else 0


def _startup(options: argparse.Namespace) -> int:
    found = startup.measure(_cpus()[0], options.repeats or 10)
    for row in found:
        print(row)
    return 1 if options.strict and not all(row.met for row in found) else 0


def _kube_start(options: argparse.Namespace) -> int:
    if options.rows != [kube_start.NAME]:
        raise BenchError(f"{kube_start.NAME} has no relay to measure: name it alone")
    for _ in range(options.repeats or 1):
        found = kube_start.measure()
        print(found)
        if options.strict and not found.met:
            return 1
    return 0


def _kube_cost(options: argparse.Namespace) -> int:
    if options.rows != [kube_cost.NAME]:
        raise BenchError(f"{kube_cost.NAME} has no relay to measure: name it alone")
    print(kube_cost.measure(120.0 if options.quick else kube_cost.CALM_S))
    return 0


def main() -> None:
    """Entry point."""
    try:
        options = _parser().parse_args()
        with urgent() if options.urgent else nullcontext():
            status = run(options)
    except (BenchError, OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status)


if __name__ == "__main__":
    main()
