"""What `relayd status PEER` and `relayd status PEER --why` show a person: one peer's path, and how it came
to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from relayd.observe.output import page
from relayd.observe.path_words import round_trips, since_s
from relayd.observe.units import ago, count, duration, milliseconds, size, text

Peer = Mapping[str, Any]


def print_peers(
    peers: Sequence[Peer], *, why: bool, file: TextIO | None = None, columns: int | None = None
) -> None:
    """Print each of `peers`, as the agent tells them. `file` and `columns` are for tests."""
    with page(file=file, columns=columns) as (console, _terminal):
        for number, peer in enumerate(peers):
            if number:
                console.print()
            _print_peer(console, peer)
            if why:
                for line in in_words(peer.get("history") or ()):
                    console.print(line, highlight=False, markup=False)
            else:
                _print_candidates(console, (peer.get("paths") or {}).get("candidates") or ())


def _print_peer(console: Console, peer: Peer) -> None:
    paths = peer.get("paths") or {}
    lines = [
        f"peer       {text(peer.get('key'))}" + (f" ({text(peer['name'])})" if peer.get("name") else ""),
        f"path       {text(peer.get('path'))}, by {text(peer.get('endpoint'))}",
        f"why        {text(peer.get('reason'))}",
        f"handshake  {ago(peer.get('handshake_age_s'))}"
        + ("" if peer.get("handshake_age_s") is None else " ago"),
        f"traffic    received {size(peer.get('rx_bytes'))}, sent {size(peer.get('tx_bytes'))}",
    ]
    if paths:
        lines.insert(
            2,
            f"since      {duration(since_s(paths))} ago, {_changes(paths.get('changes'))} of path; "
            f"{text(paths.get('state'))} for {duration(paths.get('since_s'))}",
        )
        lines.append(f"round trip {round_trips(paths) or '-'}")
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _print_candidates(console: Console, candidates: Sequence[Mapping[str, Any]]) -> None:
    if not candidates:
        console.print("no addresses of the peer were tried", highlight=False)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("CANDIDATE", "TYPE", "FOUND BY", "STATE", "ROUND TRIP", "ANSWERED"):
        table.add_column(name, overflow="fold")
    for one in candidates:
        answered = one.get("answered_ago_s")
        table.add_row(
            text(one.get("endpoint")),
            text(one.get("type")),
            text(one.get("found")),
            text(one.get("state")),
            milliseconds(one.get("round_trip_ms")),
            "never" if answered is None else f"{duration(answered)} ago",
        )
    console.print(table)


def _changes(number: int | None) -> str:
    return f"{count(number)} change{'' if number == 1 else 's'}"


def in_words(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each change, the oldest first."""
    if not history:
        return ["nothing has happened yet: the peer's agent hasn't been heard of, or doesn't look for paths"]
    words = {"direct": "direct", "relay": "on the relay", "probing": "looking for a direct path"}
    lines = []
    for one in history:
        endpoint = f" by {text(one.get('endpoint'))}" if one.get("endpoint") else ""
        state = words.get(str(one.get("state")), text(one.get("state")))
        lines.append(f"{duration(one.get('ago_s'))} ago: {state}{endpoint}, because: {text(one.get('why'))}")
    return lines
