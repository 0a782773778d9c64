"""The command line: runs a command, and tells of its errors.

Which commands there are, and what their exit statuses mean: `relayd.commands.parser` and `exit_status`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from relayd.commands.exit_status import INTERRUPTED, STDOUT_CLOSED
from relayd.errors import RelaydError, leaves


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status; an error that is ours is one clear line on stderr."""
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    status = 1
    try:
        from relayd.commands.parser import make_parser  # in here, as Ctrl-C may come at any time

        args = make_parser(arguments).parse_args(arguments)
        status = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except* RelaydError as group:
        status = _tell(group)
    except* KeyboardInterrupt:
        status = INTERRUPTED
    except* BrokenPipeError as group:
        if not _stdout_is_closed():
            raise group from None
        status = STDOUT_CLOSED
    return status


# --- errors and streams ---


def _tell(group: BaseExceptionGroup[RelaydError]) -> int:
    """Each error once, a line each. The exit status is the first one's."""
    errors = leaves(group)
    for line in dict.fromkeys(f"relayd: {error}" for error in errors):
        print(" ".join(line.splitlines()), file=sys.stderr)
    return errors[0].exit_status


def _stdout_is_closed() -> bool:
    """Whether nobody reads standard output any more, which is then given up."""
    if sys.stdout is None:
        return False
    import select

    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(mask & (select.POLLERR | select.POLLHUP) for _, mask in poll.poll(0)):
        return False
    from relayd.observe.output import give_up_stdout  # the help doesn't need it, and has 150 ms

    give_up_stdout()
    return True


def _open_standard_streams() -> None:
    """Make sure that descriptors 0 to 2 are taken: or a library's words to stderr may go out by a socket.

    And that every text can be written, whatever the locale: as escapes, where it has no other form.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
