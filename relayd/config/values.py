"""From a value as TOML, a flag or the environment has it to one of its own type, or a reason why not.

A reader takes any object and returns the typed value, or raises `WrongError`; it knows nothing of files and
lines. No reader touches the host: no name is looked up, no file opened.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Hashable
from datetime import date, time
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from relayd.config.types import LogMode

Reader = Callable[[object], Any]
Value = TypeVar("Value", bound=Hashable)

MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` has 108 with the closing NUL (unix(7))."""

_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
}


class WrongError(Exception):
    """A value can't be taken. `at` leads from the value to the part of it that is wrong."""

    def __init__(self, problem: str, hint: str = "", *, at: tuple[int, ...] = ()) -> None:
        super().__init__(problem)
        self.problem, self.hint, self.at = problem, hint, at


def type_name(value: object) -> str:
    """What TOML calls the type of `value`, with its article."""
    if isinstance(value, date | time):
        return "a date or time"
    return _TYPES.get(type(value), f"a {type(value).__name__}")


def text(value: object) -> str:
    """A string that says something. A key is refused unquoted: it may be a private one, misplaced."""
    written = quoted(value)
    if re.fullmatch(r"[A-Za-z0-9+/]{40,44}=", written.strip()):
        raise WrongError(
            "is a key", "a private key goes into a file of its own, which private_key_file names"
        )
    return written


def quoted(value: object) -> str:
    """A string that isn't blank. It may be a private key: no error is to quote it."""
    if not isinstance(value, str):
        raise WrongError(f"is {type_name(value)}, not a string", "put it in quotes")
    if not value.strip():
        raise WrongError("is empty")
    return value


def _each(value: object, what: str) -> list[object]:
    """The elements of an array, or of one string with commas or blanks between them."""
    if isinstance(value, str):
        return list(re.split(r"[,\s]+", text(value).strip(", \t\r\n")))
    if isinstance(value, list | tuple):
        return list(value)
    raise WrongError(f"is {type_name(value)}, not an array of strings", f'for example ["{what}"]')


def many(
    read: Callable[[object], Value], example: str, *, empty: str = ""
) -> Callable[[object], tuple[Value, ...]]:
    """A reader of an array (or of a string with commas) of what `read` takes, each once.

    `empty` says what is wrong with none at all; "" allows it.
    """

    def read_many(value: object) -> tuple[Value, ...]:
        first: dict[Value, int] = {}
        for index, element in enumerate(_each(value, example)):
            try:
                item = read(element)
            except WrongError as wrong:
                raise WrongError(wrong.problem, wrong.hint, at=(index, *wrong.at)) from None
            if first.setdefault(item, index) != index:
                raise WrongError(
                    f"{item} is here twice", f"element {first[item] + 1} is the same", at=(index,)
                )
        if empty and not first:
            raise WrongError(empty, f'for example ["{example}"]')
        return tuple(first)

    return read_many


def whole(low: int, high: int, what: str) -> Callable[[object], int]:
    """A reader of integers from `low` to `high`; `what` names them in errors."""

    def read_whole(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            digits = isinstance(value, str) and value.isascii() and value.isdigit()
            hint = f"write {value} without quotes" if digits else f"{what}: {low} to {high}"
            raise WrongError(f"is {type_name(value)}, not an integer", hint)
        if not low <= value <= high:
            # An integer of TOML can have thousands of digits.
            shown = str(value) if abs(value) < 10**18 else "it"
            raise WrongError(f"{shown} is out of range", f"{what}: {low} to {high}")
        return value

    return read_whole


def positive(high: float) -> Callable[[object], float]:
    """A number above 0, up to `high`."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WrongError(f"is {type_name(value)}, not a number")
        if not 0 < value <= high:  # false for nan too
            raise WrongError(f"{value:g} is out of range", f"above 0, at most {high:.0f}")
        return float(value)

    return read


def seconds(low: float, high: float) -> Callable[[object], float]:
    """A reader of durations in seconds, whole or not."""

    def read_seconds(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WrongError(f"is {type_name(value)}, not a number", f"seconds: {low:g} to {high:g}")
        if (isinstance(value, float) and math.isnan(value)) or not low <= value <= high:
            raise WrongError("is out of range", f"seconds: {low:g} to {high:g}")
        return float(value)

    return read_seconds


def log_mode(value: object) -> LogMode:
    """`auto`, `console` or `json`."""
    word = text(value)
    match word:
        case "auto" | "console" | "json":
            return word
    raise WrongError(f"{word!r} is not a way to log", suggestion(word, ("auto", "console", "json")))


def yes_or_no(value: object) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise WrongError(f"is {type_name(value)}, not a boolean", "true or false, without quotes")
    return value


def whole_from_text(written: str) -> int:
    """What a flag or a variable says, where the file has an integer."""
    try:
        return int(written)
    except ValueError:
        raise WrongError(f"{written!r} is not a whole number") from None


def number_from_text(written: str) -> float:
    """Likewise a number, whole or not."""
    try:
        return float(written)
    except ValueError:
        raise WrongError(f"{written!r} is not a number") from None


def yes_or_no_from_text(written: str) -> bool:
    """Likewise a boolean, in the spellings that people use."""
    match written.strip().lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise WrongError(f"{written!r} is neither true nor false", "true or false")


def suggestion(word: str, known: tuple[str, ...]) -> str:
    """`did you mean X?` when one of `known` looks like `word`, a list of them otherwise.

    Spelling counts, case and separators don't: `AllowedIPs` is how wg-quick writes `allowed_ips`.
    """
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in known}
    close = get_close_matches(re.sub(r"[^a-z0-9]", "", word.lower()), list(plain), n=1, cutoff=0.6)
    return f"did you mean {plain[close[0]]}?" if close else f"one of {', '.join(known)}"


def file_path(value: object) -> Path:
    """The name of a file or a directory, there or not."""
    written = text(value)
    if "\0" in written:
        raise WrongError("has a NUL character, no file name can")
    return Path(written)


def check_socket_path(path: Path) -> None:
    """Raise WrongError when no Unix socket can have this path."""
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise WrongError(f"{size} bytes long", f"a socket's path has at most {MAX_SOCKET_PATH_BYTES}")
