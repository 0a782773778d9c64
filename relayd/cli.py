"""The command line: which commands there are, what becomes of their errors, and the exit status.

The module of a command (`relayd.commands`) is loaded when that command runs, so that `relayd --help` and
`relayd status` are quick. (argparse, not a library: no prompts, and nothing to load before the first line of
help.)

Exit statuses: 0 done, or stopped by SIGTERM; 1 failed (of check: found an error); 2 a wrong flag or
configuration, and nothing on the host was changed; 3 the host lacks something; 130 Ctrl-C; 141 standard
output was closed, as by `| head`.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module

from relayd import __version__
from relayd.errors import RelaydError

COMMANDS = {
    "serve": "Run a relay.",
    "agent": "Give each peer of this host's WireGuard interface a path that works.",
    "status": "Show what the relay and the agents on this host are doing.",
    "check": "Look this host over: what stands in the tunnels' way, and what mends it.",
    "config": "Check a configuration file, or show the values that count.",
    "install-service": "Write systemd's units for relay and agents, or remove them.",
    "cleanup": "Remove from this host what the agent added to it.",
    "demo": "Show it at work, in network namespaces of its own. Needs root.",
}
"""Each is a module of `relayd.commands`."""

HELP_ALL = "--help-all"

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
STDOUT_CLOSED = 141  # 128 + SIGPIPE, as of a program that doesn't ignore the signal


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status; an error that is ours is one clear line on stderr."""
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments)
    status = 1
    try:
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


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """For these arguments: of the commands, the one that they name has its flags."""
    parser = argparse.ArgumentParser(
        prog="relayd",
        description="A working path between every pair of WireGuard nodes: straight UDP where it can be had, "
        "through a relay where it can't.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"relayd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if arguments[:1] == [name]:
            module = import_module(f"relayd.commands.{name.replace('-', '_')}")
            module.add_arguments(command, all_help=HELP_ALL in arguments)
            command.set_defaults(run=module.run)
    return parser


# --- errors and streams ---


def _tell(group: BaseExceptionGroup[RelaydError]) -> int:
    """Each error once, a line each. The exit status is the first one's."""
    errors = list(_leaves(group))
    for line in dict.fromkeys(f"relayd: {error}" for error in errors):
        print(" ".join(line.splitlines()), file=sys.stderr)
    return errors[0].exit_status


def _leaves(group: BaseExceptionGroup[RelaydError]) -> list[RelaydError]:
    return [
        leaf
        for one in group.exceptions
        for leaf in (_leaves(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]


def _stdout_is_closed() -> bool:
    """Whether nobody reads standard output any more. What it still holds is then thrown away, so that the
    interpreter's own flush at exit doesn't complain once more."""
    if sys.stdout is None:
        return False
    descriptor = sys.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, 0)
    if not any(mask & (select.POLLERR | select.POLLHUP) for _, mask in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _open_standard_streams() -> None:
    """Make sure that descriptors 0 to 2 are taken: or a library's words to stderr may go out by a socket."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
