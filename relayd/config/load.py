"""A relay's and an agent's configuration from flags, environment and file, in that order.

Loading reads files and nothing else: no name is looked up, no interface touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from relayd import marks
from relayd.config import net_values, values
from relayd.config.keyfile import read_private_key
from relayd.config.mesh_checks import interface_mistakes, peer_mistakes
from relayd.config.reading import Found, Reading
from relayd.config.relay_checks import admission_mistakes, tls_mistakes
from relayd.config.setting import ENV_PREFIX, Role
from relayd.config.settings import AGENT, INTERFACE_KEYS, PEER_KEYS, RELAY
from relayd.config.toml import Document, KeyPath, Place
from relayd.config.types import (
    KEY_FILE,
    STATE_DIR,
    AgentConfig,
    HostConfig,
    InterfaceConfig,
    PeerConfig,
    RelayConfig,
)
from relayd.config.values import WrongError
from relayd.errors import ConfigError, HostError
from relayd.join import JoinString
from relayd.secret_file import read_lines

CLEAN_STATE = "WIREKUBE_CLEAN_STATE"
"""The variable by which WireKube's agents were asked to rebuild; `true` is the only value that counts."""

Config = TypeVar("Config", RelayConfig, AgentConfig)


@dataclass(frozen=True, slots=True)
class Examined(Generic[Config]):
    """A configuration, or what is wrong with it."""

    role: Role
    config: Config | None
    """None where there are errors."""

    errors: tuple[ConfigError, ...] = ()
    """In order of line; those of flags and variables last."""

    found: Mapping[str, Found] = field(default_factory=dict)
    """Where each setting has its value from, by name; those with their default aren't in it."""

    document: Document = field(default_factory=Document)

    def right(self) -> Config:
        """The configuration. Raises the first of the errors."""
        if self.config is None:
            raise self.errors[0]
        return self.config


def load_relay(
    path: str | Path | None, flags: Mapping[str, object], *, environ: Mapping[str, str] | None = None
) -> RelayConfig:
    """What `relayd serve` is to do. Raises ConfigError, for the first line of the file that has a mistake.

    `path` is --config's (None: RELAYD_CONFIG, or no file). `flags` maps words (`listen`, `log`, `state` ...)
    to texts or lists of them; None and [] mean that the flag was not given. `environ` is the process's own
    unless given. A word that is no setting's is a bug: TypeError.
    """
    return examine_relay(path, flags, environ=environ).right()


