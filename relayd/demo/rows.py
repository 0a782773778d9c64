"""The demonstration's words: rows of the timeline and the summary, as text. Pure."""

from __future__ import annotations

import math

from relayd.demo.plan import Outcome, Stage
from relayd.demo.timeline import UNDER_WAY_S, Fault, Gap, Second

ANSWERED, LOST = "#", "."
BARS = "▁▂▃▄▅▆▇█"
CELLS = 20
"""Pings in a second, at most."""

WHAT_HAPPENED = "what happened"
HEADING = f"{'time':>6}  {'pings from a to b':<{CELLS}}  {'answered':>8}  {'round trip':>10}  {'iperf3':>11}"


def cells(second: Second) -> str:
    """A character for each ping of a second: answered or lost."""
    return "".join(LOST if trip is None else ANSWERED for trip in second.round_trips_ms)


def bar(round_trip_ms: float) -> str:
    """A bar, a step higher with each doubling of the round trip: the second from 1 ms, the top from 64."""
    step = math.floor(math.log2(max(round_trip_ms, 0.01))) + 1
    return BARS[min(max(step, 0), len(BARS) - 1)]


def figures(second: Second) -> tuple[str, str, str]:
    """Answered of sent, mean round trip, throughput; empty where there is nothing to tell."""
    sent = len(second.round_trips_ms)
    return (
        f"{second.answered}/{sent}" if sent else "",
        f"{second.mean_ms:.1f} ms" if second.mean_ms is not None else "",
        f"{second.megabits_per_s:.0f} Mbit/s" if second.megabits_per_s is not None else "",
    )


def happened(second: Second) -> str:
    """The events of a second, with their times."""
    return "; ".join(f"{event.what} ({event.at_s:.1f} s)" for event in second.events)


def row(second: Second) -> str:
    """A second as a line of plain text."""
    answered, round_trip, rate = figures(second)
    left = f"{second.number:>4} s  {cells(second):<{CELLS}}"
    return f"{left}  {answered:>8}  {round_trip:>10}  {rate:>11}  {happened(second)}".rstrip()


WIREGUARD = {"kernel": "WireGuard of the kernel", "wireguard-go": "WireGuard in userspace (wireguard-go)"}


def introduction(stage: Stage) -> list[str]:
    """Who stands where."""
    left, right = stage.relay_addresses
    a, b = stage.node_addresses
    in_a, in_b = stage.tunnel_addresses
    return [
        f"node a  {a} ---- {left}  relay  {right} ---- {b}  node b",
        "The relay's host forwards nothing: a and b reach each other through relayd or not at all.",
        f"In the tunnel a is {in_a} and b is {in_b}. {WIREGUARD[stage.wireguard]}, no endpoint configured.",
    ]


def about_fault(fault: Fault) -> str:
    """One kill and what it did."""
    down_s = fault.restarted_s - fault.killed_s
    head = f"{fault.what} killed at {fault.killed_s:.1f} s, started again {down_s:.1f} s later"
    if fault.recovered_after_s is None:
        return f"{head}: the traffic did not come back"
    if not fault.lost:
        return f"{head}: no ping lost"
    return (
        f"{head}: silent for {fault.silent_s:.2f} s, {fault.lost} pings lost, "
        f"traffic back {fault.recovered_after_s:.2f} s after the restart"
    )


def summary(outcome: Outcome) -> list[tuple[str, str]]:
    """What came of it, as (subject, words)."""
    lines: list[tuple[str, str]] = []
    if outcome.ready_s is not None:
        lines.append(("tunnel", f"up {outcome.ready_s:.1f} s after relay and agents were started"))
    if outcome.endpoints:
        lines.append(("endpoints", f"WireGuard holds {' and '.join(outcome.endpoints)}: the agent beside it"))
    if (found := outcome.throughput) is not None:
        rate = f"{found.megabits_per_s:.0f} Mbit/s for {found.seconds:.0f} s"
        lines.append(("throughput", f"{rate} (iperf3, TCP, a to b)"))
    lines += [("fault", about_fault(fault)) for fault in outcome.faults]
    elsewhere = [gap for gap in outcome.gaps if not any(_belongs(gap, fault) for fault in outcome.faults)]
    if elsewhere:
        lost = sum(gap.lost for gap in elsewhere)
        longest = max(elsewhere, key=lambda gap: gap.lost)
        lines.append(
            ("other gaps", f"{lost} pings lost, at most {longest.lost} in a row (at {longest.start_s:.1f} s)")
        )
    if outcome.sent:
        answered = outcome.sent - outcome.lost
        lines.append(("pings", f"{outcome.sent} sent, {answered} answered, {outcome.lost} lost"))
    if outcome.ok:
        lines.append(("result", "the traffic came back each time"))
    else:
        lines.append(("result", f"FAILED: {outcome.error or 'the traffic did not come back each time'}"))
    return lines


def _belongs(gap: Gap, fault: Fault) -> bool:
    """Whether a gap is part of what the fault did."""
    return fault.killed_s - UNDER_WAY_S <= gap.start_s and (
        fault.back_s is None or gap.start_s < fault.back_s
    )
