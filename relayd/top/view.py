"""The screen: a process's answers and the person's choices in, lines of text out. Pure.

As many lines as the terminal has, none wider than it is. What doesn't fit is cut, the keys last of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from relayd.observe.units import Status, bits, count, delay_ms, duration, milliseconds, per_second, size, text
from relayd.top.columns import DEFAULT_SORT, Column, columns_of
from relayd.top.samples import Samples
from relayd.top.state import TopState

MIN_COLUMNS, MIN_LINES = 40, 8
BARS = "▁▂▃▄▅▆▇█"

WORD_OF_STATE = {"waiting": "away", "dialing": "being dialled", "registering": "greeted"}

HELP = (
    ("←  →  (< >)", "sort by the column before, after"),
    ("r", "reverse the order"),
    ("↑  ↓  PgUp PgDn", "scroll; Home and End"),
    ("/", "show only rows with a text in them; Esc shows all"),
    ("Tab", "the next relay or agent on this host"),
    ("p, space", "pause, go on"),
    ("q, Ctrl-C", "quit"),
)


def sort_of(state: TopState, role: str, columns: Sequence[Column]) -> str:
    """The column in force: what was chosen, if this table has it."""
    names = [one.name for one in columns]
    return state.sort if state.sort in names else DEFAULT_SORT.get(role, names[0])


def screen(
    samples: Sequence[Samples], state: TopState, *, width: int, height: int, now: float, bars: str = BARS
) -> list[Text]:
    """`height` lines of at most `width` characters. `now` is on the clock of Samples.missed; `bars` are what
    the sparklines are made of, "" leaves them out."""
    if width < MIN_COLUMNS or height < MIN_LINES:
        return _fit([Text(f"{MIN_COLUMNS}x{MIN_LINES} at least")], width, height)
    one = samples[state.process % len(samples)]
    if state.help:
        lines = _help()
    else:
        head = _head(one, state, len(samples), width, now, bars)
        lines = head + _table(one, state, width, height - len(head) - 1)
    lines = _fit(lines, width, height - 1)
    return [*lines, _cut(_foot(state), width)]


def _help() -> list[Text]:
    lines = [Text("Keys", "bold"), Text()]
    lines += [Text.assemble((f"  {keys:<18}", "bold"), what) for keys, what in HELP]
    return [*lines, Text(), Text("any key goes back", "dim")]


def _foot(state: TopState) -> Text:
    if state.typing:
        return Text.assemble(
            ("find: ", "bold"), state.wanted, ("█", "dim"), ("   Enter keeps it, Esc shows all", "dim")
        )
    return Text(" q quit   ? help   ← → sort   r reverse   / find   p pause ", "reverse")


# --- above the table ---


def _head(one: Samples, state: TopState, processes: int, width: int, now: float, bars: str) -> list[Text]:
    status = one.now
    title = Text("relayd top", "bold")
    if processes > 1:
        title.append(f"  {state.process % processes + 1} of {processes} (Tab)", "dim")
    if one.silent_since is not None:
        title.append(f"   no answer for {duration(now - one.silent_since)}", "bold red")
        title.append(f"  {text(one.trouble)}", "red")
    elif state.paused:
        title.append("   paused", "bold yellow")
    if state.wanted:
        title.append(f"   only {state.wanted!r} (Esc shows all)", "bold cyan")
    if not status:
        return [title, Text()]
    lines = [title, *(_relay(one, status) if status.get("role") == "relay" else _agent(one, status))]
    room = min(40, width - 46)
    for name, history, frames in (
        ("in ", one.received, one.rate("frames_in")),
        ("out", one.sent, one.rate("frames_out")),
    ):
        line = Text.assemble((f"{name}     ", "bold"), f"{bits(history[-1] if history else None):<13}")
        if "frames_in" in status:
            line.append(f"{count(frames)} frames/s".ljust(18))
        if bars and room > 8:
            line.append(spark(list(history)[-room:], bars), "cyan")
        lines.append(line)
    return [*lines, _drops(one), Text()]


def _relay(one: Samples, status: Status) -> list[Text]:
    behind = status.get("backlogged") or 0
    p99 = delay_ms(one.before, status, 0.99) if one.before else None
    queue = Text.assemble(
        ("queue   ", "bold"),
        (size(status.get("queued_bytes")), "yellow" if status.get("queued_bytes") else ""),
        f", {count(behind)} behind",
        f", 99 % wait up to {milliseconds(p99)}" if p99 is not None else "",
        f"; loop held up {milliseconds(status.get('loop_lag_ms_max'))}",
    )
    refused = one.rate("refused")
    agents = Text.assemble(
        ("agents  ", "bold"),
        f"{count(status.get('connections'))}, {count(status.get('unregistered'))} on their way in, ",
        (f"{per_second(refused)} refused", "yellow" if refused else ""),
    )
    where = f"{', '.join(text(listen) for listen in status.get('listen') or ['-'])}, "
    return [Text.assemble(("relay   ", "bold"), where, _since(status)), agents, queue]


def _agent(one: Samples, status: Status) -> list[Text]:
    relay = status.get("relay") or {}
    state = text(relay.get("state"))
    up = state == "connected"
    trip = relay.get("round_trip_ms")
    link = Text.assemble(
        ("relay   ", "bold"),
        f"{text(relay.get('address'))}, ",
        (
            WORD_OF_STATE.get(text(relay.get("state")), text(relay.get("state"))),
            "green" if up else "bold red",
        ),
        f", round trip {milliseconds(trip)}" if up and trip is not None else "",
        f", {text(relay.get('reason'))}" if not up and relay.get("reason") else "",
    )
    paths = status.get("paths") or {}
    peers = Text.assemble(
        ("peers   ", "bold"),
        (f"{count(paths.get('direct', 0))} direct", "green"),
        ", ",
        (f"{count(paths.get('relay', 0))} by the relay", "yellow"),
    )
    if paths.get("none"):
        peers.append(f", {count(paths['none'])} without a way", "bold red")
    problems = [status["interface_problem"]] if status.get("interface_problem") else []
    problems += status.get("host_problems") or []
    where = Text.assemble(("agent   ", "bold"), f"on {text(status.get('interface'))}, ", _since(status))
    return [where, link, peers, *(Text(f"problem {text(problem)}", "red") for problem in problems[:2])]


def _since(status: Status) -> str:
    return f"up {duration(status.get('uptime_s'))}, relayd {text(status.get('version'))}"


def _drops(one: Samples) -> Text:
    line = Text("drops   ", "bold")
    drops = {reason: total for reason, total in (one.now.get("drops") or {}).items() if total}
    if not drops:
        return line.append("none", "not bold")
    rates = {reason: one.rate("drops", reason) or 0.0 for reason in drops}
    for reason in sorted(drops, key=lambda name: (-rates[name], -drops[name])):
        look = "not bold red" if rates[reason] else "not bold"
        now = f" ({per_second(rates[reason])})" if rates[reason] else ""
        line.append(f"{text(reason)} {count(drops[reason])}{now}  ", look)
    return line


def spark(values: Sequence[float], bars: str) -> str:
    """A line of bars, the highest for the largest."""
    top = max(values, default=0.0)
    if top <= 0:
        return bars[0] * len(values)
    return "".join(bars[min(len(bars) - 1, int(value / top * len(bars)))] for value in values)


# --- the table ---


def _table(one: Samples, state: TopState, width: int, room: int) -> list[Text]:
    role = str(one.now.get("role"))
    columns = columns_of(role, width)
    peers = one.peers()
    total = one.now.get("connections", len(peers)) if role == "relay" else len(peers)
    if not peers:
        return [Text("nobody is connected" if role == "relay" else "no peers", "dim")] if one.now else []
    sort = sort_of(state, role, columns)
    chosen = next(column for column in columns if column.name == sort)
    rows = [peer for peer in peers if _has(peer, state.wanted)]
    rows.sort(key=lambda peer: str(peer.get("key")))
    # The largest number first, names from A: what one looks for.
    rows.sort(key=chosen.order, reverse=(chosen.number or sort == "path") != state.ascending)
    widths = _widths(columns, width)
    lines = [
        _row(
            [column.title + "▾▴"[state.ascending] * (column.name == sort) for column in columns],
            columns,
            widths,
            "bold",
        )
    ]
    more = len(rows) > room - 1
    visible = max(1, room - 1 - more)
    first = min(state.first_row, max(0, len(rows) - visible))
    lines += [
        _row([column.show(peer) for column in columns], columns, widths)
        for peer in rows[first : first + visible]
    ]
    if more or total > len(peers):
        last, of = min(first + visible, len(rows)), len(rows) if state.wanted else total
        lines.append(Text(f"{first + 1} to {last} of {count(of)}", "dim"))
    if not rows:
        lines.append(Text(f"nothing has {state.wanted!r} in it", "dim"))
    return lines


def _has(peer: dict[str, Any], wanted: str) -> bool:
    if not wanted:
        return True
    told = (peer.get(name) for name in ("key", "name", "address", "endpoint", "path", "reason"))
    return any(wanted.lower() in str(value).lower() for value in told if value)


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    taken = sum(one.width + 1 for one in columns)
    return [one.width or max(8, width - taken) for one in columns]


def _row(
    cells: Sequence[str | Text], columns: Sequence[Column], widths: Sequence[int], style: str = ""
) -> Text:
    line = Text(style=style)
    for cell, column, width in zip(cells, columns, widths, strict=True):
        part = _cut(cell.copy() if isinstance(cell, Text) else Text(cell), width)
        part.align("right" if column.number else "left", width)
        line.append_text(part).append(" ")
    line.rstrip()
    return line


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def _fit(lines: list[Text], width: int, height: int) -> list[Text]:
    fitted = [_cut(line, width) for line in lines[:height]]
    return fitted + [Text()] * (height - len(fitted))
