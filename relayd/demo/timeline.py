"""What happened to the traffic, second by second: probes and events in, seconds, gaps and outages out.

Pure. All times are seconds of time.time() on the way in, and since the timeline's start on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from relayd.demo.traffic import Answer, Missing, Rate

ANSWER_DEADLINE_S = 1.0
"""An answer later than this is as good as none: a probe without one is lost."""

STEADY = 5
"""Traffic is back with the first of so many answered probes in a row: one may be a straggler."""

UNDER_WAY_S = 0.1
"""A probe sent this long before a kill may have been under way: it is lost to it as well."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One ping."""

    sent_s: float
    round_trip_s: float | None
    """None: lost, or not answered yet."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done to the system, or that it did."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True)
class Second:
    """One row of the timeline."""

    number: int
    round_trips_ms: tuple[float | None, ...]
    """Each probe sent in this second, in order; None: lost."""
    megabits_per_s: float | None
    """What iperf3 carried in an interval that began in this second."""
    events: tuple[Event, ...]

    @property
    def lost(self) -> int:
        """Probes without an answer."""
        return self.round_trips_ms.count(None)

    @property
    def answered(self) -> int:
        """Probes with one."""
        return len(self.round_trips_ms) - self.lost

    @property
    def mean_ms(self) -> float | None:
        """Mean round trip of the answered ones."""
        trips = [trip for trip in self.round_trips_ms if trip is not None]
        return fmean(trips) if trips else None


@dataclass(frozen=True, slots=True)
class Gap:
    """Probes in a row that were lost."""

    start_s: float
    """When the first of them was sent."""
    end_s: float | None
    """When the first answered one after them was sent; None: it never ended."""
    lost: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What was killed and brought back, and what that did to the traffic."""

    what: str
    killed_s: float
    restarted_s: float
    back_s: float | None
    """When the first of STEADY answered probes was sent; None: it did not come back."""
    silent_s: float
    """From the first lost probe to `back_s` (the last probe if it did not come back); 0: none was lost."""
    lost: int

    @property
    def recovered_after_s(self) -> float | None:
        """From the restart to `back_s`."""
        return None if self.back_s is None else max(0.0, self.back_s - self.restarted_s)


class Timeline:
    """Fed as things happen; every question can be asked at any time."""

    def __init__(self, start_at: float) -> None:
        self.start_at = start_at
        self.events: list[Event] = []
        self._probes: dict[int, Probe] = {}
        self._rates: dict[int, float] = {}

    def add(self, heard: Answer | Missing) -> None:
        """A line of ping. A late answer corrects a "no answer yet", unless it is later than allowed."""
        sent_s = heard.sent_at - self.start_at
        if isinstance(heard, Missing):
            self._probes.setdefault(heard.seq, Probe(sent_s, None))
        elif heard.round_trip_s <= ANSWER_DEADLINE_S:
            self._probes[heard.seq] = Probe(sent_s, heard.round_trip_s)
        else:
            self._probes.setdefault(heard.seq, Probe(sent_s, None))

    def add_rate(self, rate: Rate, iperf_started_at: float) -> None:
        """A line of iperf3 about one interval. Summaries and slivers of one are not for the timeline."""
        if not rate.summary and rate.end_s - rate.start_s > 0.5:
            self._rates[int(iperf_started_at + rate.start_s - self.start_at)] = rate.megabits_per_s

    def event(self, at: float, what: str) -> Event:
        """Something happened at `at`."""
        happened = Event(at - self.start_at, what)
        self.events.append(happened)
        return happened

    def probes(self) -> list[Probe]:
        """All probes in the order in which they were sent."""
        return [self._probes[seq] for seq in sorted(self._probes)]

    def second(self, number: int) -> Second:
        """The row of one second."""
        probes = self._sent_between(number, number + 1)
        return Second(
            number=number,
            round_trips_ms=tuple(
                None if probe.round_trip_s is None else probe.round_trip_s * 1000.0 for probe in probes
            ),
            megabits_per_s=self._rates.get(number),
            events=tuple(
                sorted((e for e in self.events if int(e.at_s) == number), key=lambda event: event.at_s)
            ),
        )

    def seconds(self) -> list[Second]:
        """All rows, up to the last second in which anything was sent or happened."""
        times = [probe.sent_s for probe in self._probes.values()] + [event.at_s for event in self.events]
        last = max(times, default=-1)
        return [self.second(number) for number in range(int(last) + 1)]

    def is_settled(self, number: int, now: float) -> bool:
        """Whether no answer can change that second's row any more."""
        return now - self.start_at >= number + 1 + ANSWER_DEADLINE_S

    def gaps(self) -> list[Gap]:
        """Every run of lost probes."""
        gaps: list[Gap] = []
        start_s, lost = 0.0, 0
        for probe in self.probes():
            if probe.round_trip_s is None:
                start_s, lost = (start_s, lost + 1) if lost else (probe.sent_s, 1)
            elif lost:
                gaps.append(Gap(start_s, probe.sent_s, lost))
                lost = 0
        if lost:
            gaps.append(Gap(start_s, None, lost))
        return gaps

    def back_after(self, at: float) -> float | None:
        """When traffic was steady again: when the first of STEADY answered probes since `at` was sent."""
        run = 0
        first_s = 0.0
        for probe in self._sent_between(at - self.start_at, float("inf")):
            if probe.round_trip_s is None:
                run = 0
            else:
                first_s = first_s if run else probe.sent_s
                run += 1
                if run == STEADY:
                    return first_s
        return None

    def fault(self, what: str, killed_at: float, restarted_at: float) -> Fault:
        """What killing something at one time and starting it again at another did to the traffic."""
        killed_s = killed_at - self.start_at
        back_s = self.back_after(restarted_at)
        struck = list(self._sent_between(killed_s - UNDER_WAY_S, float("inf") if back_s is None else back_s))
        lost = [probe.sent_s for probe in struck if probe.round_trip_s is None]
        end_s = back_s if back_s is not None else max((probe.sent_s for probe in struck), default=killed_s)
        return Fault(
            what=what,
            killed_s=killed_s,
            restarted_s=restarted_at - self.start_at,
            back_s=back_s,
            silent_s=max(0.0, end_s - lost[0]) if lost else 0.0,
            lost=len(lost),
        )

    def _sent_between(self, start_s: float, end_s: float) -> Iterator[Probe]:
        return (probe for probe in self.probes() if start_s <= probe.sent_s < end_s)
