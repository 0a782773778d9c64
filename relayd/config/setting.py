"""What a setting is, and a role: where its value may come from, and what people are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import msgspec

from relayd.config import kinds
from relayd.config.kinds import Kind
from relayd.config.types import AgentConfig, RelayConfig

ENV_PREFIX = "RELAYD_"
"""Unknown variables are let be: Kubernetes sets RELAYD_PORT and more for a Service named `relayd`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that flags, environment and file can give."""

    table: str
    """In the file."""

    group: str
    """The heading that it has in help texts."""

    name: str
    """Of the field of RelayConfig or AgentConfig."""

    kind: Kind
    help: str
    """What it does, for the one who sets it: no capital, no full stop, no default."""

    key: str = ""
    """In its table, when it isn't the name."""

    word: str = ""
    """`--word` and RELAYD_WORD, when it isn't the name."""

    variables: tuple[str, ...] = ()
    """Other variables that give it, when its own doesn't: those that WireKube's manifests set."""

    default: str = ""
    """What the default is, in words, where the field's own doesn't say it."""

    common: bool = False
    """Named by --help; the others by --help-all and the man page."""

    live: bool = False
    """SIGHUP applies a new value; others wait for a restart."""

    secret: bool = False
    """Never shown."""

    @property
    def path(self) -> tuple[str, str]:
        """Table and key in the file."""
        return (self.table, self.key or self.name)

    @property
    def flag_word(self) -> str:
        """What its flag and its variable are made of."""
        return self.word or self.name

    @property
    def flag(self) -> str:
        return "--" + self.flag_word.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.flag_word.upper()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table that describes a thing, as [interface] does. Only the file has those."""

    kind: Kind
    help: str
    """As of a Setting."""

    required: str = ""
    """What to write where it is missing; "": it has a default."""


@dataclass(frozen=True, slots=True)
class Role:
    """A relay or an agent: what it can be told."""

    name: str
    command: str
    """`relayd COMMAND` runs it."""

    config: type[RelayConfig] | type[AgentConfig]
    settings: tuple[Setting, ...]
    tables: tuple[str, ...] = ()
    """Of its file, beside those of its settings."""

    @property
    def all_tables(self) -> tuple[str, ...]:
        """Of its file."""
        return tuple(dict.fromkeys((*self.tables, *(one.table for one in self.settings))))

    def setting(self, name: str) -> Setting:
        """The one with this name. Raises KeyError when there is none: a bug."""
        for one in self.settings:
            if one.name == name:
                return one
        raise KeyError(name)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """By name, of those settings that have one."""
        return _defaults(self.config)

    def default_text(self, setting: Setting) -> str:
        """The default as help texts say it; "" when there is none to name."""
        if setting.default:
            return setting.default
        match self.defaults.get(setting.name):
            case None:
                return kinds.OFF if setting.kind.metavar.endswith(f"|{kinds.OFF}") else ""
            case bool(value):
                return "yes" if value else "no"
            case float(value):
                return f"{value:g}"
            case tuple(elements):
                return ", ".join(map(str, elements))
            case value:
                return str(value)


@cache
def _defaults(config: type[RelayConfig] | type[AgentConfig]) -> Mapping[str, Any]:
    """Once: msgspec evaluates all annotations to tell the fields, which takes milliseconds."""
    fields = msgspec.structs.fields(config)
    return MappingProxyType({one.name: one.default for one in fields if not one.required})
