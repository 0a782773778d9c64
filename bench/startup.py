"""How long relayd takes to begin: `relayd --help` printed, `relayd serve` accepting connections."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.model import BenchError
from bench.targets import await_listening, free_port, started

RELAYD = (sys.executable, "-c", "import sys; from relayd.cli import main; sys.exit(main())")
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Beginning:
    """One row: what was started, how long it took (seconds, each run), and how long it may."""

    what: str
    goal_s: float
    runs_s: tuple[float, ...]

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
            f"{'met' if self.met else 'missed'})"
        )


def measure(cpu: int, repeats: int) -> list[Beginning]:
    """Each of them `repeats` times, on one core, after one run that isn't counted (it warms the page cache).

    Raises BenchError.
    """
    rows: tuple[tuple[str, float, Callable[[int], float]], ...] = (
        ("relayd --help", 0.15, _help),
        ("relayd serve, to listening", 0.4, _serve),
    )
    found = []
    for what, goal_s, once in rows:
        once(cpu)
        found.append(Beginning(what, goal_s, tuple(once(cpu) for _ in range(repeats))))
    return found


def _help(cpu: int) -> float:
    begun = time.perf_counter()
    with started([*RELAYD, "--help"], cpu=cpu, may_end=True) as process:
        process.communicate(timeout=TIMEOUT_S)
        took_s = time.perf_counter() - begun
        if process.returncode:
            raise BenchError(f"relayd --help ended with status {process.returncode}")
    return took_s


def _serve(cpu: int) -> float:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="relayd-bench-") as folder:
        command = [
            *(*RELAYD, "serve", "--listen", f"127.0.0.1:{port}", "--control", f"{folder}/relay.sock"),
            *("--state", folder, "--http", "off", "--log", "json"),
        ]
        begun = time.perf_counter()
        with started(command, cpu=cpu) as process:
            await_listening(process, port)
            return time.perf_counter() - begun
