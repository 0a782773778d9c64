"""Figures as a person reads them: `relayd status`, `relayd top`; the page's format.js writes them alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relayd.observe.text import printable

Status = Mapping[str, Any]
"""A process's answer, as far as it can be trusted: what is missing is shown as `-`."""


def text(value: object) -> str:
    """`value` as text that can't move a cursor; `-` for nothing."""
    return "-" if value is None or value == "" else printable(str(value))


def count(value: float | None) -> str:
    """1,234"""
    return "-" if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in binary units, as `wg show` has them: 1.5 MiB."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def bits(value: float | None) -> str:
    """A rate in bits a second, in decimal units as networks have it: 1.5 Mbit/s."""
    if value is None:
        return "-"
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bit/s" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} Gbit/s"


def compact(value: float | None, base: int = 1000) -> str:
    """For narrow columns: 536M, 1.5k; `base` 1024: 68K."""
    if value is None:
        return "-"
    letters = ("", "k" if base == 1000 else "K", "M", "G", "T")
    at = 0
    while value >= base and at < len(letters) - 1:
        value /= base
        at += 1
    return f"{value:.1f}{letters[at]}" if at and value < 10 else f"{value:.0f}{letters[at]}"


def brief(seconds: float | None) -> str:
    """A duration in its largest unit: 42 s, 59 min, 23 h, 3 d."""
    if seconds is None:
        return "-"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds:.0f} s"


def per_second(value: float | None) -> str:
    """9.0/s"""
    if value is None:
        return "-"
    return f"{value:.1f}/s" if 0 < value < 10 else f"{value:,.0f}/s"


def duration(seconds: float | None) -> str:
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


def ago(seconds: float | None) -> str:
    """The same for what may never have been."""
    return "never" if seconds is None else duration(seconds)


def milliseconds(value: float | None) -> str:
    """1.2 ms, 41 ms"""
    if value is None:
        return "-"
    return f"{value:.2g} ms" if value < 10 else f"{value:,.0f} ms"


# --- between two answers of one process ---


def rate(first: Status, later: Status, *path: str) -> float | None:
    """What a counter gained a second, by the process's own clock; None: nothing to compare with."""
    if not first or not later:
        return None
    seconds = later.get("uptime_s", 0) - first.get("uptime_s", 0)
    if seconds <= 0:  # a restart in between
        return None
    return max(0.0, (_figure(later, path) - _figure(first, path)) / float(seconds))


def _figure(status: Status, path: tuple[str, ...]) -> float:
    value: Any = status
    for part in path:
        value = value.get(part) or {} if isinstance(value, Mapping) else 0
    if isinstance(value, Mapping):
        return float(sum(value.values()))
    return float(value)


def delay_ms(first: Status, later: Status, share: float) -> float | None:
    """The waiting time that `share` of the frames didn't exceed that waited meanwhile; None: none did.

    The upper bound of a bucket (`netio.delays`), the last bound for what is beyond. Without a first answer:
    since the process began.
    """
    now = later.get("queue_delay") or {}
    frames = list(now.get("frames") or ())
    before = (first.get("queue_delay") or {}).get("frames") or ()
    if before and later.get("uptime_s", 0) > first.get("uptime_s", 0):
        frames = [new - old for new, old in zip(frames, before, strict=False)]
    total = sum(frames)
    if total <= 0:
        return None
    seen = 0
    bounds = now["bounds_ms"]
    for index, some in enumerate(frames):
        seen += some
        if seen >= share * total:
            return float(bounds[min(index, len(bounds) - 1)])
    return None
