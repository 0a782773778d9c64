"""`relayd config`: look a configuration over, without running anything."""

from __future__ import annotations

import argparse
import json
import os

from relayd.commands.flags import add_every_setting, given
from relayd.commands.parser import Formatter
from relayd.config.report import Effective, effective, examine, role_of
from relayd.config.setting import ENV_PREFIX, Role
from relayd.config.settings import RELAY, ROLES
from relayd.config.toml import read_document
from relayd.errors import ConfigError

WRONG = ConfigError.exit_status

CHECK = "Tell every mistake of a configuration file, in order of its lines. Exit status 2 when there is one."
SHOW = "Show each value that counts, and whether a flag, a variable, the file or the default gives it."
_WIDEST = 40
"""Columns of a value; a longer one pushes its own line's source to the right, not everybody's."""


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its two actions and their flags."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check", help=CHECK, description=CHECK, allow_abbrev=False, formatter_class=Formatter
    )
    check.add_argument("file", metavar="FILE", help="a relay's or an agent's TOML file")
    check.set_defaults(action=_check)
    show = actions.add_parser(
        "show", help=SHOW, description=SHOW, allow_abbrev=False, formatter_class=Formatter,
        epilog="Takes each flag of `relayd serve` and `relayd agent` too; it counts here as it does there.",
    )  # fmt: skip
    show.add_argument("--config", metavar="FILE", help="the TOML file; else RELAYD_CONFIG's, if any")
    show.set_defaults(action=_show)
    add_every_setting(show, ROLES, all_help=all_help)
    names = [role.name for role in ROLES]
    for one in (check, show):
        one.add_argument("--role", choices=names, help="whose configuration it is, when that isn't clear")
        one.add_argument("--json", action="store_true", help="one line of JSON")


def run(args: argparse.Namespace) -> int:
    """Check or show. The exit status. Raises ConfigError."""
    from relayd.observe.output import printing

    action = args.action
    with printing():
        return int(action(args))


def _check(args: argparse.Namespace) -> int:
    """The file alone: a variable of this shell says nothing about the service that will read it."""
    role = _named(args.role)
    try:
        role = role or role_of(read_document(args.file))
        errors = examine(role, args.file, {}, environ={}).errors
    except ConfigError as unreadable:  # no file, or no TOML: nobody's
        errors = (unreadable,)
    if args.json:
        told = [_error_as_json(error) for error in errors]
        print(json.dumps({"role": role and role.name, "right": not errors, "errors": told}))
    else:
        for error in errors:
            print(" ".join(str(error).splitlines()))
        if role is not None:
            print(f"{args.file}: {_several(len(errors))}, read as {_as_whose(role)}")
    return WRONG if errors else 0


def _show(args: argparse.Namespace) -> int:
    path = args.config or os.environ.get(f"{ENV_PREFIX}CONFIG") or None
    role = _named(args.role) or (role_of(read_document(path)) if path is not None else None)
    if role is None:
        raise ConfigError("neither a file nor a role is named", source="config show", hint="--role relay")
    for other in ROLES:
        own = {one.flag_word for one in role.settings}
        for setting in other.settings:
            if setting.flag_word not in own and getattr(args, setting.flag_word) is not None:
                hint = f"this is {_as_whose(role)}"
                raise ConfigError(f"that is for relayd {other.command}", source=setting.flag, hint=hint)
    examined = examine(role, path, given(args, role), environ=os.environ)
    if examined.errors:
        raise ExceptionGroup("mistakes", list(examined.errors))
    values = list(effective(examined))
    if args.json:
        print(json.dumps({"role": role.name, "values": [_value_as_json(one) for one in values]}))
    else:
        name_width = max(len(one.name) for one in values)
        value_width = min(_WIDEST, max(len(_text(one)) for one in values))
        for one in values:
            at = f":{one.line}" if one.line is not None else ""
            print(f"{one.name:{name_width}}  {_text(one):{value_width}}  {one.source}{at}")
    return 0


def _named(name: str | None) -> Role | None:
    return next((role for role in ROLES if role.name == name), None)


def _as_whose(role: Role) -> str:
    return f"{'a relay' if role is RELAY else 'an agent'}'s (relayd {role.command})"


def _several(count: int) -> str:
    return {0: "no mistakes", 1: "1 mistake"}.get(count, f"{count} mistakes")


def _text(one: Effective) -> str:
    """As TOML has it; `-` for none."""
    return "-" if one.value is None else json.dumps(one.value, ensure_ascii=False)


def _value_as_json(one: Effective) -> dict[str, object]:
    return {"name": one.name, "value": one.value, "source": one.source, "line": one.line}


def _error_as_json(error: ConfigError) -> dict[str, object]:
    return {
        "source": error.source,
        "line": error.line,
        "key": error.key,
        "problem": error.problem,
        "hint": error.hint,
    }
