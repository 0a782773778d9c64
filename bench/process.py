"""What the kernel says about a process: its CPU time, its memory, how long it waited for its core."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of `pid`, dead ones too, in nanoseconds. Raises OSError when it is gone.

    The clock of another process: clock_getcpuclockid(3), whose ids are ~pid << 3 | CPUCLOCK_SCHED
    (include/linux/posix-timers.h). utime and stime in /proc/PID/stat are sampled at ticks of 4 ms.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def waited_ns(pid: int) -> int:
    """How long the threads of `pid` were ready to run but not running, in nanoseconds (schedstat).

    0 where the kernel does not count it.
    """
    total = 0
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # a thread that ended meanwhile
                total += int((task / "schedstat").read_text().split()[1])
    return total


def _field_kib(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def resident_kib(pid: int) -> int:
    """VmRSS. Raises OSError when the process is gone."""
    return _field_kib(Path(f"/proc/{pid}/status"), "VmRSS:")


def peak_kib(pid: int) -> int:
    """VmHWM: the most that was resident since the start or the last `forget_peak`."""
    return _field_kib(Path(f"/proc/{pid}/status"), "VmHWM:")


def forget_peak(pid: int) -> bool:
    """Start counting the peak anew (proc(5), clear_refs); False when that isn't allowed."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def proportional_kib(pid: int) -> int:
    """Pss: private memory and the process's share of what it shares. Raises OSError when not allowed."""
    return _field_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def pin(pid: int, cpu: int) -> None:
    """Bind every thread of `pid` to one core. Raises OSError when not allowed."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {cpu})


def idle_ns(core: int) -> int:
    """How long a core had nothing to do since the machine started, in nanoseconds (proc(5), stat)."""
    for line in Path("/proc/stat").read_text().splitlines():
        fields = line.split()
        if fields[0] == f"cpu{core}":
            return (int(fields[4]) + int(fields[5])) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    return 0


def _busy_ticks() -> tuple[int, int]:
    """Ticks that all cores worked, and all ticks, since the machine started (proc(5), stat)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def await_quiet(patience_s: float, *, at_most: float = 0.1) -> bool:
    """Wait until the machine's cores did next to nothing for half a second; False when that never came."""
    deadline = time.monotonic() + patience_s
    while True:
        busy, total = _busy_ticks()
        time.sleep(0.5)
        busy_now, total_now = _busy_ticks()
        if busy_now - busy <= at_most * max(total_now - total, 1):
            return True
        if time.monotonic() > deadline:
            return False


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU and waiting time of the processes under test and of the load at one moment, in nanoseconds."""

    at: int
    cpu: int
    waited: int
    own_cpu: int
    own_waited: int
    core_idle: int
    """Of the core of the processes under test; resolution 10 ms."""

    @classmethod
    def now(cls, pids: Iterable[int], core: int) -> Usage:
        """Read the clocks; `core` -1: none is known. Raises OSError when one of the processes is gone."""
        pids = tuple(pids)
        return cls(
            time.monotonic_ns(),
            sum(map(cpu_ns, pids)),
            sum(map(waited_ns, pids)),
            time.process_time_ns(),
            waited_ns(os.getpid()),
            idle_ns(core) if core >= 0 else 0,
        )


@contextmanager
def urgent(level: int = -19) -> Iterator[None]:
    """Run before others, as do the processes started meanwhile: nice, and the session's autogroup (sched(7)).

    Raises PermissionError without CAP_SYS_NICE. What was before comes back at the end.
    """
    group = Path("/proc/self/autogroup")
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, level)
    try:
        group_before = group.read_text().rsplit(" ", 1)[-1].strip() if group.exists() else ""
        if group_before:
            group.write_text(str(level))
        try:
            yield
        finally:
            if group_before:
                group.write_text(group_before)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
