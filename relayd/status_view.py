"""What `relayd status` shows a person: tables that fit 80 columns on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from relayd.observe.health import not_ready
from relayd.observe.output import page
from relayd.observe.path_words import round_trips, since_s, tried
from relayd.observe.units import Status, ago, bits, count, delay_ms, duration, milliseconds, rate, size, text

TERMINAL_ROWS = 30
"""Peers of a relay shown on a terminal, the busiest first; elsewhere, and with --json, all of them."""
AGENT_ROWS = 8
"""Likewise peers of an agent, which take four lines or so each: those without a way first."""
WIDE_COLUMNS = 120
"""From here on a peer's reason has a column of its own; below, it stands under the endpoint."""
NARROW_COLUMNS = 64
"""With less there is no table: its last column would have no room for an endpoint."""

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
                wide = not terminal or console.width >= WIDE_COLUMNS
                _print_agent(console, first, wide=wide, rows=AGENT_ROWS if terminal else None)


# --- agent ---


def _print_agent(console: Console, status: Status, *, wide: bool, rows: int | None) -> None:
    console.print(
        _line(
            ("agent ", "bold"),
            f"on {text(status.get('interface'))}, up {duration(status.get('uptime_s'))}, "
            f"relayd {text(status.get('version'))}",
        )
    )
    console.print(_line(("key   ", "bold"), text(status.get("public_key"))))
    for relay in status.get("relays") or [status.get("relay") or {}]:
        _print_link(console, relay, several=len(status.get("relays") or ()) > 1)
    _print_health(console, status, status.get("peers") or ())
    _print_reached(console, status)
    _print_queue(console, {}, status, "the relay")
    _print_drops(console, status)
    _print_http(console, status)
    peers = status.get("peers") or []
    if rows is not None and len(peers) > rows:
        peers = sorted(peers, key=_need)
    if not peers:
        console.print("no peers")
        return
    narrow = not wide and console.width < NARROW_COLUMNS
    table = _table(
        *("PEER", "PATH", *(("SINCE",) if wide else ()), "HANDSHAKE", "RX", "TX"),
        *(("WHY", "ENDPOINT") if wide else ("ENDPOINT, WHY",)),
    )
    for column in (3, 4, 5) if wide else (2, 3, 4):
        table.columns[column].justify = "right"
    for peer in peers[:rows]:
        path = text(peer.get("path"))
        endpoint, why = text(peer.get("endpoint")), text(peer.get("reason"))
        if peer.get("relay_gone"):
            gone = peer["relay_gone"]
            why += f"; relay: it {text(gone.get('reason'))} ({ago(gone.get('age_s'))} ago)"
        paths = peer.get("paths") or {}
        since = duration(since_s(paths))
        more = "; ".join(filter(None, (round_trips(paths), tried(paths))))
        if wide:
            why += f" ({more})" if more else ""
        elif paths:
            why += f"\nfor {since}" + (f"; {more}" if more else "")
        if narrow:
            _print_lines(
                console,
                (text(peer.get("name") or text(peer.get("key"))[:8]), "bold"),
                " ",
                (path, _STYLE_OF_PATH.get(path, "")),
                below=(
                    f"{endpoint}\n{why}",
                    f"handshake {ago(peer.get('handshake_age_s'))}, rx {size(peer.get('rx_bytes'))}, "
                    f"tx {size(peer.get('tx_bytes'))}",
                ),
            )
            continue
        table.add_row(
            text(peer.get("name") or text(peer.get("key"))[:8]),
            Text(path, _STYLE_OF_PATH.get(path, "")),
            *((since,) if wide else ()),
            ago(peer.get("handshake_age_s")),
            size(peer.get("rx_bytes")),
            size(peer.get("tx_bytes")),
            *(
                (why, endpoint)
                if wide
                else (Text.assemble(endpoint, (f"\n{why}", "dim")) if why else endpoint,)
            ),
        )
    if not narrow:
        console.print(table)
    if rows is not None and len(peers) > rows:
        console.print(f"and {count(len(peers) - rows)} more (--json lists all)")


