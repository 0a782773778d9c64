"""Runs the rows: relay and control in turn, each measurement with a load process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from bench import search
from bench.agent_path import agents
from bench.load import GRACE_S
from bench.model import BenchError, Measurement, Result, Spec
from bench.process import await_quiet
from bench.scenarios import Scenario
from bench.targets import Address, Control, ForeignRelay, OwnRelay

Relay = OwnRelay | ForeignRelay
Say = Callable[[str], None]
_ROOT = Path(__file__).resolve().parent.parent


def run_load(spec: Spec) -> Measurement:
    """One measurement in a process of its own. Raises BenchError with what that process said."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            cwd=_ROOT,
            input=msgspec.json.encode(spec),
            capture_output=True,
            timeout=spec.warmup + spec.seconds + GRACE_S + 5,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError("the load did not end in time") from error
    if done.returncode:
        raise BenchError(done.stderr.decode(errors="replace").strip()[-2000:] or "the load ended early")
    return msgspec.json.decode(done.stdout, type=Measurement)


def _aim(spec: Spec, target: Relay | Control, address: Address, load_cpu: int) -> Spec:
    return msgspec.structs.replace(
        spec,
        host=address.host,
        port=address.port,
        pid=address.pid,
        wire=target.wire,
        cpu=load_cpu,
        relay_cpu=target.cpu,
    )


def measure(
    scenario: Scenario, variant: str, target: Relay | Control, *, relay_cpu: int, load_cpu: int
) -> Measurement:
    """One run of a row. Raises BenchError."""
    spec = scenario.spec_of(variant)
    if isinstance(target, OwnRelay) and spec.mode in ("handshakes", "silent"):
        target = replace(target, auth="required")
    if scenario.kind != "search":
        with target.running() as address:
            return run_load(_aim(spec, target, address, load_cpu))

    def try_rate(rate: float) -> Measurement:
        # A fresh process for each step: what an overload leaves behind is not the next step's.
        with target.running() as address:
            aimed = msgspec.structs.replace(_aim(spec, target, address, load_cpu), rate=rate)
            if spec.mode != "agents":
                return run_load(aimed)
            with agents(aimed, address, relay_cpu) as led:
                return run_load(led)

    best, steps, limited = search.highest(spec.rate, try_rate, scenario.most_p99_us)
    if best is None:
        return Measurement(elapsed_s=0.0, steps=steps, notes=["no rate got through without loss"])
    if best.generator is not None:
        best = msgspec.structs.replace(
            best, generator=msgspec.structs.replace(best.generator, was_limit=limited)
        )
    return msgspec.structs.replace(best, steps=steps)


def run_row(
    scenario: Scenario,
    relay: Relay,
    controls: list[Control],
    *,
    repeats: int,
    relay_cpu: int,
    load_cpu: int,
    patience_s: float,
    say: Say,
) -> list[Result]:
    """All repeats of a row, targets and variants in turn; what failed has its error in its Result."""
    targets: list[tuple[Relay | Control, str]] = []
    for variant in scenario.variants:
        targets.append((relay, variant))
        if scenario.control:
            targets += [(control, variant) for control in controls]
    runs: list[list[Measurement]] = [[] for _ in targets]
    errors = [""] * len(targets)
    for repeat in range(repeats):
        # In turn, and each round in the other direction: what the machine does meanwhile hits all alike.
        places = list(enumerate(targets))
        for place, (target, variant) in places if repeat % 2 == 0 else places[::-1]:
            if errors[place]:
                continue
            say(f"{scenario.name}  {target.name}  {variant}  {repeat + 1}/{repeats}".replace("    ", "  "))
            if patience_s:
                await_quiet(patience_s)
            try:
                runs[place].append(measure(scenario, variant, target, relay_cpu=relay_cpu, load_cpu=load_cpu))
            except BenchError as error:
                errors[place] = str(error)
                say(f"  {error}")
    return [
        Result(scenario=scenario.name, target=target.name, variant=variant, runs=found, error=error)
        for (target, variant), found, error in zip(targets, runs, errors, strict=True)
    ]
