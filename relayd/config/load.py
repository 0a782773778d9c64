"""A relay's and an agent's configuration from flags, environment and file, in that order.

Loading reads files and nothing else: no name is looked up, no interface touched. It raises ConfigError for
the first thing that is wrong, and nothing else whatever a user has written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from relayd import marks
from relayd.config import kinds, values
from relayd.config.keyfile import read_private_key
from relayd.config.kinds import Kind
from relayd.config.mesh_checks import check_interface, check_peers
from relayd.config.settings import AGENT, ENV_PREFIX, RELAY, Role, Setting
from relayd.config.toml import Document, KeyPath, Place, read_document
from relayd.config.types import (
    KEY_FILE,
    STATE_DIR,
    AgentConfig,
    HostConfig,
    InterfaceConfig,
    PeerConfig,
    RelayConfig,
)
from relayd.config.values import Reader, WrongError

CLEAN_STATE = "WIREKUBE_CLEAN_STATE"
"""The variable by which WireKube's agents were asked to rebuild; `true` is the only value that counts."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """A setting's value, and where it was found."""

    value: Any
    place: Place


# The reader, and what to write where a required key is missing ("": it has a default).
_INTERFACE_KEYS: dict[str, tuple[Reader, str]] = {
    "name": (values.interface_name, ""),
    "private_key_file": (values.file_path, ""),
    "listen_port": (kinds.PORT.read, ""),
    "address": (values.many(values.interface_address, "10.0.0.1/24"), 'address = ["10.0.0.1/24"]'),
    "mtu": (values.whole(values.MIN_MTU, values.MAX_MTU, "an MTU"), ""),
}
_PEER_KEYS: dict[str, tuple[Reader, str]] = {
    "public_key": (values.public_key, 'public_key = "<what wg pubkey prints>"'),
    "allowed_ips": (
        values.many(values.network, "10.0.0.2/32", empty="a peer without allowed IPs gets no traffic"),
        'allowed_ips = ["10.0.0.2/32"]',
    ),
    "endpoint": (values.peer_endpoint, ""),
    "persistent_keepalive": (values.whole(0, 65535, "seconds, 0 is off"), ""),
}


def load_relay(
    path: str | Path | None, flags: Mapping[str, object], *, environ: Mapping[str, str] | None = None
) -> RelayConfig:
    """What `relayd serve` is to do. Raises ConfigError.

    `path` is --config's (None: RELAYD_CONFIG, or no file). `flags` maps words (`listen`, `log`, `state` ...)
    to texts or lists of them; None and [] mean that the flag was not given. `environ` is the process's own
    unless given. A word that is no setting's is a bug: TypeError.
    """
    environ = os.environ if environ is None else environ
    document = _document(path, environ)
    _check_tables(document, RELAY, AGENT, "that is for relayd agent; a relay has {has}")
    found = _find_all(RELAY.settings, flags, environ, document)
    return RelayConfig(**{name: one.value for name, one in found.items()})


def load_agent(
    path: str | Path | None,
    flags: Mapping[str, object],
    *,
    environ: Mapping[str, str] | None = None,
    relay_needed: bool = True,
) -> AgentConfig:
    """What `relayd agent` is to do; the arguments are as in `load_relay`. Raises ConfigError.

    The interface's private key is read too, so that a missing key is found before anything is touched.
    Without private_key_file it is the one in the state directory, which may not be there yet.

    Beside words, `flags` may have `clean_state`: True.
    Not `relay_needed` (`relayd check` looks a host over without one): `relay` is "" when nobody names one.
    """
    environ = os.environ if environ is None else environ
    flags = dict(flags)
    clean_state = bool(flags.pop("clean_state", False))
    document = _document(path, environ)
    _check_tables(document, AGENT, RELAY, "that is for relayd serve; an agent's {table} has {has}")
    found = _find_all(AGENT.settings, flags, environ, document)
    if relay_needed and "relay" not in found:
        place = document.place(("relay",), missing="address") if document.source else Place("")
        raise place.error("no relay is named", f"--relay HOST:PORT, {ENV_PREFIX}RELAY, or address in [relay]")
    settings = {"relay": ""} | {name: one.value for name, one in found.items()}
    owned = _interface(document, found.get("interface"), settings.get("state_dir", STATE_DIR))
    if owned is not None:
        settings["interface"] = owned.name
        check_interface(owned, settings.get("proxy_port", marks.PROXY_PORT), document)
    peers = _peers(document, owned)
    clean_state_once = environ.get(CLEAN_STATE) == "true"
    if clean_state and owned is None:
        raise Place("--clean-state").error(
            "an interface that exists is used as it is, there is nothing to build anew",
            "describe the interface under [interface]",
        )
    return AgentConfig(
        owned=owned, peers=peers, clean_state=clean_state, clean_state_once=clean_state_once, **settings
    )


def load_host(flags: Mapping[str, object], *, environ: Mapping[str, str] | None = None) -> HostConfig:
    """What `relayd cleanup` and `relayd agent --release` are to undo: `interface`, `state`, `control`.

    Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    settings = [AGENT.setting(name) for name in ("interface", "state_dir", "control")]
    found = _find_all(settings, flags, environ, Document())
    return HostConfig(**{name: one.value for name, one in found.items()})


