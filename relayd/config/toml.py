"""A TOML file together with the line of everything in it, so that an error can point.

`tomllib` reads the file and decides what is TOML; it keeps no positions, nor does any reader that keeps
comments (tomlkit has none for a key in a dotted or out-of-order table). So a second pass, over text that
is known to be good, notes where each key path begins. It never judges, and so it can be short.
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relayd.errors import ConfigError

MAX_FILE_BYTES = 4 << 20
"""A file of 10,000 peers has 2 MB; /dev/zero has more."""

KeyPath = tuple[str | int, ...]
"""("peer", 1, "allowed_ips", 0): keys, and indexes from 0 into arrays."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value came from: a line of a file, a flag or an environment variable."""

    source: str
    line: int | None = None
    key: str = ""

    def error(self, problem: str, hint: str = "") -> ConfigError:
        """The error to raise for what stands here."""
        return ConfigError(problem, source=self.source, line=self.line, key=self.key, hint=hint)


def dotted(path: KeyPath) -> str:
    """`peer[2].allowed_ips[1]`: as a person counts, from one. Keys that need quotes have them."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            bare = re.fullmatch(_BARE_KEY, part) is not None
            text += ("." if text else "") + (part if bare else json.dumps(part))
    return text


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, and where. The empty one stands for "no file"."""

    source: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    directory: Path = Path()
    """Relative paths in the file start here."""

    def at(self, path: KeyPath) -> Any:
        """The value at `path`, None when there is none (TOML has no null)."""
        value: Any = self.data
        for part in path:
            if not isinstance(value, Mapping) and isinstance(part, str):
                return None  # a key of what should be a table, and isn't
            if isinstance(part, str) and part not in value:
                return None
            value = value[part]
        return value

    def place(self, path: KeyPath, *, missing: str = "") -> Place:
        """Where `path` is; for a `missing` key, the table it is missing from."""
        found = path
        while found and found not in self.lines:
            found = found[:-1]
        return Place(self.source, self.lines.get(found), dotted((*path, missing) if missing else path))


def read_document(path: str | Path) -> Document:
    """Read and parse the file at `path`. Raises ConfigError when it can't be read or isn't TOML."""
    source = str(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", source=source) from error
    except ValueError as error:  # a NUL in the name
        raise ConfigError(f"not a file name: {error}", source=repr(source)) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"longer than {MAX_FILE_BYTES >> 20} MiB", source=source)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError("not UTF-8", source=source, line=line, hint="TOML files are UTF-8") from error
    return parse_document(text, source=source, directory=Path(path).parent)


def parse_document(text: str, *, source: str, directory: Path = Path()) -> Document:
    """Parse `text`. Raises ConfigError, with a line where there is one, when it isn't TOML."""
    try:
        data = tomllib.loads(text)
        lines = key_lines(text)
    except RecursionError as error:
        raise ConfigError("nested too deeply", source=source) from error
    except ValueError as error:  # TOMLDecodeError, or int's refusal of thousands of digits
        raise _syntax_error(text, error, source) from error
    return Document(source, data, lines, directory)


_IN_OTHER_WORDS = {
    "Invalid value": 'text stands in quotes: key = "text"',
    "Cannot overwrite": "this key is in its table already",
    "Cannot declare": "this table is there already, and each is there once",
}
"""What `tomllib` says -> what it means to who wrote the file, for the most frequent mistakes."""


def _syntax_error(text: str, error: ValueError, source: str) -> ConfigError:
    """`tomllib` gives the position as text: "(at line 3, column 7)" or "(at end of document)"."""
    problem = str(error).splitlines()[0]
    hint = next((hint for words, hint in _IN_OTHER_WORDS.items() if words in problem), "")
    if re.search(r"^\s*\[(Interface|Peer)\]", text, re.MULTILINE):
        hint = 'this looks like a wg-quick file; relayd reads TOML: [interface], [[peer]], key = "value"'
    line = None
    if found := re.search(r" \(at line (\d+), column (\d+)\)$", problem):
        line = int(found[1])
        problem = f"{problem[: found.start()]}, column {found[2]}"
    elif problem.endswith(" (at end of document)"):
        line = max(1, text.rstrip("\n").count("\n") + 1)
        problem = problem.removesuffix(" (at end of document)") + ", at the end of the file"
    return ConfigError(f"not valid TOML: {problem}", source=source, line=line, hint=hint)


_BARE_KEY = r"[A-Za-z0-9_-]+"
_KEY_PART = re.compile(rf"""{_BARE_KEY}|"(?:[^"\\]|\\.)*"|'[^']*'""")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    # A closing run of three quotes may have one or two more before it, which belong to the string.
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\]|\\.)*"' r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every table, key and array element of `text`, which `tomllib` has accepted.

    A table has the line of its header, or of the first key that implies it.
    """
    return _Positions(text).lines


class _Positions:
    """One walk over the text; `_at` is the offset of what comes next."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._at = 0
        self._arrays: dict[KeyPath, int] = {}
        """Arrays of tables: how many there have been."""
        self.lines: dict[KeyPath, int] = {}
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _line(self) -> int:
        return bisect_right(self._newlines, self._at - 1) + 1

    def _skip(self, pattern: re.Pattern[str]) -> str:
        """Step over what `pattern` matches here, perhaps nothing, and return it."""
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _key(self) -> list[str]:
        """A dotted key and the blanks around it."""
        parts = []
        while True:
            self._skip(_SPACE)
            token = self._skip(_KEY_PART)
            parts.append(token if token[:1] not in {'"', "'"} else tomllib.loads(f"key = {token}")["key"])
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _header(self) -> KeyPath:
        """`[table]` or `[[array of tables]]`."""
        line = self._line()
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        parts = self._key()
        self._at += brackets
        path: KeyPath = ()
        for depth, part in enumerate(parts, 1):
            path = (*path, part)
            if brackets == 2 and depth == len(parts):
                self._arrays[path] = self._arrays.get(path, 0) + 1
            self.lines.setdefault(path, line)
            if path in self._arrays:
                path = (*path, self._arrays[path] - 1)
                self.lines.setdefault(path, line)
        self.lines[path] = line  # its own header, also when a sub-table came first
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opening = self._text[self._at]
        if opening in "[{":
            self._at += 1
            self._items(path, array=opening == "[")
        elif not self._skip(_STRING):
            self._skip(_SCALAR)

    def _items(self, path: KeyPath, *, array: bool) -> None:
        """What is between the brackets of an array or an inline table, and the closing one."""
        index = 0
        self._skip(_BLANK)
        while self._text[self._at] not in "]}":
            if array:
                self.lines[(*path, index)] = self._line()
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
                self._skip(_BLANK)
        self._at += 1