def _print_reached(console: Console, status: Status) -> None:
    """What kind of NAT there is, and where others are told to reach this host."""
    found = status.get("discovery") or {}
    kinds = [
        f"{text(kind)} ({text(version).replace('ipv', 'IPv')})"
        for version, kind in (found.get("nat") or {}).items()
    ]
    if not kinds:
        return
    guess = ", an estimate" if found.get("estimated") else ""
    at = f", reached at {text(found['endpoint'])}{guess}" if found.get("endpoint") else ""
    console.print(_line(("NAT   ", "bold"), f"{', '.join(kinds)}{at}"))


def _need(peer: Status) -> tuple[int, int]:
    """Which peers to show first: those without a way, then those on the relay, then the busiest."""
    order = {"none": 0, "relay": 1}.get(str(peer.get("path")), 2)
    return order, -int(peer.get("rx_bytes") or 0) - int(peer.get("tx_bytes") or 0)


def _print_link(console: Console, relay: Status, *, several: bool) -> None:
    """One relay of an agent's; of `several`, which of them is its home."""
    state = text(relay.get("state"))
    parts = [
        f"{state} for {duration(relay['connected_s'])}" if relay.get("connected_s") is not None else state
    ]
    if relay.get("round_trip_ms") is not None:
        parts.append(f"round trip {milliseconds(relay['round_trip_ms'])}")
    if relay.get("trust"):
        parts.append(f"key {text(relay['trust'])}")
    if relay.get("dials") is not None:
        parts.append(f"{count(relay['dials'])} dial{'' if relay['dials'] == 1 else 's'}")
    if relay.get("draining"):
        parts.append("draining")
    if relay.get("reason"):
        parts.append(f"last fault: {text(relay['reason'])}")
    console.print(
        _line(
            ("home  " if several and relay.get("home") else "relay ", "bold"),
            f"{text(relay.get('address'))}, ",
            (parts[0], _STYLE_OF_STATE.get(state, "dim" if state == "idle" else "red")),
            "".join(f", {part}" for part in parts[1:]),
        )
    )
    if relay.get("health"):
        console.print(_line(("      ", ""), (f"the relay says: {text(relay['health'])}", "yellow")))


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
    _print_agents(console, now)
    _print_health(console, now, ())
    for name, way in (("in    ", "in"), ("out   ", "out")):
        line = f"{count(now.get(f'frames_{way}'))} frames, {size(now.get(f'bytes_{way}'))}"
        rates = rate(first, later, f"frames_{way}"), rate(first, later, f"bytes_{way}")
        if rates[0] is not None and rates[1] is not None:
            line += f"; now {count(rates[0])} frames/s, {bits(rates[1] * 8)}"
        console.print(_line((name, "bold"), line))
    _print_queue(console, first if later else {}, now, "agents")
    _print_drops(console, now)
    _print_http(console, now)
    peers = sorted(now.get("peers") or [], key=_traffic, reverse=True)
    if not peers:
        return
    table = _table("KEY", "ADDRESS", "CONNECTED", "IN", "OUT", "QUEUED", "DROPS")
    for column in range(2, 7):
        table.columns[column].justify = "right"
    narrow = rows is not None and console.width < NARROW_COLUMNS
    for peer in peers[:rows]:
        cells = (
            text(peer.get("key"))[:8],
            text(peer.get("address")),
            duration(peer.get("connected_s")),
            size(peer.get("bytes_in")),
            size(peer.get("bytes_out")),
            size(peer.get("queued_bytes")),
            count(sum((peer.get("drops") or {}).values())),
        )
        if narrow:
            key, address, connected, *figures = cells
            named = zip(("in", "out", "queued", "drops"), figures, strict=True)
            said = ", ".join(f"{name} {figure}" for name, figure in named)
            _print_lines(console, (key, "bold"), f" {address}", below=(f"connected for {connected}", said))
        else:
            table.add_row(*cells)
    if not narrow:
        console.print(table)
    if rows is not None and len(peers) > rows:
        console.print(f"and {count(len(peers) - rows)} more that carried less (--json lists all)")


