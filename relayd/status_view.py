"""What `relayd status` shows a person: tables that fit 80 columns on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from relayd.observe.output import page
from relayd.observe.text import printable

Status = Mapping[str, Any]

TERMINAL_ROWS = 30
"""Peers of a relay shown on a terminal, the busiest first; elsewhere, and with --json, all of them."""
WIDE_COLUMNS = 120
"""From here on a peer's reason has a column of its own; below, it stands under the endpoint."""

_STYLE_OF_PATH = {"direct": "green", "relay": "yellow", "none": "bold red"}
_STYLE_OF_STATE = {"connected": "green"}


def print_status(
    answers: Sequence[tuple[Status, Status]], *, file: TextIO | None = None, columns: int | None = None
) -> None:
    """Print the (first, later) answers of each process; `later` gives a relay's rates, and may be empty.

    `file` stands for standard output and `columns` for the terminal's width, for tests.
    """
    with page(file=file, columns=columns) as (console, terminal):
        for number, (first, later) in enumerate(answers):
            if number:
                console.print()
            if first.get("role") == "relay":
                _print_relay(console, first, later, rows=TERMINAL_ROWS if terminal else None)
            else:
                _print_agent(console, first, wide=not terminal or console.width >= WIDE_COLUMNS)


# --- agent ---


def _print_agent(console: Console, status: Status, *, wide: bool) -> None:
    console.print(
        _line(
            ("agent ", "bold"),
            f"on {_text(status.get('interface'))}, up {_duration(status.get('uptime_s'))}, "
            f"relayd {_text(status.get('version'))}",
        )
    )
    console.print(_line(("key   ", "bold"), _text(status.get("public_key"))))
    relay = status.get("relay") or {}
    state = _text(relay.get("state"))
    parts = [
        f"{state} for {_duration(relay['connected_s'])}" if relay.get("connected_s") is not None else state
    ]
    if relay.get("round_trip_ms") is not None:
        parts.append(f"round trip {_milliseconds(relay['round_trip_ms'])}")
    if relay.get("dials") is not None:
        parts.append(f"{_count(relay['dials'])} dial{'' if relay['dials'] == 1 else 's'}")
    if relay.get("reason"):
        parts.append(f"last fault: {_text(relay['reason'])}")
    console.print(
        _line(
            ("relay ", "bold"),
            f"{_text(relay.get('address'))}, ",
            (parts[0], _STYLE_OF_STATE.get(state, "red")),
            "".join(f", {part}" for part in parts[1:]),
        )
    )
    _print_drops(console, status)
    peers = status.get("peers") or []
    if not peers:
        console.print("no peers")
        return
    table = _table(
        "PEER", "PATH", "HANDSHAKE", "RX", "TX", *(("WHY", "ENDPOINT") if wide else ("ENDPOINT, WHY",))
    )
    for column in (2, 3, 4):
        table.columns[column].justify = "right"
    for peer in peers:
        path = _text(peer.get("path"))
        endpoint, why = _text(peer.get("endpoint")), _text(peer.get("reason"))
        table.add_row(
            _text(peer.get("key"))[:8],
            Text(path, _STYLE_OF_PATH.get(path, "")),
            _ago(peer.get("handshake_age_s")),
            _bytes(peer.get("rx_bytes")),
            _bytes(peer.get("tx_bytes")),
            *(
                (why, endpoint)
                if wide
                else (Text.assemble(endpoint, (f"\n{why}", "dim")) if why else endpoint,)
            ),
        )
    console.print(table)


# --- relay ---


def _print_relay(console: Console, first: Status, later: Status, *, rows: int | None) -> None:
    now = later or first
    console.print(
        _line(
            ("relay ", "bold"),
            f"on {', '.join(_text(one) for one in now.get('listen') or ['-'])}, "
            f"up {_duration(now.get('uptime_s'))}, relayd {_text(now.get('version'))}",
        )
    )
    console.print(f"connections {_count(now.get('connections'))}")
    for name, way in (("in ", "in"), ("out", "out")):
        line = f"{name} {_count(now.get(f'frames_{way}'))} frames, {_bytes(now.get(f'bytes_{way}'))}"
        rates = _rate(first, later, f"frames_{way}"), _rate(first, later, f"bytes_{way}")
        if rates[0] is not None and rates[1] is not None:
            line += f"; now {_count(rates[0])} frames/s, {_bits(rates[1] * 8)}"
        console.print(line)
    _print_drops(console, now)
    peers = sorted(now.get("peers") or [], key=_traffic, reverse=True)
    if not peers:
        return
    table = _table("KEY", "ADDRESS", "CONNECTED", "IN", "OUT", "QUEUED", "DROPS")
    for column in range(2, 7):
        table.columns[column].justify = "right"
    for peer in peers[:rows]:
        table.add_row(
            _text(peer.get("key"))[:8],
            _text(peer.get("address")),
            _duration(peer.get("connected_s")),
            _bytes(peer.get("bytes_in")),
            _bytes(peer.get("bytes_out")),
            _bytes(peer.get("queued_bytes")),
            _count(sum((peer.get("drops") or {}).values())),
        )
    console.print(table)
    if rows is not None and len(peers) > rows:
        console.print(f"and {_count(len(peers) - rows)} more that carried less (--json lists all)")


def _traffic(peer: Status) -> int:
    return int(peer.get("bytes_in") or 0) + int(peer.get("bytes_out") or 0)


def _rate(first: Status, later: Status, name: str) -> float | None:
    """Per second between the two answers, by the relay's own clock; None when there is no second one."""
    if not later:
        return None
    seconds = later.get("uptime_s", 0) - first.get("uptime_s", 0)
    # A restart in between: nothing to compare.
    return (later.get(name, 0) - first.get(name, 0)) / seconds if seconds > 0 else None


# --- pieces ---


def _print_drops(console: Console, status: Status) -> None:
    drops = {name: count for name, count in sorted((status.get("drops") or {}).items()) if count}
    said = ", ".join(f"{_text(name)} {_count(count)}" for name, count in drops.items())
    console.print(_line(("drops ", "bold"), (said, "yellow") if said else "none"))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=not name.startswith(("ENDPOINT", "ADDRESS", "WHY")))
    return table


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts)


def _text(value: object) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _bytes(value: float | None) -> str:
    """In binary units, as `wg show` has them: 1.5 MiB."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _bits(value: float) -> str:
    """A rate, in decimal units as networks have it: 1.5 Mbit/s."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bit/s" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} Gbit/s"


def _duration(seconds: float | None) -> str:
    """Two units at most: 42 s, 5 min 3 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    for big, big_name, small, small_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {big_name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError("a minute is the smallest of them")


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else _duration(seconds)


def _milliseconds(value: float) -> str:
    return f"{value:.2g} ms" if value < 10 else f"{value:,.0f} ms"
