"""What a new configuration changes: what can be applied to a process that runs, and what needs a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from relayd.config.setting import Role
from relayd.config.types import AgentConfig, RelayConfig

Config = TypeVar("Config", RelayConfig, AgentConfig)


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of the fields that differ, in the table's order."""

    live: tuple[str, ...]
    """The process takes these over."""

    restart: tuple[str, ...]
    """These are as they were until the next start."""


def changes(role: Role, old: RelayConfig | AgentConfig, new: RelayConfig | AgentConfig) -> Changes:
    """What is different in `new`. Fields that no setting has (interface, peers) need a restart."""
    live = {one.name for one in role.settings if one.live}
    differing = [
        field.name
        for field in msgspec.structs.fields(role.config)
        if getattr(old, field.name) != getattr(new, field.name)
    ]
    return Changes(
        live=tuple(name for name in differing if name in live),
        restart=tuple(name for name in differing if name not in live),
    )


def applied(role: Role, old: Config, new: Config) -> Config:
    """`old` with what `new` changes of it while it runs."""
    taken = {name: getattr(new, name) for name in changes(role, old, new).live}
    return msgspec.structs.replace(old, **taken)
