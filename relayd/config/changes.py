"""What a new configuration changes: what can be applied to a process that runs, and what needs a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from relayd.config.setting import Role
from relayd.config.types import AgentConfig, InterfaceConfig, RelayConfig

Config = TypeVar("Config", RelayConfig, AgentConfig)


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of the fields that differ, in the table's order."""

    live: tuple[str, ...]
    """The process takes these over."""

    restart: tuple[str, ...]
    """These are as they were until the next start."""


def changes(role: Role, old: RelayConfig | AgentConfig, new: RelayConfig | AgentConfig) -> Changes:
    """What is different in `new`."""
    live = {one.name for one in role.settings if one.live}
    if isinstance(old, AgentConfig) and isinstance(new, AgentConfig) and _same_interface(old, new):
        live |= {"owned", "peers"}
    if isinstance(old, AgentConfig) and old.owned is not None and old.owned.private_key is None:
        # The key was made at the start, and is in its file now: that is no change.
        old = msgspec.structs.replace(old, owned=_with_key_of(old.owned, new))
    differing = [
        field.name
        for field in msgspec.structs.fields(role.config)
        if getattr(old, field.name) != getattr(new, field.name)
    ]
    return Changes(
        live=tuple(name for name in differing if name in live),
        restart=tuple(name for name in differing if name not in live),
    )


def _same_interface(old: AgentConfig, new: AgentConfig) -> bool:
    """Whether both describe one interface, so that its settings and peers can become others."""
    return old.owned is not None and new.owned is not None and old.owned.name == new.owned.name


def _with_key_of(owned: InterfaceConfig, new: RelayConfig | AgentConfig) -> InterfaceConfig:
    key = new.owned.private_key if isinstance(new, AgentConfig) and new.owned is not None else None
    return msgspec.structs.replace(owned, private_key=key)


def applied(role: Role, old: Config, new: Config) -> Config:
    """`old` with what `new` changes of it while it runs."""
    taken = {name: getattr(new, name) for name in changes(role, old, new).live}
    return msgspec.structs.replace(old, **taken)