def examine_relay(
    path: str | Path | None, flags: Mapping[str, object], *, environ: Mapping[str, str] | None = None
) -> Examined[RelayConfig]:
    """As `load_relay`, with all that is wrong, and where each value is from."""
    try:
        reading = Reading.open(path, flags, os.environ if environ is None else environ)
    except ConfigError as error:
        return Examined(RELAY, None, (error,))
    reading.check_tables(RELAY, AGENT, "that is for relayd agent; a relay has {has}")
    found = reading.find_all(RELAY.settings)
    reading.errors += (*admission_mistakes(found, reading.environ), *tls_mistakes(found))
    config = None
    if not reading.errors:
        config = RelayConfig(**{name: one.value for name, one in found.items()})
    return Examined(RELAY, config, tuple(reading.in_order()), found, reading.document)


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

    Beside words, `flags` may have `clean_state`: True. Not `relay_needed` (`relayd check` looks a host over
    without one): `relays` is empty when nobody names one.
    """
    return examine_agent(path, flags, environ=environ, relay_needed=relay_needed).right()


def examine_agent(
    path: str | Path | None,
    flags: Mapping[str, object],
    *,
    environ: Mapping[str, str] | None = None,
    relay_needed: bool = True,
) -> Examined[AgentConfig]:
    """As `load_agent`, with all that is wrong, and where each value is from."""
    environ = os.environ if environ is None else environ
    flags = dict(flags)
    clean_state = bool(flags.pop("clean_state", False))
    try:
        reading = Reading.open(path, flags, environ)
    except ConfigError as error:
        return Examined(AGENT, None, (error,))
    document = reading.document
    things = {"[interface]": INTERFACE_KEYS, "[[peer]]": PEER_KEYS}
    reading.check_tables(AGENT, RELAY, "that is for relayd serve; an agent's {table} has {has}", things)
    found = reading.find_all(AGENT.settings)
    settings = {name: one.value for name, one in found.items()}
    in_cluster = bool(settings.get("kubernetes"))
    if in_cluster:
        reading.errors += _cluster_mistakes(found, document, environ)
    with reading.noting():
        settings["relays"] = _relays(found)
        of_relay = AGENT.setting("relays")
        if (
            relay_needed
            and not in_cluster
            and not settings["relays"]
            and not any(
                error.key.startswith("relay") or error.source in (of_relay.flag, of_relay.variable)
                for error in reading.errors  # where it is misspelled, or wrong
            )
        ):
            place = document.place(("relay",), missing="address") if document.source else Place("")
            hint = f"--relay RELAY, {ENV_PREFIX}RELAY, or address in [relay]"
            raise place.error("no relay is named", hint)
    owned = None
    with reading.noting():
        owned = _interface(reading, found.get("interface"), settings.get("state_dir", STATE_DIR))
    if owned is not None:
        settings["interface"] = owned.name
        reading.errors += interface_mistakes(owned, settings.get("proxy_port", marks.PROXY_PORT), document)
    peers: Mapping[int, PeerConfig] = {}
    with reading.noting():
        peers = _peers(reading)
    reading.errors += peer_mistakes(peers, owned, document)
    with reading.noting():
        if clean_state and not in_cluster and document.at(("interface",)) is None:
            raise Place("--clean-state").error(
                "an interface that exists is used as it is, there is nothing to build anew",
                "describe the interface under [interface]",
            )
    config = None
    if not reading.errors:
        config = AgentConfig(
            owned=owned,
            peers=tuple(peers.values()),
            clean_state=clean_state,
            clean_state_once=environ.get(CLEAN_STATE) == "true",
            **settings,
        )
    return Examined(AGENT, config, tuple(reading.in_order()), found, document)


def _cluster_mistakes(
    found: Mapping[str, Found], document: Document, environ: Mapping[str, str]
) -> Iterator[ConfigError]:
    """What an agent of a cluster lacks, or has twice."""
    asked = found["kubernetes"].place
    if "node_name" not in found:
        hint = "--node-name, or NODE_NAME by the pod's fieldRef"
        yield asked.error("no node is named", hint)
    if "api_server" not in found and not environ.get("KUBERNETES_SERVICE_HOST"):
        hint = "--api-server URL; a pod's environment has it"
        yield asked.error("nothing says where the API server is", hint)
    for table in ("interface", "peer"):
        if document.at((table,)) is not None:
            hint = "leave it out, or run without --kubernetes"
            yield document.place((table,)).error("with --kubernetes the cluster's resources say that", hint)


def load_host(flags: Mapping[str, object], *, environ: Mapping[str, str] | None = None) -> HostConfig:
    """What `relayd cleanup` and `relayd agent --release` are to undo: `interface`, `state`, `control`.

    Raises ConfigError.
    """
    found = _without_file(flags, environ, AGENT, "interface", "state_dir", "control")
    settings = {name: one.value for name, one in found.items()}
    return HostConfig(interface_named="interface" in found, **settings)


def load_control(flags: Mapping[str, object], *, environ: Mapping[str, str] | None = None) -> str | None:
    """The control socket that `relayd status` was told of, by flag or variable; None: look for one.

    Raises ConfigError.
    """
    found = _without_file(flags, environ, RELAY, "control")
    return found["control"].value if found else None


def _without_file(
    flags: Mapping[str, object], environ: Mapping[str, str] | None, role: Role, *names: str
) -> Mapping[str, Found]:
    reading = Reading(Document(), flags, os.environ if environ is None else environ)
    found = reading.find_all(map(role.setting, names))
    if reading.errors:
        raise reading.errors[0]
    return found


def _relays(found: Mapping[str, Found]) -> tuple[JoinString, ...]:
    """Those that are named, and those in the file that is. Each address once. Raises ConfigError."""
    named = found.get("relays")
    relays = [] if named is None else list(named.value)
    places = [] if named is None else [named.place] * len(relays)
    if "relay_file" in found:
        in_file = found["relay_file"]
        try:
            lines = read_lines(Path(in_file.value))
        except HostError as error:
            raise in_file.place.error(str(error)) from error
        except ConfigError as error:  # of the file as a whole
            raise in_file.place.error(f"{error.source} {error.problem}", error.hint) from error
        for number, line in lines:
            place = Place(str(in_file.value), line=number)
            try:
                relays.append(net_values.relay(line))
            except WrongError as wrong:
                raise place.error(wrong.problem, wrong.hint) from wrong
            places.append(place)
    seen: set[str] = set()
    for relay, place in zip(relays, places, strict=True):
        if relay.address in seen:
            raise place.error(f"{relay.address} is named twice")
        seen.add(relay.address)
    return tuple(relays)


def _interface(reading: Reading, named: Found | None, state_dir: str) -> InterfaceConfig | None:
    """The [interface] that the file describes; None when it has none, or one with mistakes, which are noted.

    `named` is the name that flag, variable or [agent] gives. Raises ConfigError.
    """
    path: KeyPath = ("interface",)
    document = reading.document
    if document.at(path) is None:
        return None
    settings = reading.read_table(path, INTERFACE_KEYS)
    if document.at(("agent", "interface")) is not None:
        hint = "[interface] name says it; without [interface], this names one that exists"
        raise document.place(("agent", "interface")).error("the file describes an interface of its own", hint)
    if settings is None:
        return None
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


def _peers(reading: Reading) -> Mapping[int, PeerConfig]:
    """The [[peer]] tables that have no mistakes, by their place in the file from 0. Raises ConfigError."""
    document = reading.document
    tables = document.at(("peer",))
    if tables is None:
        return {}
    if not isinstance(tables, list):
        raise document.place(("peer",)).error(
            f"is {values.type_name(tables)}, not an array of tables", "write [[peer]], once for each peer"
        )
    read = {index: reading.read_table(("peer", index), PEER_KEYS) for index in range(len(tables))}
    if tables and document.at(("interface",)) is None:
        raise document.place(("peer", 0)).error(
            "there is no [interface] for it", "add [interface]; an interface that exists has peers of its own"
        )
    return {index: PeerConfig(**peer) for index, peer in read.items() if peer is not None}
