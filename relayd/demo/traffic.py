"""The traffic through the tunnel, by tools that everybody trusts: command lines, and what their lines mean.

Pure: `ping` (iputils) and `iperf3` are started elsewhere; here their lines become values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address

PING_INTERVAL_S = 0.05
"""Twenty a second: fine enough to see an outage of a tenth of a second, far below what disturbs the rest."""

_ANSWER = re.compile(r"^\[(\d+\.\d+)] \d+ bytes from .* icmp_seq=(\d+) .*time=([\d.]+) ms$")
_MISSING = re.compile(r"^\[(\d+\.\d+)] no answer yet for icmp_seq=(\d+)$")
_RATE = re.compile(
    r"^\[ *(?:\d+|SUM)]\s+([\d.]+)-([\d.]+)\s+sec\s+[\d.]+ \S+\s+([\d.]+) Mbits/sec"
    r"(?:\s+(\d+))?(?:.*\b(sender|receiver))?"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A ping that came back."""

    seq: int
    sent_at: float
    """When it was sent, in seconds of time.time()."""
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Missing:
    """A ping that was unanswered when the next one left. Its answer may still come."""

    seq: int
    sent_at: float
    """When it was sent, in seconds of time.time(), within a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What iperf3 carried in an interval, times in seconds since its start."""

    start_s: float
    end_s: float
    megabits_per_s: float
    retransmits: int | None
    summary: str
    """Empty for a second of the run; "sender" or "receiver" for the whole."""


def ping_argv(to: IPv4Address, *, seconds: float) -> list[str]:
    """Ping `to` until killed, at most `seconds` long; every unanswered one gets a line too (-O)."""
    # Line-buffered by itself: iputils flushes after each line.
    return ["ping", "-n", "-D", "-O", "-i", f"{PING_INTERVAL_S:g}", "-w", f"{seconds:.0f}", str(to)]


def parse_ping_line(line: str, interval_s: float = PING_INTERVAL_S) -> Answer | Missing | None:
    """What a line of `ping -D -O` tells of one probe; None for headings, errors, duplicates and summaries."""
    line = line.strip()
    if found := _ANSWER.match(line):
        at, seq, milliseconds = found.groups()
        round_trip_s = float(milliseconds) / 1000.0
        return Answer(int(seq), float(at) - round_trip_s, round_trip_s)
    if found := _MISSING.match(line):
        at, seq = found.groups()
        return Missing(int(seq), float(at) - interval_s)  # it is said when the next one is sent
    return None


def iperf_server_argv(address: IPv4Address) -> list[str]:
    """Serve one test on the tunnel's address, then end."""
    return ["iperf3", "--server", "--one-off", "--bind", str(address), "--forceflush"]


def iperf_client_argv(to: IPv4Address, *, seconds: int) -> list[str]:
    """One TCP stream towards the server, a line a second, in Mbit/s."""
    return [
        "iperf3", "--client", str(to), "--time", str(seconds), "--interval", "1", "--format", "m",
        "--connect-timeout", "3000", "--forceflush",
    ]  # fmt: skip


def parse_iperf_line(line: str) -> Rate | None:
    """What a line of the client's report tells; None for headings and errors."""
    found = _RATE.match(line.strip())
    if found is None:
        return None
    start, end, rate, retransmits, summary = found.groups()
    return Rate(
        float(start), float(end), float(rate), int(retransmits) if retransmits else None, summary or ""
    )
