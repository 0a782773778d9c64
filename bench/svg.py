"""Small plots as SVG, written by hand: they need no library, and open in any browser. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 48, 56
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#525252")


@dataclass(frozen=True, slots=True)
class Series:
    """A named line; points are (x, y), with y above 0."""

    name: str
    points: Sequence[tuple[float, float]]


def _document(title: str, parts: list[str], height: int = HEIGHT) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="system-ui, sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            _text(LEFT, 22, title, size=15),
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#111">'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def percentile_place(percent: float) -> float:
    """Where a percentile stands on the axis: each further nine takes as much room as the one before.

    0 for 0 %, 1 for 90 %, 2 for 99 %, 3 for 99.9 %, 4 for 99.99 % and above.
    """
    return min(-log10(max(1 - percent / 100, 1e-4)), 4.0)


def latency_plot(title: str, series: Sequence[Series]) -> str:
    """Latency in microseconds (logarithmic) by percentile; points are (percent, microseconds)."""
    values = [max(y, 1.0) for one in series for _, y in one.points]
    low = floor(log10(min(values))) if values else 0
    high = floor(log10(max(values))) + 1 if values else 3
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(percent: float, value: float) -> tuple[float, float]:
        share = (log10(max(value, 1.0)) - low) / (high - low)
        return LEFT + percentile_place(percent) / 4 * plot_width, TOP + (1 - share) * plot_height

    parts: list[str] = []
    for exponent in range(low, high + 1):
        _, y = place(0, 10.0**exponent)
        parts += [
            _line(LEFT, y, WIDTH - RIGHT, y),
            _text(LEFT - 8, y + 4, f"{10**exponent:,} µs", anchor="end"),
        ]
    for percent in (0.0, 50.0, 90.0, 99.0, 99.9, 99.99):
        x, _ = place(percent, 1.0)
        parts += [
            _line(x, TOP, x, HEIGHT - BOTTOM),
            _text(x, HEIGHT - BOTTOM + 18, f"{percent:g} %", anchor="middle"),
        ]
    for i, one in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in one.points)
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            _text(LEFT + 18, TOP + 16 + 17 * i, one.name),
            f'<rect x="{LEFT + 4}" y="{TOP + 7 + 17 * i}" width="10" height="10" fill="{colour}"/>',
        ]
    return _document(title, parts)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its length counts in goals (1.0 is the goal); `text` says the figure itself."""

    name: str
    share: float
    text: str
    good: bool


def goal_plot(title: str, bars: Sequence[Bar]) -> str:
    """How far each goal was reached; the line is the goal. What is beyond 3 is cut off, and says so."""
    name_width, row = 290, 26
    height = TOP + row * len(bars) + 20
    plot_width = WIDTH - name_width - 130
    parts: list[str] = []
    for i, bar in enumerate(bars):
        y = TOP + row * i
        length = min(bar.share, 3.0) / 3 * plot_width
        colour = "#059669" if bar.good else "#dc2626"
        parts += [
            _text(name_width - 8, y + 16, bar.name, anchor="end"),
            f'<rect x="{name_width}" y="{y + 4}" width="{length:.1f}" height="16" fill="{colour}"/>',
            _text(name_width + length + 6, y + 16, bar.text + (" >>" if bar.share > 3 else "")),
        ]
    x = name_width + plot_width / 3
    parts.append(_line(x, TOP - 6, x, height - 12, "#111"))
    return _document(title, parts, height)