def _traffic(peer: Status) -> int:
    return int(peer.get("bytes_in") or 0) + int(peer.get("bytes_out") or 0)


def _print_agents(console: Console, now: Status) -> None:
    """Who is connected, who was let in and who wasn't."""
    unproved = sum(not peer.get("proved", True) for peer in now.get("peers") or ())
    line = _line(("agents", "bold"), f" {count(now.get('connections'))} connected")
    if unproved:
        line.append(f" ({count(unproved)} without a proof)", "yellow")
    admitted = sum((now.get("admitted") or {}).values())
    line.append(f", {count(now.get('unregistered'))} on their way in, {count(admitted)} let in")
    refused = {reason: some for reason, some in sorted((now.get("refused") or {}).items()) if some}
    if refused:
        said = ", ".join(f"{text(reason)} {count(some)}" for reason, some in refused.items())
        line.append(f"; refused: {said}", "yellow")
    console.print(line)


# --- pieces ---


def _print_health(console: Console, status: Status, peers: Iterable[Status]) -> None:
    """What keeps it from doing what it is for, in the words of /readyz; nothing when all is well."""
    if not status.get("role"):
        return
    for reason in not_ready(status, peers):
        console.print(_line(("not ready ", "bold red"), (text(reason), "red")))
    if status.get("admission_problem"):
        stays = f"who is let in is as it was: {text(status['admission_problem'])}"
        console.print(_line(("agents ", "bold"), (stays, "yellow")))
    for problem in status.get("host_problems") or ():
        console.print(_line(("host  ", "bold"), (text(problem), "red")))
    if status.get("mesh_problem"):
        waits = f"after a restart only: {text(status['mesh_problem'])}"
        console.print(_line(("mesh  ", "bold"), (waits, "yellow")))
    cluster = status.get("cluster") or {}
    stale = [] if cluster.get("current", True) else ["what is known of it isn't current"]
    for problem in (*stale, *(cluster.get("problems") or ())):
        console.print(_line(("cluster ", "bold"), (text(problem), "yellow")))


def _print_queue(console: Console, before: Status, now: Status, whom: str) -> None:
    """What waits for those who take less than is sent to them; not of processes that don't tell."""
    if now.get("queue_delay") is None:
        return
    queued = now.get("queued_bytes")
    line = _line(("queue ", "bold"), (size(queued), "yellow" if queued else ""), f" for {whom}")
    if now.get("backlogged"):
        line.append(f", {count(now['backlogged'])} of them behind", "yellow")
    waited = delay_ms(before, now, 0.99)
    if waited is not None:
        line.append(f"; of what had to wait, 99 % was sent within {milliseconds(waited)}")
    console.print(line)


def _print_http(console: Console, status: Status) -> None:
    """Where the page is."""
    if status.get("http"):
        console.print(_line(("page  ", "bold"), f"http://{text(status['http'])}/"))


def _print_drops(console: Console, status: Status) -> None:
    drops = {name: lost for name, lost in sorted((status.get("drops") or {}).items()) if lost}
    said = ", ".join(f"{text(name)} {count(lost)}" for name, lost in drops.items())
    console.print(_line(("drops ", "bold"), (said, "yellow") if said else "none"))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=not name.startswith(("ENDPOINT", "ADDRESS", "WHY")))
    return table


def _print_lines(console: Console, *head: str | tuple[str, str], below: Iterable[str]) -> None:
    """One thing without a table: a line, and more of it below."""
    console.print(_line(*head))
    for words in below:
        console.print(Padding(Text(words, "dim"), (0, 0, 0, 2)))


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts)
