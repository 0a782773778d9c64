"""The log: one line per change of state, on stderr.

Events are named `noun.past_verb` (`link.lost`, `agent.started`), with the facts as keys. Console form with
colours on a terminal, fields of their own in systemd's journal (`observe.journal`), JSON otherwise. Keys,
endpoints and addresses are rendered as text, private keys never. Nothing is logged per packet: packets are
counted, and `Throttle` is for what can repeat.

    logger = log.get(peer=key)
    logger.warning("peer.relayed", reason="no handshake for 180 s")
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections import deque
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO, cast

# structlog imports rich, if it can, for tracebacks that we don't want: they show local variables, and
# a local variable may be a key. And asyncio, for loggers that are awaited, as ours never are. Left out,
# relay and agent are 7 MiB smaller.
_LEFT_OUT = [name for name in ("rich", "asyncio") if name not in sys.modules]
for _name in _LEFT_OUT:
    sys.modules[_name] = cast(Any, None if _name == "rich" else ModuleType(_name))
import structlog  # noqa: E402
from structlog.typing import FilteringBoundLogger, Processor  # noqa: E402

for _name in _LEFT_OUT:
    del sys.modules[_name]

from relayd.observe import journal  # noqa: E402
from relayd.observe.journal import Journal, as_journal  # noqa: E402
from relayd.observe.text import named, plain  # noqa: E402

if TYPE_CHECKING:
    from relayd.config import LogMode

_PIPE_BUF = 4096
"""Linux: a pipe that polls writable takes this much without blocking (pipe(7))."""


def get(**facts: object) -> FilteringBoundLogger:
    """A logger that adds `facts` to every event. Cheap; may be made before `configure()`."""
    return cast(FilteringBoundLogger, structlog.get_logger(**facts))


def configure(mode: LogMode = "auto", *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Set the log up for this process, once at its start. `stream` stands for stderr in tests."""
    sink = (_journal() if mode == "auto" else None) or _Sink(stream if stream is not None else sys.stderr)
    console = mode == "console" or (mode == "auto" and sink.is_terminal)
    renderer: list[Processor]
    if console:
        colours = sink.is_terminal and not os.environ.get("NO_COLOR")
        # Never rich's tracebacks here: they show local variables, and a local variable may be a key.
        renderer = [
            structlog.dev.ConsoleRenderer(
                colors=colours, exception_formatter=structlog.dev.plain_traceback, pad_event_to=24
            )
        ]
    else:
        as_line = as_journal if isinstance(sink, Journal) else _as_json
        renderer = [structlog.processors.format_exc_info, as_line]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _facts_as_text,
            sink.tell_lost_lines,
            structlog.processors.add_log_level,
            _timestamp,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(max(level, logging.WARNING))


def _journal() -> Journal | None:
    """systemd's journal, where standard error leads to it; None elsewhere."""
    if not journal.is_the_journal(os.environ.get(journal.VARIABLE), _fd(sys.stderr)):
        return None
    try:
        return Journal(journal.SOCKET)
    except OSError:  # another mount namespace, say: then it gets lines by the stream
        return None


class Throttle:
    """A logger for events that repeat: one line per event and chosen keys in `every_s` seconds.

    `by` names the facts that tell two occurrences apart. The line after a silence carries `suppressed`, the
    number of those that were left out. `clock` gives monotonic seconds (`trio.current_time`, a test's own).
    `most`: lines in `every_s` seconds, whatever the keys are; for where a stranger chooses them.
    """

    LIMIT = 1024
    """At most so many are told apart; past that the oldest are forgotten: strangers may choose the keys."""

    def __init__(
        self,
        logger: FilteringBoundLogger,
        *,
        every_s: float,
        by: tuple[str, ...],
        clock: Callable[[], float],
        most: int = LIMIT,
    ) -> None:
        self._logger, self._every_s, self._by, self._clock = logger, every_s, by, clock
        self._lines: deque[float] = deque(maxlen=most)
        """When the last ones were written."""
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}  # in order of the last line

    def debug(self, event: str, **facts: object) -> None:
        """As the logger's own, throttled."""
        self._say("debug", event, facts)

    def info(self, event: str, **facts: object) -> None:
        """As the logger's own, throttled."""
        self._say("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """As the logger's own, throttled."""
        self._say("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        """As the logger's own, throttled."""
        self._say("error", event, facts)

    def _say(self, level: str, event: str, facts: dict[str, object]) -> None:
        which = (event, *(facts.get(name) for name in self._by))
        now = self._clock()
        said_at, suppressed = self._seen.get(which, (-float("inf"), 0))
        full = len(self._lines) == self._lines.maxlen and now - self._lines[0] < self._every_s
        if full or now - said_at < self._every_s:
            self._note(which, said_at, suppressed + 1)
            return
        self._seen.pop(which, None)  # to the end: the dict stays in order of the last line
        self._note(which, now, 0)
        self._lines.append(now)
        if suppressed:
            facts = {**facts, "suppressed": suppressed}
        getattr(self._logger, level)(event, **facts)

    def _note(self, which: tuple[object, ...], said_at: float, suppressed: int) -> None:
        self._seen[which] = (said_at, suppressed)
        if len(self._seen) > self.LIMIT:
            del self._seen[next(iter(self._seen))]


class _Sink:
    """Where lines go: a file descriptor that is never waited for.

    A reader of stderr that stands still (a stopped pager, a hung log shipper) must not stop the loop
    that carries packets, and one that went away must not end it: such lines are lost, counted, and the
    next line that gets through says how many.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lost = 0
        self._fd = _fd(stream)
        self.is_terminal = self._fd is not None and os.isatty(self._fd)
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)

    def msg(self, line: str) -> None:
        """Write one line, or count it as lost."""
        if self._fd is None:
            if self._stream is not None:
                self._stream.write(line + "\n")
            return
        rest = memoryview((line + "\n").encode("utf-8", "backslashreplace"))
        try:
            while rest:
                if not self._poll.poll(0):
                    self._lost += 1
                    return
                rest = rest[os.write(self._fd, rest[:_PIPE_BUF]) :]
        except OSError:  # the reader is gone (EPIPE), the disk is full (ENOSPC), the terminal hung up (EIO)
            self._lost += 1

    debug = info = warning = warn = error = critical = fatal = exception = msg

    def tell_lost_lines(self, _logger: object, _name: str, event: MutableMapping[str, Any]) -> Any:
        """Add the number of lines that were lost to the first that follows them."""
        if self._lost and self._fd is not None and self._poll.poll(0):
            event["log_lines_lost"], self._lost = self._lost, 0
        return event


def _fd(stream: TextIO | None) -> int | None:
    try:
        return stream.fileno() if stream is not None else None
    except OSError:  # io.UnsupportedOperation: a StringIO has none
        return None


class _LibraryHandler(logging.Handler):
    """What libraries say through the standard library's logging, as events of this log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        get(library=record.name).log(
            record.levelno, "library.logged", message=record.getMessage(), exc_info=record.exc_info or None
        )


def _facts_as_text(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    keep = ("exc_info", "stack_info")
    return {name: value if name in keep else named(name, value) for name, value in event.items()}


def _timestamp(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _as_json(_logger: object, _name: str, event: MutableMapping[str, Any]) -> str:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event")}
    return json.dumps({**first, **event}, ensure_ascii=False, default=plain)
