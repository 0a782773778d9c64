"""`relayd top`, put together: one task asks each process, one listens to keys, and one alone draws."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Any

import trio

from relayd.errors import RelaydError
from relayd.observe import control
from relayd.status import sockets
from relayd.top.columns import columns_of
from relayd.top.samples import Samples
from relayd.top.state import TopState
from relayd.top.terminal import Terminal
from relayd.top.view import BARS, screen, sort_of

EVERY_S = 2.0
"""Between two questions to each process."""

ASK_S = 2.0
"""For an answer; a process that is stopped gives none."""


def run_top(path: str | None, *, directory: str) -> int:
    """Show the process at the socket `path`, or all in `directory`, until `q`. The exit status.

    Raises RelaydError when there is no terminal for it, or nothing to show.
    """
    terminal = Terminal()
    paths = [path] if path is not None else sockets(directory)
    top = _Top(terminal, [Samples(one) for one in paths])
    with terminal:
        return trio.run(top.run)


@dataclass
class _Top:
    terminal: Terminal
    samples: list[Samples]
    state: TopState = field(default_factory=TopState)
    status: int = 0
    """The exit status."""
    _changed: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_signals, nursery.cancel_scope)
            nursery.start_soon(self._listen, nursery.cancel_scope)
            for one in self.samples:
                nursery.start_soon(self._ask, one)
            await self._draw(nursery.cancel_scope)
        return self.status

    def _say_changed(self) -> None:
        self._changed.set()

    async def _draw(self, scope: trio.CancelScope) -> None:
        """Whenever something changed, and once a second for the clock of a silence."""
        while True:
            width, height = self.terminal.size()
            bars = BARS if self.terminal.unicode else ""
            lines = screen(
                self.samples, self.state, width=width, height=height, now=trio.current_time(), bars=bars
            )
            try:
                self.terminal.draw(lines)
            except EOFError:
                scope.cancel()
            self._changed = trio.Event()
            with trio.move_on_after(1.0):
                await self._changed.wait()

    async def _listen(self, scope: trio.CancelScope) -> None:
        while True:
            try:
                keys = await self.terminal.keys()
            except EOFError:
                scope.cancel()
                return
            for key in keys:
                self._press(key)
            if self.state.quit:
                scope.cancel()
            self._say_changed()

    def _press(self, key: str) -> None:
        one = self.samples[self.state.process % len(self.samples)]
        role = str(one.now.get("role"))
        columns = columns_of(role, self.terminal.size()[0])
        self.state = self.state.pressed(
            key,
            [column.name for column in columns],
            processes=len(self.samples),
            sort=sort_of(self.state, role, columns),
        )

    async def _ask(self, one: Samples) -> None:
        """Ask one process for ever. All its peers when some are looked for, else the busiest."""
        while True:
            if not self.state.paused:
                try:
                    one.heard(await self._answer(one))
                except RelaydError as error:
                    one.missed(str(error), trio.current_time())
                self._say_changed()
            await trio.sleep(EVERY_S)

    async def _answer(self, one: Samples) -> dict[str, Any]:
        return await control.ask(one.path, "status" if self.state.wanted else "busiest", timeout_s=ASK_S)

    async def _watch_signals(self, scope: trio.CancelScope) -> None:
        """The terminal's size, Ctrl-Z and coming back from it, and being asked to end."""
        watched = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT, signal.SIGTERM, signal.SIGHUP)
        with trio.open_signal_receiver(*watched) as signals:
            async for number in signals:
                if number in (signal.SIGTERM, signal.SIGHUP):
                    self.status = 0 if number == signal.SIGTERM else 128 + number
                    scope.cancel()
                    return
                if number == signal.SIGTSTP:
                    self.terminal.give_back()
                    os.kill(os.getpid(), signal.SIGSTOP)
                    self.terminal.take()
                self._say_changed()
