"""Three ways to tell the demonstration: live on a terminal, as lines of text, as one JSON document."""

from __future__ import annotations

import json
import sys
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from relayd.demo import rows
from relayd.demo.plan import Outcome, Stage
from relayd.demo.story import Report
from relayd.demo.timeline import Second


class PlainReport:
    """A line a second, for a pipe or a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def opened(self, stage: Stage) -> None:
        """Who stands where, and the heading."""
        for line in [*rows.introduction(stage), "", f"{rows.HEADING}  {rows.WHAT_HAPPENED}"]:
            self._say(line)

    def said(self, what: str) -> None:
        """Not told: the lines say what happened."""

    def settled(self, second: Second) -> None:
        """Its line."""
        self._say(rows.row(second))

    def running(self, seconds: list[Second]) -> None:
        """Not told: a line is printed once."""

    def closed(self, outcome: Outcome) -> None:
        """The summary."""
        self._say("")
        for subject, words in rows.summary(outcome):
            self._say(f"{subject:<11} {words}")


class LiveReport:
    """The same with colours and a bar for every ping; the running seconds move at the bottom."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._waiting = ""

    def opened(self, stage: Stage) -> None:
        """Who stands where, and the heading."""
        picture, *words = rows.introduction(stage)
        self._console.print(Text(picture, style="bold"))
        for line in words:
            self._console.print(Text(line, style="dim"))
        self._console.print()
        self._console.print(self._grid(Text(rows.HEADING, style="bold"), rows.WHAT_HAPPENED))
        self._live.start()

    def said(self, what: str) -> None:
        """Shown below the running seconds."""
        self._waiting = what

    def settled(self, second: Second) -> None:
        """Moves up into what stays on the screen."""
        self._live.console.print(self._row(second))

    def running(self, seconds: list[Second]) -> None:
        """Redrawn."""
        shown: list[RenderableType] = [self._row(second) for second in seconds]
        if self._waiting:
            shown.append(Text(f"        {self._waiting} ...", style="italic dim"))
        self._live.update(Group(*shown), refresh=True)

    def closed(self, outcome: Outcome) -> None:
        """The summary; the terminal is as it was."""
        self.stop()
        table = Table.grid(padding=(0, 2))
        for subject, words in rows.summary(outcome):
            style = "" if subject != "result" else "bold green" if outcome.ok else "bold red"
            table.add_row(Text(subject, style="bold"), Text(words, style=style))
        self._console.print()
        self._console.print(table)

    def stop(self) -> None:
        """Let go of the terminal. Twice is no error."""
        self._live.update("")
        self._live.stop()

    def _row(self, second: Second) -> RenderableType:
        answered, round_trip, rate = rows.figures(second)
        line = Text(f"{second.number:>4} s  ")
        for trip in second.round_trips_ms:
            if trip is None:
                line.append("x", style="bold red")
            else:
                line.append(rows.bar(trip), style="green")
        line.append(" " * (rows.CELLS - len(second.round_trips_ms)))
        line.append(f"  {answered:>8}", style="red" if second.lost else "")
        line.append(f"  {round_trip:>10}  ")
        line.append(f"{rate:>11}", style="cyan")
        return self._grid(line, rows.happened(second))

    @staticmethod
    def _grid(line: Text, events: str) -> RenderableType:
        """The figures in a fixed place, the events wrapped beside them."""
        line.no_wrap = True
        grid = Table.grid(padding=(0, 2))
        grid.add_row(line, Text(events, style="yellow"))
        return grid


class JsonReport:
    """One document, when it is over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def opened(self, stage: Stage) -> None:
        """Not told."""

    def said(self, what: str) -> None:
        """Not told."""

    def settled(self, second: Second) -> None:
        """Not told."""

    def running(self, seconds: list[Second]) -> None:
        """Not told."""

    def closed(self, outcome: Outcome) -> None:
        """All of it."""
        print(json.dumps(as_json(outcome), indent=2), file=self._stream, flush=True)


def as_json(outcome: Outcome) -> dict[str, object]:
    """The document. Times in seconds since the start of relay and agents; null: it did not happen."""
    found, stage = outcome.throughput, outcome.stage
    return {
        "ok": outcome.ok,
        "error": outcome.error or None,
        "wireguard": stage.wireguard,
        "nodes": {
            name: {"address": str(address), "tunnel_address": str(inside), "relay_address": str(relay)}
            for name, address, inside, relay in zip(
                "ab", stage.node_addresses, stage.tunnel_addresses, stage.relay_addresses, strict=True
            )
        },
        "endpoints": list(outcome.endpoints),
        "ready_s": _rounded(outcome.ready_s),
        "pings": {
            "sent": outcome.sent,
            "answered": outcome.sent - outcome.lost,
            "lost": outcome.lost,
        },
        "throughput": found
        and {
            "megabits_per_s": found.megabits_per_s,
            "seconds": found.seconds,
            "retransmits": found.retransmits,
        },
        "faults": [
            {
                "what": fault.what,
                "killed_s": _rounded(fault.killed_s),
                "restarted_s": _rounded(fault.restarted_s),
                "back_s": _rounded(fault.back_s),
                "silent_s": _rounded(fault.silent_s),
                "lost": fault.lost,
                "recovered_after_s": _rounded(fault.recovered_after_s),
            }
            for fault in outcome.faults
        ],
        "gaps": [
            {"start_s": _rounded(gap.start_s), "end_s": _rounded(gap.end_s), "lost": gap.lost}
            for gap in outcome.gaps
        ],
        "seconds": [
            {
                "second": second.number,
                "sent": len(second.round_trips_ms),
                "answered": second.answered,
                "lost": second.lost,
                "round_trip_ms": _rounded(second.mean_ms),
                "megabits_per_s": second.megabits_per_s,
                "events": [{"at_s": _rounded(event.at_s), "what": event.what} for event in second.events],
            }
            for second in outcome.seconds
        ],
    }


def _rounded(value: float | None) -> float | None:
    """To the millisecond (or microsecond of a round trip): more would be noise."""
    return None if value is None else round(value, 3)


def choose(*, as_json: bool, stream: TextIO | None = None) -> Report:
    """The report that fits where it goes."""
    stream = sys.stdout if stream is None else stream
    if as_json:
        return JsonReport(stream)
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReport(console)
    return PlainReport(stream)
