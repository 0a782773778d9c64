"""All words of the command line as plain values, for the man page and for completion."""

from __future__ import annotations

import argparse

from relayd.commands.parser import Formatter, every_command
from relayd.commands.words import Command, Option


def catalog() -> tuple[Command, ...]:
    """All commands, in the help's order."""
    return tuple(_command((name,), "", parser) for name, parser in every_command().items())


def _command(words: tuple[str, ...], summary: str, parser: argparse.ArgumentParser) -> Command:
    options: list[Option] = []
    actions: list[Command] = []
    for group in parser._action_groups:  # argparse tells nobody else
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                told = {one.dest: one.help or "" for one in action._get_subactions()}
                actions += [_command((*words, name), told[name], one) for name, one in action.choices.items()]
            elif action.help != argparse.SUPPRESS:
                options.append(_option(action, group.title or ""))
    description = parser.description or ""
    return Command(
        words, summary or description, description, parser.epilog or "", tuple(options), tuple(actions)
    )


def _option(action: argparse.Action, group: str) -> Option:
    flag_alone = action.nargs == 0
    value = "" if flag_alone else str(action.metavar or (action.dest.upper() if not action.choices else ""))
    several = action.nargs in (argparse.ONE_OR_MORE, argparse.ZERO_OR_MORE)
    optional = action.nargs in (argparse.OPTIONAL, argparse.ZERO_OR_MORE)
    choices = tuple(map(str, action.choices or ()))
    if not choices and "|" in value:
        choices = tuple(word for word in value.split("|") if word.islower())
    if not value and choices:
        value = "|".join(choices)
    help_text = Formatter("relayd")._expand_help(action)
    return Option(tuple(action.option_strings), value, help_text, group, choices, several, optional)
