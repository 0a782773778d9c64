"""Flags of a command from the table of settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from relayd.config.settings import Role, Setting


def add_settings(
    parser: argparse.ArgumentParser, role: Role, names: Sequence[str] = (), *, all_help: bool = False
) -> None:
    """The flags of `role`'s settings, under their groups' headings.

    All of them, the uncommon ones left out of the help; or just those with `names`, all in the help.
    `all_help`: none is left out, for --help-all, the man page and completion.
    """
    if not names:
        parser.add_argument("--help-all", action="help", help="name the uncommon settings too")
    groups: dict[str, Any] = {}
    for setting in role.settings if not names else map(role.setting, names):
        group = groups.get(setting.group)
        if group is None:
            group = groups[setting.group] = parser.add_argument_group(setting.group)
        shown = all_help or setting.common or bool(names)
        _add(group, setting, _help(role, setting) if shown else argparse.SUPPRESS)


def add_every_setting(parser: argparse.ArgumentParser, roles: Sequence[Role]) -> None:
    """The flags of several roles, each once, none in the help. Flags that roles share have one kind."""
    added = set()
    for role in roles:
        for setting in role.settings:
            if setting.flag not in added:
                added.add(setting.flag)
                _add(parser, setting, argparse.SUPPRESS)


def add_file(parser: argparse.ArgumentParser) -> None:
    """--config."""
    parser.add_argument("--config", metavar="FILE", help="a TOML file; flags and variables win over it")


def given(args: argparse.Namespace, role: Role, names: Sequence[str] = ()) -> dict[str, object]:
    """What these flags say, by word, as `relayd.config` takes it."""
    settings = role.settings if not names else [role.setting(name) for name in names]
    return {one.flag_word: getattr(args, one.flag_word) for one in settings}


def _help(role: Role, setting: Setting) -> str:
    default = role.default_text(setting)
    said = f"{setting.help} (default {default})" if default else setting.help
    return said.replace("%", "%%")


def _add(group: Any, setting: Setting, text: str) -> None:
    if setting.kind.switch:
        group.add_argument(
            setting.flag, dest=setting.flag_word, action=argparse.BooleanOptionalAction, help=text
        )
    elif setting.kind.several:
        group.add_argument(
            setting.flag, dest=setting.flag_word, metavar=setting.kind.metavar, nargs="+", action="extend",
            help=text,
        )  # fmt: skip
    else:
        metavar = "|".join(setting.kind.choices) or setting.kind.metavar
        group.add_argument(setting.flag, dest=setting.flag_word, metavar=metavar, help=text)
