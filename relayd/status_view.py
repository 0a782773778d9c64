"""What `relayd status` shows a person: tables that fit 80 columns on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from relayd.observe.output import page
from relayd.observe.units import Status, ago, bits, count, duration, milliseconds, rate, size, text

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
            f"on {text(status.get('interface'))}, up {duration(status.get('uptime_s'))}, "
            f"relayd {text(status.get('version'))}",
        )
    )
    console.print(_line(("key   ", "bold"), text(status.get("public_key"))))
    relay = status.get("relay") or {}
    state = text(relay.get("state"))
    parts = [
        f"{state} for {duration(relay['connected_s'])}" if relay.get("connected_s") is not None else state
    ]
    if relay.get("round_trip_ms") is not None:
        parts.append(f"round trip {milliseconds(relay['round_trip_ms'])}")
    if relay.get("dials") is not None:
        parts.append(f"{count(relay['dials'])} dial{'' if relay['dials'] == 1 else 's'}")
    if relay.get("reason"):
        parts.append(f"last fault: {text(relay['reason'])}")
    console.print(
        _line(
            ("relay ", "bold"),
            f"{text(relay.get('address'))}, ",
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
        path = text(peer.get("path"))
        endpoint, why = text(peer.get("endpoint")), text(peer.get("reason"))
        table.add_row(
            text(peer.get("key"))[:8],
            Text(path, _STYLE_OF_PATH.get(path, "")),
            ago(peer.get("handshake_age_s")),
            size(peer.get("rx_bytes")),
            size(peer.get("tx_bytes")),
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
            f"on {', '.join(text(one) for one in now.get('listen') or ['-'])}, "
            f"up {duration(now.get('uptime_s'))}, relayd {text(now.get('version'))}",
        )
    )
    console.print(f"connections {count(now.get('connections'))}")
    for name, way in (("in ", "in"), ("out", "out")):
        line = f"{name} {count(now.get(f'frames_{way}'))} frames, {size(now.get(f'bytes_{way}'))}"
        rates = rate(first, later, f"frames_{way}"), rate(first, later, f"bytes_{way}")
        if rates[0] is not None and rates[1] is not None:
            line += f"; now {count(rates[0])} frames/s, {bits(rates[1] * 8)}"
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
            text(peer.get("key"))[:8],
            text(peer.get("address")),
            duration(peer.get("connected_s")),
            size(peer.get("bytes_in")),
            size(peer.get("bytes_out")),
            size(peer.get("queued_bytes")),
            count(sum((peer.get("drops") or {}).values())),
        )
    console.print(table)
    if rows is not None and len(peers) > rows:
        console.print(f"and {count(len(peers) - rows)} more that carried less (--json lists all)")


def _traffic(peer: Status) -> int:
    return int(peer.get("bytes_in") or 0) + int(peer.get("bytes_out") or 0)


# --- pieces ---


def _print_drops(console: Console, status: Status) -> None:
    drops = {name: lost for name, lost in sorted((status.get("drops") or {}).items()) if lost}
    said = ", ".join(f"{text(name)} {count(lost)}" for name, lost in drops.items())
    console.print(_line(("drops ", "bold"), (said, "yellow") if said else "none"))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=not name.startswith(("ENDPOINT", "ADDRESS", "WHY")))
    return table


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts)
