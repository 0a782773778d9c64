"""What the demonstration does when, and what came of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from relayd.demo.timeline import Fault, Gap, Second, Timeline

DEFAULT_SECONDS = 30
MIN_SECONDS = 16
MAX_SECONDS = 45
"""With set-up, a slow recovery and tear-down all of it stays under a minute."""

LIMIT_S = 56.0
"""Whatever happens, the demonstration ends after this, with what it knows by then."""

DOWN_S = 1.0
"""How long what was killed stays dead."""

RECOVERY_S = 15.0
"""Traffic not back so long after a restart counts as not back: four tries of the backoff fit in it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds for each act, all of them with pings running."""

    calm_s: float
    """Before and after the measurement, with nothing but pings."""
    throughput_s: int
    fault_s: float
    """From a kill to the next act; longer where the traffic takes longer to come back."""


def plan(seconds: int) -> Plan:
    """Share out about `seconds` of traffic."""
    throughput_s = max(3, round(seconds * 0.2))
    calm_s = max(2.0, seconds * 0.1)
    return Plan(calm_s, throughput_s, (seconds - throughput_s - 2 * calm_s) / 2)


@dataclass(frozen=True, slots=True)
class Stage:
    """Who stands where."""

    relay_addresses: tuple[IPv4Address, IPv4Address]
    """The relay's host as node a and as node b reach it."""
    node_addresses: tuple[IPv4Address, IPv4Address]
    tunnel_addresses: tuple[IPv4Address, IPv4Address]
    wireguard: str
    """ "kernel" or "wireguard-go"."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """What iperf3 carried through the tunnel from a to b, counted by the receiver."""

    megabits_per_s: float
    seconds: float
    retransmits: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All of it, when it is over."""

    stage: Stage
    seconds: tuple[Second, ...]
    gaps: tuple[Gap, ...]
    faults: tuple[Fault, ...]
    throughput: Throughput | None
    ready_s: float | None
    """From the start of relay and agents to the first answered ping."""
    endpoints: tuple[str, ...]
    """What WireGuard on a and on b held as the other's endpoint at the end."""
    error: str
    """Why it was not played to its end; empty: it was."""

    @property
    def ok(self) -> bool:
        """Whether the traffic came, and came back each time."""
        return (
            not self.error
            and self.throughput is not None
            and len(self.faults) == FAULTS
            and all(fault.back_s is not None for fault in self.faults)
        )

    @property
    def sent(self) -> int:
        """Pings sent."""
        return sum(len(second.round_trips_ms) for second in self.seconds)

    @property
    def lost(self) -> int:
        """Pings without an answer."""
        return sum(second.lost for second in self.seconds)


FAULTS = 2
"""The relay's death and an agent's."""


def outcome(
    stage: Stage,
    timeline: Timeline,
    faults: list[tuple[str, float, float]],
    *,
    throughput: Throughput | None,
    ready_s: float | None,
    endpoints: tuple[str, ...] = (),
    error: str = "",
) -> Outcome:
    """Sum up. `faults`: what, when killed, when started again, in seconds of time.time()."""
    return Outcome(
        stage=stage,
        seconds=tuple(timeline.seconds()),
        gaps=tuple(timeline.gaps()),
        faults=tuple(timeline.fault(*fault) for fault in faults),
        throughput=throughput,
        ready_s=ready_s,
        endpoints=endpoints,
        error=error,
    )
