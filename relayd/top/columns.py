"""The tables of `relayd top`: what each column shows, and by what it is sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from relayd.observe.units import Status, brief, compact, count, milliseconds, size, text

STYLE_OF_PATH = {"direct": "green", "relay": "yellow", "none": "bold red"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `width` is in characters; 0: what is left over."""

    name: str
    title: str
    show: Callable[[Status], str | Text]
    order: Callable[[Status], Any]
    width: int = 0
    number: bool = False
    wide: int = 0
    """Only on terminals with so many columns."""


def _drops(peer: Status) -> int:
    return sum((peer.get("drops") or {}).values())


def _number(name: str) -> Callable[[Status], float]:
    return lambda peer: peer.get(name) or 0


def _path(peer: Status) -> Text:
    path = text(peer.get("path"))
    return Text("no way" if path == "none" else path, STYLE_OF_PATH.get(path, ""))


def _path_order(peer: Status) -> int:
    return {"direct": 0, "relay": 1, "none": 2}.get(str(peer.get("path")), 3)


def _dropped(peer: Status) -> Text:
    return Text(count(_drops(peer)), "yellow" if _drops(peer) else "")


def _queued(peer: Status) -> Text:
    queued = peer.get("queued_bytes")
    return Text(compact(queued, 1024), "yellow" if queued else "")


def _peer_name(peer: Status) -> str:
    return text(peer.get("name") or text(peer.get("key"))[:8])


def _rate(name: str) -> Callable[[Status], str]:
    return lambda peer: compact(peer.get(name))


def _age(peer: Status) -> str:
    age_s = peer.get("handshake_age_s")
    return "never" if age_s is None else brief(age_s)


def _age_order(peer: Status) -> float:
    age_s = peer.get("handshake_age_s")
    return float("inf") if age_s is None else float(age_s)


_IN = Column("in", "IN bit/s", _rate("in_rate"), _number("in_rate"), 9, number=True)
_OUT = Column("out", "OUT bit/s", _rate("out_rate"), _number("out_rate"), 10, number=True)

RELAY = (
    Column("key", "KEY", lambda p: text(p.get("key"))[:8], lambda p: str(p.get("key")), 8),
    Column("address", "ADDRESS", lambda p: text(p.get("address")), lambda p: str(p.get("address"))),
    Column("for", "FOR", lambda p: brief(p.get("connected_s")), _number("connected_s"), 6, number=True),
    _IN,
    _OUT,
    Column(
        "total",
        "TOTAL OUT",
        lambda p: size(p.get("bytes_out")),
        _number("bytes_out"),
        11,
        number=True,
        wide=100,
    ),
    Column("queued", "QUEUED", _queued, _number("queued_bytes"), 8, number=True),
    Column("drops", "DROPS", _dropped, _drops, 7, number=True),
)

AGENT = (
    Column("peer", "PEER", _peer_name, _peer_name, 12),
    Column("path", "PATH", _path, _path_order, 7),
    Column("endpoint", "ENDPOINT", lambda p: text(p.get("endpoint")), lambda p: str(p.get("endpoint"))),
    Column("why", "WHY", lambda p: text(p.get("reason")), lambda p: str(p.get("reason")), 26, wide=110),
    Column(
        "rtt", "RTT", lambda p: milliseconds(p.get("round_trip_ms")), _number("round_trip_ms"), 7, number=True
    ),
    Column("age", "SHAKE", _age, _age_order, 7, number=True),
    _IN,
    _OUT,
)

DEFAULT_SORT = {"relay": "out", "agent": "path"}


def columns_of(role: str, width: int) -> tuple[Column, ...]:
    """The columns of a role's table that a terminal of `width` characters has room for."""
    return tuple(one for one in (RELAY if role == "relay" else AGENT) if width >= one.wide)
