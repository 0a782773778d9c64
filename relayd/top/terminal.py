"""The terminal: taken over whole, drawn on, and given back as it was, however we leave.

Standard input gives keys one by one, the screen is the alternate one (so that what was there comes back), and
the cursor is hidden. Signals stay the terminal's: Ctrl-C interrupts, Ctrl-Z stops.
"""

from __future__ import annotations

import io
import os
import sys
import termios
import tty
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import trio
from rich.console import Console
from rich.text import Text

from relayd.errors import RelaydError
from relayd.top.keys import keys_of

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_CAN_NOT_MOVE = ("", "dumb", "unknown")
READ_BYTES = 256
WIDEST = 10_000
"""Columns: lines are cut before."""


class Terminal:
    """Standard input and output, which are one terminal."""

    def __init__(self) -> None:
        """Raises RelaydError when there is no terminal, or one that can't move its cursor."""
        instead = "`relayd status` prints the same once, `relayd status --json` for programs"
        if sys.stdin is None or sys.stdout is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise RelaydError(f"relayd top needs a terminal on standard input and output; {instead}")
        if os.environ.get("TERM", "") in _CAN_NOT_MOVE:
            kind = os.environ.get("TERM") or "not set"
            raise RelaydError(
                f"relayd top needs a terminal that can move its cursor (TERM is {kind}); {instead}"
            )
        self._input, self._output = sys.stdin.fileno(), sys.stdout.fileno()
        self._before: list[object] | None = None
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        self.unicode = encoding == "utf8"
        """Whether it shows more than ASCII."""

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def take(self) -> None:
        """Take it over."""
        self._before = termios.tcgetattr(self._input)
        tty.setcbreak(self._input, termios.TCSADRAIN)
        self._write(_ENTER)

    def give_back(self) -> None:
        """Leave it as it was found. Once is enough."""
        if self._before is None:
            return
        before, self._before = self._before, None
        try:
            self._write(_LEAVE)
            termios.tcsetattr(self._input, termios.TCSADRAIN, before)  # type: ignore[arg-type]
        except (OSError, termios.error):
            pass  # it is gone: its other end was closed, and nobody sees how it looks

    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        columns, lines = os.get_terminal_size(self._output)
        return columns or 80, lines or 24  # 0: a serial line that doesn't know

    async def keys(self) -> list[str]:
        """What was pressed next. Raises EOFError when the terminal is gone."""
        await trio.lowlevel.wait_readable(self._input)
        try:
            data = os.read(self._input, READ_BYTES)
        except OSError as error:  # EIO: its other end was closed
            raise EOFError from error
        if not data:
            raise EOFError
        return keys_of(data)

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines, from the top; as many as the terminal has. Raises EOFError when it is gone."""
        page = io.StringIO()
        console = Console(
            file=page,
            force_terminal=True,
            width=1000,
            highlight=False,
            emoji=False,
            markup=False,
            soft_wrap=True,
        )
        for number, line in enumerate(lines):
            console.print(line, end="", overflow="ignore", crop=False, no_wrap=True)
            page.write("\x1b[K" + ("\r\n" if number < len(lines) - 1 else ""))
        text = page.getvalue()
        if not self.unicode:
            text = text.translate(_ASCII).encode("ascii", "replace").decode()
        # One write with the cursor at home: no flicker, and lines that shrank are cleared to their ends.
        try:
            self._write(f"\x1b[H{text}\x1b[J")
        except OSError as error:
            raise EOFError from error

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._output, data) :]


_ASCII = str.maketrans({"…": "~", "▾": "v", "▴": "^", "←": "<", "→": ">", "↑": "^", "↓": "v", "█": "_"})