def load_control(flags: Mapping[str, object], *, environ: Mapping[str, str] | None = None) -> str | None:
    """The control socket that `relayd status` was told of, by flag or variable; None: look for one.

    Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    found = _find_all((RELAY.setting("control"),), flags, environ, Document())
    return found["control"].value if found else None


def _document(path: str | Path | None, environ: Mapping[str, str]) -> Document:
    chosen = environ.get(f"{ENV_PREFIX}CONFIG") or None if path is None else path
    return Document() if chosen is None else read_document(chosen)


def _check_tables(document: Document, role: Role, other: Role, misplaced: str) -> None:
    """Raise ConfigError for a table or key that `role` has none of.

    `misplaced` is what to say of one that the `other` role has.
    """
    keys: dict[str, list[str]] = {}
    for one in role.settings:
        keys.setdefault(one.table, []).append(one.path[1])
    tables = (*role.tables, *keys)
    hint = misplaced.format(table="file", has=", ".join(f"[{table}]" for table in tables))
    others = dict.fromkeys((*other.tables, *(one.table for one in other.settings)), hint)
    _check_keys(document, (), tables, others)
    for table, known in keys.items():
        hint = misplaced.format(table=f"[{table}]", has=", ".join(known))
        others = {key: hint for in_table, key in (one.path for one in other.settings) if in_table == table}
        _check_keys(document, (table,), known, others)


def _check_keys(document: Document, path: KeyPath, known: Sequence[str], others: Mapping[str, str]) -> None:
    """Raise ConfigError unless what is at `path` (if anything) is a table with `known` keys alone.

    `others` are keys that belong elsewhere, each with a word about it.
    """
    table = _at(document, path)
    if table is None:
        return
    if not isinstance(table, dict):
        header = f"[{path[-1]}]" if isinstance(path[-1], str) else f"[[{path[-2]}]]"
        hint = f"write {header} on a line of its own, and its keys below"
        raise document.place(path).error(f"is {values.type_name(table)}, not a table", hint)
    for key in table:
        if key not in known:
            hint = others.get(key) or values.suggestion(key, tuple(known))
            raise document.place((*path, key)).error("unknown key", hint)


def _at(document: Document, path: KeyPath) -> Any:
    """The value at `path`, None when there is none (TOML has no null)."""
    value: Any = document.data
    for part in path:
        if not isinstance(part, int) and part not in value:
            return None
        value = value[part]
    return value


def _find_all(
    settings: Iterable[Setting], flags: Mapping[str, object], environ: Mapping[str, str], document: Document
) -> dict[str, Found]:
    """Those of `settings` that something gives, by name. Raises TypeError for a flag that none has."""
    settings = tuple(settings)
    if strangers := set(flags) - {one.flag_word for one in settings}:
        raise TypeError(f"no such flags: {', '.join(sorted(strangers))}")
    found = {}
    for setting in settings:
        one = _find(setting, flags.get(setting.flag_word), environ.get(setting.variable), document)
        if one is not None:
            found[setting.name] = one
    return found


def _find(setting: Setting, flag: object, variable: str | None, document: Document) -> Found | None:
    """The setting's value from the first that has it. An empty variable is one that is not set.

    What the file has is read also when it doesn't count: it is wrong today, not on the day without the flag.
    """
    in_file = None
    if _at(document, setting.path) is not None:
        value = _read_at(document, setting.path, setting.kind.read)
        in_file = Found(_plain(value, document.directory), document.place(setting.path))
    if flag is not None and flag != [] and flag != ():
        place, raw = Place(setting.flag), _from_flag(flag)
    elif variable:
        place, raw = Place(setting.variable), variable
    else:
        return in_file
    try:
        return Found(_plain(setting.kind.read(_converted(raw, setting.kind))), place)
    except WrongError as wrong:
        raise place.error(wrong.problem, wrong.hint) from wrong


def _plain(value: Any, directory: Path = Path()) -> Any:
    """Names of files as texts; relative ones start at `directory`."""
    if isinstance(value, tuple):
        return tuple(_plain(one, directory) for one in value)
    return str(directory / value) if isinstance(value, Path) else value


def _converted(raw: object, kind: Kind) -> object:
    """A flag's or a variable's text as the file would have it; what is no text as it is."""
    return kind.from_text(raw) if isinstance(raw, str) else raw


def _from_flag(flag: object) -> object:
    """A flag given several times is one text with commas, as a variable is."""
    if isinstance(flag, list | tuple):
        return ",".join(map(str, flag))
    return os.fspath(flag) if isinstance(flag, Path) else flag


def _read_at(document: Document, path: KeyPath, read: Callable[[object], T]) -> T:
    """The value at `path`, which is there, as `read` takes it. Raises ConfigError that points at it."""
    try:
        return read(_at(document, path))
    except WrongError as wrong:
        raise document.place((*path, *wrong.at)).error(wrong.problem, wrong.hint) from wrong


def _read_keys(document: Document, path: KeyPath, keys: Mapping[str, tuple[Reader, str]]) -> dict[str, Any]:
    """The values of the table at `path` by name: those that are there, and all that must be."""
    _check_keys(document, path, tuple(keys), {})
    result = {}
    for name, (read, example) in keys.items():
        if _at(document, (*path, name)) is not None:
            result[name] = _read_at(document, (*path, name), read)
        elif example:
            raise document.place(path, missing=name).error("missing", example)
    return result


def _interface(document: Document, named: Found | None, state_dir: str) -> InterfaceConfig | None:
    """The [interface] that the file describes. `named` is the name that flag, variable or [agent] gives."""
    path: KeyPath = ("interface",)
    if _at(document, path) is None:
        return None
    settings = _read_keys(document, path, _INTERFACE_KEYS)
    if _at(document, ("agent", "interface")) is not None:
        hint = "[interface] name says it; without [interface], this names one that exists"
        raise document.place(("agent", "interface")).error("the file describes an interface of its own", hint)
    if named is not None and settings.setdefault("name", named.value) != named.value:
        place = document.place(("interface", "name"))
        raise named.place.error(
            f"{named.value!r} is another interface than {settings['name']!r} in {place.source}:{place.line}",
            "leave one of the two names out",
        )
    if "private_key_file" in settings:
        key_file = document.directory / settings["private_key_file"]
        place = document.place((*path, "private_key_file"))
    else:
        key_file = Path(state_dir) / KEY_FILE
        place = Place(str(key_file))
        if not key_file.exists():
            return InterfaceConfig(private_key_file=key_file, private_key=None, **settings)
    settings["private_key_file"] = key_file
    try:
        return InterfaceConfig(private_key=read_private_key(key_file), **settings)
    except WrongError as wrong:
        raise place.error(wrong.problem, wrong.hint) from wrong


def _peers(document: Document, owned: InterfaceConfig | None) -> tuple[PeerConfig, ...]:
    tables = _at(document, ("peer",))
    if tables is None:
        return ()
    if not isinstance(tables, list):
        raise document.place(("peer",)).error(
            f"is {values.type_name(tables)}, not an array of tables", "write [[peer]], once for each peer"
        )
    peers = tuple(
        PeerConfig(**_read_keys(document, ("peer", index), _PEER_KEYS)) for index in range(len(tables))
    )
    if owned is None and peers:
        raise document.place(("peer", 0)).error(
            "there is no [interface] for it", "add [interface]; an interface that exists has peers of its own"
        )
    if owned is not None:
        check_peers(peers, owned, document)
    return peers
