"""Sorts of values that settings have: how each is read, and how a command line gives it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, get_args

from relayd.config import net_values, values
from relayd.config.types import Auth, LogMode
from relayd.config.values import Reader, WrongError

OFF = "off"

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of value."""

    read: Reader
    metavar: str
    """What stands for a value in help texts: BYTES."""

    from_text: Callable[[str], object] = str
    """Turns a flag's or a variable's text into what the file would have, before it is read."""

    several: bool = False
    """Its flag takes several and may be repeated; a variable has commas between them, the file an array."""

    choices: tuple[str, ...] = ()
    """All the words that it can be, for help and completion; () when they can't be listed."""

    switch: bool = False
    """Yes or no: the flag takes no value, and has a twin `--no-...`."""

    path: bool = False
    """It names a file: relative to the file that it stands in; shells complete it so."""


def number(low: int, high: int, what: str, *, metavar: str = "N") -> Kind:
    """Whole numbers from `low` to `high`; `what` names them in errors."""
    return Kind(values.whole(low, high, what), metavar, values.whole_from_text)


def duration(low: float, high: float) -> Kind:
    """Seconds, whole or not."""
    return Kind(values.seconds(low, high), "SECONDS", values.number_from_text)


def choice(*words: str) -> Kind:
    """One of `words`."""

    def read(value: object) -> str:
        word = values.text(value)
        if word not in words:
            raise WrongError(f"{word!r} is not known here", values.suggestion(word, words))
        return word

    return Kind(read, "WORD", choices=words)


def several(read: Callable[[object], Value], metavar: str, *, example: str, empty: str = "") -> Kind:
    """Any number of what `read` takes, as a tuple. `empty` says what is wrong with none; "" allows it."""
    return Kind(values.many(read, example, empty=empty), metavar, several=True)


def several_paths(metavar: str, *, example: str, empty: str = "") -> Kind:
    """Names of files."""
    return replace(several(values.file_path, metavar, example=example, empty=empty), path=True)


def or_off(kind: Kind) -> Kind:
    """What `kind` is, or `off` (in the file also false): None."""

    def read(value: object) -> object:
        if value is False or value == OFF:
            return None
        with _hinting_at_off():
            return kind.read(value)

    def from_text(written: str) -> object:
        if written == OFF:
            return OFF
        with _hinting_at_off():
            return kind.from_text(written)

    return replace(kind, read=read, from_text=from_text, metavar=f"{kind.metavar}|{OFF}")


@contextmanager
def _hinting_at_off() -> Iterator[None]:
    """Who wants none of it finds the word for that in the error."""
    try:
        yield
    except WrongError as wrong:
        raise WrongError(
            wrong.problem, "; ".join(filter(None, (wrong.hint, f"{OFF} for none"))), at=wrong.at
        ) from None


def _socket_path(value: object) -> Path:
    path = values.file_path(value)
    values.check_socket_path(path)
    return path


SWITCH = Kind(values.yes_or_no, "", values.yes_or_no_from_text, switch=True)
HTTP = Kind(net_values.http_address, "ADDR:PORT")
RELAYS = Kind(net_values.relays, "RELAY", several=True)
INTERFACE = Kind(net_values.interface_name, "NAME")
FILE = Kind(values.file_path, "FILE", path=True)
DIRECTORY = Kind(values.file_path, "DIR", path=True)
SOCKET = Kind(_socket_path, "PATH", path=True)
NODE = Kind(net_values.node_name, "NAME")
SERVER = Kind(net_values.server_url, "URL")
PORT = number(1, 65535, "a port", metavar="PORT")
HOST = Kind(net_values.host, "HOST")
AUTH = choice(*get_args(Auth))
LOG = Kind(values.log_mode, "MODE", choices=get_args(LogMode))
