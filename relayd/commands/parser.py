"""Which commands there are, and the parser of a command line.

The module of a command is loaded only when the command line names it: `relayd --help` loads none.
(argparse, not a library: no prompts, and nothing to load before the first line of help.)
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from importlib import import_module

from relayd import __version__
from relayd.commands.importing import importing

GROUPS = {
    "Run": {
        "serve": "Run a relay.",
        "agent": "Give each peer of a WireGuard interface a path that works.",
    },
    "See": {
        "status": "Show what the relay and the agents on this host are doing.",
        "top": "The same, live, on a terminal.",
        "check": "Look this host over: what would keep an agent from working.",
        "stun": "Show how others reach this host: its NAT, its addresses.",
        "config": "Check a configuration file, or show the values that count.",
        "demo": "Show it at work, in namespaces of its own. Needs root.",
    },
    "Set up and remove": {
        "install-service": "Write systemd's units for relay and agents, or remove them.",
        "cleanup": "Remove from this host what the agent added to it.",
        "completion": "Print what makes bash, zsh or fish complete relayd's words.",
        "man": "Print the manual page (relayd man | man -l -).",
    },
}
"""Heading in the help -> command -> what it does. Each command is a module of `relayd.commands` (- is _)."""

DESCRIPTION = (
    "A working path between every pair of WireGuard nodes: straight UDP where it can be had, through a relay "
    "where it can't."
)

HELP_ALL = "--help-all"

_WIDEST = 100
"""Columns, on any terminal: longer lines are hard to read."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, in fewer lines: explanations start at column 28, `ADDR:PORT ...` says "several" once."""

    def __init__(self, prog: str) -> None:
        width = min(_WIDEST, shutil.get_terminal_size().columns) - 1
        super().__init__(prog, max_help_position=28, width=width)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{action.metavar or default_metavar} ..."
        return super()._format_args(action, default_metavar)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class _Top(argparse.ArgumentParser):
    """Its help is the commands, under their headings."""

    def format_help(self) -> str:
        formatter = Formatter(self.prog)
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        lines = [formatter.format_help()]
        lines.append("\n")
        for heading, commands in GROUPS.items():
            lines.append(f"{heading}:\n")
            lines += [f"  {name:17}{text}\n" for name, text in commands.items()]
        lines.append("\nrelayd COMMAND --help says more; relayd --version says which relayd this is.\n")
        return "".join(lines)


class _Command(argparse.ArgumentParser):
    """One command's. What it doesn't know it says itself: argparse leaves that to the topmost parser, whose
    usage is of no help."""

    def parse_known_args(  # type: ignore[override]  # the standard library's is overloaded
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown[0])}")
        return parsed, unknown

    def _meant(self, word: str) -> str:
        from difflib import get_close_matches  # of use to who makes a mistake

        flag = word.partition("=")[0]
        close = get_close_matches(flag, self._option_string_actions, n=1) if flag.startswith("-") else []
        return f" (did you mean {close[0]}?)" if close else ""


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """For these arguments: with the command that they name; with all, without their flags, if they name none.

    To make a parser takes a millisecond, most of it spent looking for translations.
    """
    parser, commands = _top()
    every = all_commands()
    if arguments and arguments[0] in every:
        name = arguments[0]
        _fill(_add(commands, name, every[name]), name, all_help=HELP_ALL in arguments)
    else:
        for name, text in every.items():
            _add(commands, name, text)
    return parser


def every_command() -> dict[str, argparse.ArgumentParser]:
    """By name, each with all its flags: for the man page and for completion."""
    _, commands = _top()
    parsers = {name: _add(commands, name, text) for name, text in all_commands().items()}
    for name, parser in parsers.items():
        _fill(parser, name, all_help=True)
    return parsers


def all_commands() -> dict[str, str]:
    """Name -> what it does."""
    return {name: text for commands in GROUPS.values() for name, text in commands.items()}


_Commands = argparse._SubParsersAction


def _top() -> tuple[argparse.ArgumentParser, _Commands[argparse.ArgumentParser]]:
    parser = _Top(
        prog="relayd", usage="relayd [-h] [--version] COMMAND ...", description=DESCRIPTION,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"relayd {__version__}")
    return parser, parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=_Command, prog="relayd"
    )


def _add(commands: _Commands[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=text, description=text, allow_abbrev=False, formatter_class=Formatter
    )


def _fill(command: argparse.ArgumentParser, name: str, *, all_help: bool) -> None:
    with importing():
        module = import_module(f"relayd.commands.{name.replace('-', '_')}")
    module.add_arguments(command, all_help=all_help)
    command.set_defaults(run=module.run)
