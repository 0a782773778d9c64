"""`relayd demo`: the command line, signals, and the exit status."""

from __future__ import annotations

import argparse
import signal
import sys

import trio

from relayd.demo.host import check_programs, check_root
from relayd.demo.lab import PROGRAMS, Lab
from relayd.demo.plan import DEFAULT_SECONDS, LIMIT_S, MAX_SECONDS, MIN_SECONDS, Outcome, plan
from relayd.demo.report import LiveReport, choose
from relayd.demo.story import DemoError, Report, Story
from relayd.errors import HostError, RelaydError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `relayd demo`."""
    parser.description = (
        "Make two nodes that reach each other only through a relay, in network namespaces of their own; "
        "show the traffic between them; kill the relay and an agent, and show how it comes back. Needs "
        "root. Leaves nothing behind. The exit status is 0 only when the traffic came back each time."
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document at the end, and nothing else"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=DEFAULT_SECONDS, metavar="N",
        help=f"about how much traffic to show, {MIN_SECONDS} to {MAX_SECONDS} (default {DEFAULT_SECONDS})",
    )  # fmt: skip


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and MIN_SECONDS <= int(text) <= MAX_SECONDS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from {MIN_SECONDS} to {MAX_SECONDS}"
        )
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Play it. The exit status. Raises HostError when the host lacks something."""
    check_root()
    check_programs([*PROGRAMS, "iperf3", "ping", "wg"])
    report = choose(as_json=args.json)
    # A signal that comes after the first one would be raised anew when trio's receiver is closed, and end the
    # process before it has said how it ended: behind the receiver they are ignored.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        return trio.run(_until_stopped, report, args.seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if isinstance(report, LiveReport):
            report.stop()


async def _until_stopped(report: Report, seconds: int) -> int:
    """Play until it is over or a signal comes. Signals are events here: none can cut tear-down short."""
    stopped_by: signal.Signals | None = None
    status = 1
    with trio.open_signal_receiver(*STOPPING) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                nonlocal stopped_by
                async for number in signals:
                    stopped_by = signal.Signals(number)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_signal)
            outcome = await _play(report, seconds)
            report.closed(outcome)
            status = 0 if outcome.ok else 1
            nursery.cancel_scope.cancel()
        if stopped_by is not None:
            if isinstance(report, LiveReport):
                report.stop()
            print(f"relayd demo: stopped by {stopped_by.name}; nothing is left behind", file=sys.stderr)
            return 128 + stopped_by
    return status


async def _play(report: Report, seconds: int) -> Outcome:
    error = ""
    with Lab() as lab:
        story = Story(lab, plan(seconds), report)
        try:
            with trio.move_on_after(LIMIT_S) as limit:
                await story.play()
            if limit.cancelled_caught:
                error = f"it was not over after {LIMIT_S:g} s"
        except* (DemoError, HostError) as group:
            error = "; ".join(str(one) for one in _leaves(group))
        return story.outcome(error)


def _leaves(group: BaseExceptionGroup[RelaydError]) -> list[RelaydError]:
    found: list[RelaydError] = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found
