"""Flags of a command from the table of settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from relayd.config.setting import Role, Setting

EVERY_SETTING = "settings"
"""The heading of `add_every_setting`'s flags."""


HOSTS_INTERFACE = "the WireGuard interface (default: the only one, or the agent's)"
"""Of commands that take `commands.host_config`."""

_LINE = 50
"""Characters of explanation beside a flag, on a screen of 80 columns."""


def add_settings(
    parser: argparse.ArgumentParser,
    role: Role,
    names: Sequence[str] = (),
    *,
    all_help: bool = False,
    interface: str = "",
) -> None:
    """The flags of `role`'s settings.

    All of them, uncommon ones and long defaults left out of the help, which so fits a screen; or just those
    with `names`. `all_help`: nothing is left out, and they have their groups' headings, for --help-all,
    the man page and completion. `interface` is what to say of --interface instead of what an agent says.
    """
    if not names:
        parser.usage = f"{parser.prog} [OPTIONS]"
        parser.add_argument("--help-all", action="help", help="name the uncommon flags too")
    groups: dict[str, Any] = {}
    for setting in role.settings if not names else map(role.setting, names):
        group = groups.get(setting.group, parser)
        if all_help and group is parser:
            group = groups[setting.group] = parser.add_argument_group(setting.group)
        text = argparse.SUPPRESS
        if all_help or setting.common or names:
            text = _help(role, setting, None if all_help else _LINE)
        _add(group, setting, interface if interface and setting.name == "interface" else text)


def add_every_setting(
    parser: argparse.ArgumentParser, roles: Sequence[Role], *, all_help: bool = False
) -> None:
    """The flags of several roles, each once; in the help only for `all_help`.

    Flags that roles share have one kind.
    """
    added, group = set(), parser.add_argument_group(EVERY_SETTING)
    for role in roles:
        for setting in role.settings:
            if setting.flag not in added:
                added.add(setting.flag)
                _add(group, setting, _help(role, setting) if all_help else argparse.SUPPRESS)


def add_file(parser: argparse.ArgumentParser) -> None:
    """--config."""
    parser.add_argument("--config", metavar="FILE", help="a TOML file; flags and variables win over it")


def given(args: argparse.Namespace, role: Role, names: Sequence[str] = ()) -> dict[str, object]:
    """What these flags say, by word, as `relayd.config` takes it."""
    settings = role.settings if not names else [role.setting(name) for name in names]
    return {one.flag_word: getattr(args, one.flag_word) for one in settings}


def _help(role: Role, setting: Setting, most: int | None = None) -> str:
    """What it does, and its default; without that where it would be longer than `most` characters."""
    default = role.default_text(setting)
    said = f"{setting.help} (default {default})" if default else setting.help
    if most is not None and len(said) > most:
        said = setting.help
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
