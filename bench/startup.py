"""How long relayd takes to begin: `relayd --help` printed, `relayd serve` accepting connections."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.model import BenchError
from bench.process import cpu_ns
from bench.targets import await_listening, free_port, started

RELAYD = (sys.executable, "-c", "import sys; from relayd.cli import main; sys.exit(main())")
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Beginning:
    """One row: what was started, how long it may take, and how long it took (seconds, each run).

    `cpu_s` is the CPU time of each run: what the rest is on a busy machine, others have had."""

    what: str
    goal_s: float
    runs_s: tuple[float, ...]
    cpu_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return median(self.runs_s)

    @property
    def met(self) -> bool:
        return self.median_s <= self.goal_s

    def __str__(self) -> str:
        spread = f"{min(self.runs_s) * 1e3:.0f} to {max(self.runs_s) * 1e3:.0f}"
        return (
            f"{self.what:30} {self.median_s * 1e3:5.0f} ms   ({spread}; goal {self.goal_s * 1e3:.0f} ms: "
            f"{'met' if self.met else 'missed'}); CPU {median(self.cpu_s) * 1e3:.0f} ms"
        )


Once = Callable[[int, dict[str, str]], tuple[float, float]]
"""`once(cpu, env)` -> seconds that it took, seconds of CPU"""


def measure(cpu: int, repeats: int) -> list[Beginning]:
    """Each of them `repeats` times, on one core, after one run that isn't counted: it warms the page cache,
    and writes the bytecode that an installed relayd has.

    Raises BenchError.
    """
    rows: tuple[tuple[str, float, Once], ...] = (
        ("relayd --help", 0.15, _help),
        ("relayd serve, to listening", 0.4, _serve),
    )
    found = []
    with tempfile.TemporaryDirectory(prefix="relayd-bench-") as folder:
        env = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for what, goal_s, once in rows:
            once(cpu, env)
            runs = [once(cpu, env) for _ in range(repeats)]
            found.append(
                Beginning(what, goal_s, tuple(took for took, _ in runs), tuple(used for _, used in runs))
            )
    return found


def _help(cpu: int, env: dict[str, str]) -> tuple[float, float]:
    before, begun = _children_cpu_s(), time.perf_counter()
    with started([*RELAYD, "--help"], cpu=cpu, env=env, may_end=True) as process:
        process.communicate(timeout=TIMEOUT_S)
        took_s = time.perf_counter() - begun
        if process.returncode:
            raise BenchError(f"relayd --help ended with status {process.returncode}")
    return took_s, _children_cpu_s() - before


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _serve(cpu: int, env: dict[str, str]) -> tuple[float, float]:
    """Until it accepts a connection. Everything that is on by default is on."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="relayd-bench-") as folder:
        command = [
            *(*RELAYD, "serve", "--listen", f"127.0.0.1:{port}", "--control", f"{folder}/relay.sock"),
            *("--state", folder, "--log", "json"),
        ]
        begun = time.perf_counter()
        with started(command, cpu=cpu, env=env) as process:
            await_listening(process, port)
            return time.perf_counter() - begun, cpu_ns(process.pid) / 1e9
