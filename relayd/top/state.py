"""What the person has chosen: the process, the order, the filter, what is on the screen. Pure.

state = state.pressed(key, columns)         columns: what the table has, for the order
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

MAX_FILTER = 60
"""Characters; a key in base64 has 44."""

PAGE = 10
"""Rows that PgUp and PgDn go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopState:
    """One moment of it."""

    process: int = 0
    """Which of the processes is shown, from 0."""

    sort: str = ""
    """Name of the column; "": the role's own."""

    ascending: bool = False
    wanted: str = ""
    """What rows must have in them."""

    typing: bool = False
    """Whether keys go into that."""

    paused: bool = False
    help: bool = False
    first_row: int = 0
    quit: bool = False

    def pressed(self, key: str, columns: Sequence[str], *, processes: int = 1, sort: str = "") -> Self:
        """After a key. `columns` are the names to sort by, `sort` is the one in force."""
        if self.typing:
            return self._typed(key)
        if self.help:
            return replace(self, help=False, quit=key == "q")
        match key:
            case "q":
                return replace(self, quit=True)
            case "?" | "h":
                return replace(self, help=True)
            case "p" | " ":
                return replace(self, paused=not self.paused)
            case "/":
                return replace(self, typing=True)
            case "escape":
                return replace(self, wanted="", first_row=0)
            case "r":
                return replace(self, ascending=not self.ascending)
            case "left" | "<" | "right" | ">" if columns:
                step = 1 if key in ("right", ">") else -1
                at = columns.index(sort) if sort in columns else 0
                return replace(self, sort=columns[(at + step) % len(columns)], first_row=0)
            case "tab" | "backtab":
                step = 1 if key == "tab" else -1
                process = (self.process + step) % max(1, processes)
                return replace(self, process=process, sort="", first_row=0)
        return self._scrolled(key)

    def _scrolled(self, key: str) -> Self:
        rows = {"up": -1, "down": 1, "k": -1, "j": 1, "pageup": -PAGE, "pagedown": PAGE}.get(key, 0)
        if key == "home":
            return replace(self, first_row=0)
        if key == "end":
            return replace(self, first_row=1 << 30)  # the view stops where the rows end
        return replace(self, first_row=max(0, self.first_row + rows)) if rows else self

    def _typed(self, key: str) -> Self:
        match key:
            case "enter":
                return replace(self, typing=False)
            case "escape":
                return replace(self, typing=False, wanted="", first_row=0)
            case "backspace":
                return replace(self, wanted=self.wanted[:-1], first_row=0)
        if len(key) == 1 and len(self.wanted) < MAX_FILTER:
            return replace(self, wanted=self.wanted + key, first_row=0)
        return self
