"""What happened between the start and the end of the measured time, made into a Measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.model import Generator, Measurement, Spec
from bench.process import Usage, forget_peak, peak_kib
from bench.stats import latency_of, percentile

FULL_SHARE = 0.97
"""A core that was used more than this had nothing left."""
SPARE_SHARE = 0.93
"""A process that used less of its core than this could have done more."""


class Tally:
    """Reads all clocks and counters twice, and knows the difference."""

    def __init__(self, spec: Spec, pids: Sequence[int], received: Callable[[], int]) -> None:
        """`received` says how many frames that count have come so far."""
        self._spec = spec
        self._pids = tuple(pids)
        self._received = received
        self._peak_known = [forget_peak(pid) for pid in self._pids]
        self._first: Usage | None = None
        self._last: Usage | None = None
        self._frames = [0, 0]

    def start(self) -> None:
        """The warm-up is over."""
        self._first = Usage.now(self._pids, self._spec.relay_cpu)
        self._frames[0] = self._received()

    def stop(self) -> None:
        """The measured time is over."""
        self._frames[1] = self._received()
        self._last = Usage.now(self._pids, self._spec.relay_cpu)

    def finish(
        self,
        *,
        sent: int,
        backpressure: int,
        drain_s: float,
        unsent: int = 0,
        latencies: Sequence[int] = (),
        late: Sequence[int] = (),
        idle_ns: int = 0,
        checked: int = 0,
    ) -> Measurement:
        """All figures, after the drain. `sent` counts frames, `idle_ns` the load's empty rounds."""
        first, last = self._first, self._last
        assert first is not None
        assert last is not None
        elapsed = (last.at - first.at) / 1e9
        frames = self._frames[1] - self._frames[0]
        received = self._received()
        cpu_share = (last.cpu - first.cpu) / 1e9 / elapsed if self._pids else None
        late_p99 = percentile(sorted(late), 99) / 1000 if late else 0.0
        latency = latency_of(latencies)
        foreign: float | None = None
        if cpu_share is not None and self._spec.relay_cpu >= 0:
            foreign = max(1 - (last.core_idle - first.core_idle) / 1e9 / elapsed - cpu_share, 0.0)
        own = (last.own_cpu - first.own_cpu) / 1e9 / elapsed
        busy = max(own - idle_ns / 1e9 / elapsed, 0.0)
        spare = cpu_share is None or cpu_share < SPARE_SHARE
        if self._spec.mode == "paced":
            # A load that was late itself shows in the figures as if the relay had been.
            was_limit = busy > FULL_SHARE or (latency is not None and late_p99 > latency.p99 / 2)
        else:
            was_limit = busy > FULL_SHARE and spare and not unsent
        notes: list[str] = []
        if self._pids and not all(self._peak_known):
            notes.append("peak memory is that since the process's start")
        return Measurement(
            elapsed_s=round(elapsed, 3),
            frames=frames,
            frames_per_s=round(frames / elapsed, 1),
            gbit_per_s=round(frames * self._spec.payload * 8 / elapsed / 1e9, 3),
            sent=sent,
            received=received,
            lost=sent - received,
            unsent=unsent,
            backpressure=backpressure,
            drain_s=round(drain_s, 4),
            checked=checked,
            latency=latency,
            cpu_share=None if cpu_share is None else round(cpu_share, 4),
            frames_per_cpu_s=round(frames / (cpu_share * elapsed), 1) if cpu_share else None,
            waited_share=round((last.waited - first.waited) / 1e9 / elapsed, 4) if self._pids else None,
            foreign_share=None if foreign is None else round(foreign, 4),
            memory_kib=sum(peak_kib(pid) for pid in self._pids) if self._pids else None,
            generator=Generator(
                cpu_share=round(own, 4),
                busy_share=round(busy, 4),
                late_p99_us=round(late_p99, 1),
                waited_share=round((last.own_waited - first.own_waited) / 1e9 / elapsed, 4),
                was_limit=was_limit,
            ),
            notes=notes,
        )
