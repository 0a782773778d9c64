"""Standard output: pages for a person, what becomes of one that can't be written; and signs of life."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, TextIO

from relayd.errors import RelaydError

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_COLUMNS = 4096
"""Not a terminal: a line is a line, however long, for grep and awk."""


class Page(NamedTuple):
    """Where a view prints."""

    console: Console
    terminal: bool
    """Whether a person reads it there, with so many columns and no more."""


@contextmanager
def page(*, file: TextIO | None = None, columns: int | None = None) -> Iterator[Page]:
    """A page that is written at the end, to standard output; nowhere if that was closed before we began.

    `file` stands for standard output and `columns` for the terminal's width, for tests.
    """
    from rich.console import Console  # a quarter of a second, and not every command prints a page

    stream = file if file is not None else sys.stdout
    terminal = stream is not None and (stream.isatty() or (file is not None and columns is not None))
    width = columns if columns is not None else (None if terminal else PLAIN_COLUMNS)
    console = Console(file=stream, width=width, highlight=False, emoji=False, markup=False)
    # Written by ourselves: rich would make of a closed pipe an exit of its own.
    with console.capture() as captured:
        yield Page(console, terminal)
    if stream is not None:
        stream.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


@contextmanager
def printing() -> Iterator[None]:
    """Around what prints: all of it is written at the end. Raises RelaydError when it can't be.

    A closed pipe passes as what it is.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RelaydError(f"can't write to standard output: {error.strerror}") from error


def at_work(what: str) -> AbstractContextManager[object]:
    """Around what takes seconds: says `what` goes on, on standard error, if that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    has_dots = sys.stderr.encoding.lower().replace("-", "") == "utf8"
    return Console(stderr=True).status(what, spinner="dots" if has_dots else "line")


def give_up_stdout() -> None:
    """Nobody reads standard output any more. What it still holds is thrown away, so that the interpreter's
    own flush at exit doesn't complain once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    finally:
        os.close(null)
