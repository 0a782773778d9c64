"""`relayd config check` and `relayd config show`: what a configuration says, and where it says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from relayd.config.load import Examined, examine_agent, examine_relay
from relayd.config.reading import Found
from relayd.config.setting import Role, Setting
from relayd.config.settings import INTERFACE_KEYS, PEER_KEYS, RELAY, ROLES
from relayd.config.toml import Document, KeyPath, Place, dotted
from relayd.config.types import AgentConfig, RelayConfig

HIDDEN = "(hidden)"

AnyExamined = Examined[RelayConfig] | Examined[AgentConfig]


def examine(
    role: Role, path: str | None, flags: Mapping[str, object], *, environ: Mapping[str, str]
) -> AnyExamined:
    """As `examine_relay` or `examine_agent`."""
    return (examine_relay if role is RELAY else examine_agent)(path, flags, environ=environ)


def role_of(document: Document) -> Role:
    """Whose file it is: the role that has more of its tables and keys; an empty one is a relay's."""
    return max(ROLES, key=lambda role: _belonging(role, document))


def _belonging(role: Role, document: Document) -> int:
    others = {table for other in ROLES if other is not role for table in other.all_tables}
    tables = ((table,) for table in role.all_tables if table not in others)
    return sum(document.at(path) is not None for path in (*tables, *(one.path for one in role.settings)))


@dataclass(frozen=True, slots=True)
class Effective:
    """One value as it counts."""

    name: str
    """As the file writes it: `relay.listen`."""

    value: Any
    """As TOML or JSON have it. None: there is none."""

    source: str
    """`default`, a flag, a variable or a file."""

    line: int | None = None


def effective(examined: AnyExamined) -> Iterator[Effective]:
    """Every value of a configuration without mistakes, the settings first."""
    config, found = examined.right(), examined.found
    owned = config.owned if isinstance(config, AgentConfig) else None
    for setting in examined.role.settings:
        if setting.name == "interface" and owned is not None:
            continue  # the file's own table has it
        place = found[setting.name].place if setting.name in found else None
        value = getattr(config, setting.name)
        if setting.name == "control" and isinstance(config, AgentConfig):
            value = config.control_path
        yield _effective(".".join(setting.path), _shown(setting, value), place)
    if isinstance(config, AgentConfig) and owned is not None:
        for key in INTERFACE_KEYS:
            named = examined.found.get("interface") if key == "name" else None
            yield _from_file(examined.document, ("interface", key), getattr(owned, key), named)
        for index, peer in enumerate(config.peers):
            for key in PEER_KEYS:
                yield _from_file(examined.document, ("peer", index, key), getattr(peer, key))


def _from_file(document: Document, path: KeyPath, value: Any, named: Found | None = None) -> Effective:
    """`named`: where it is from, if the file doesn't have it."""
    place = named.place if named is not None else None
    if document.at(path) is not None:
        place = document.place(path)
    return _effective(dotted(path), _plain(value), place)


def _effective(name: str, value: Any, place: Place | None) -> Effective:
    if place is None:
        return Effective(name, value, "default")
    return Effective(name, value, place.source, place.line)


def _shown(setting: Setting, value: Any) -> Any:
    return HIDDEN if setting.secret and value else _plain(value)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
