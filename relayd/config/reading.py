"""One look at flags, environment and file: what they say, and all that is wrong with it.

What is wrong is noted and the reading goes on, so that a person sees every mistake of a file at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from relayd.config import values
from relayd.config.setting import ENV_PREFIX, Key, Role, Setting
from relayd.config.toml import Document, KeyPath, Place, read_document
from relayd.config.values import WrongError
from relayd.errors import ConfigError

T = TypeVar("T")

NO_THINGS: Mapping[str, Mapping[str, Key]] = {}


@dataclass(frozen=True, slots=True)
class Found:
    """A setting's value, and where it was found."""

    value: Any
    place: Place
    text: str = ""
    """As the flag or variable had it; "" from a file."""


class Reading:
    """`errors` is what is wrong so far."""

    def __init__(self, document: Document, flags: Mapping[str, object], environ: Mapping[str, str]) -> None:
        self.document, self.errors = document, list[ConfigError]()
        self._flags, self.environ = flags, environ
        self._homes: dict[str, list[str]] = {}
        """Each key of the role's file -> the headers that it may stand under."""

    @classmethod
    def open(
        cls, path: str | Path | None, flags: Mapping[str, object], environ: Mapping[str, str]
    ) -> Reading:
        """With the file at `path`, or the one that RELAYD_CONFIG names, or none. Raises ConfigError: a file
        that can't be read, or isn't TOML, can't be looked at any further."""
        if path is not None:
            return cls(read_document(path), flags, environ)
        variable = f"{ENV_PREFIX}CONFIG"
        chosen = environ.get(variable)
        if not chosen:
            return cls(Document(), flags, environ)
        try:
            return cls(read_document(chosen), flags, environ)
        except ConfigError as error:
            if error.line is not None:
                raise
            raise ConfigError(error.problem, source=f"{variable}: {error.source}", hint=error.hint) from error

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A ConfigError in here is noted, and the rest of the block left out."""
        try:
            yield
        except ConfigError as error:
            self.errors.append(error)

    def in_order(self) -> list[ConfigError]:
        """The errors by line; flags and variables, which have none, come last."""
        last = float("inf")
        return sorted(self.errors, key=lambda error: last if error.line is None else error.line)

    def check_tables(
        self, role: Role, other: Role, misplaced: str, things: Mapping[str, Mapping[str, Key]] = NO_THINGS
    ) -> None:
        """Note each table and key that `role` has none of.

        `misplaced` is what to say of one that the `other` role has. `things` are the keys of the tables that
        describe things, by their headers (`[[peer]]`).
        """
        for setting in role.settings:
            self._homes.setdefault(setting.path[1], []).append(f"[{setting.table}]")
        for header, keys in things.items():
            for key in keys:
                self._homes.setdefault(key, []).append(header)
        hint = misplaced.format(table="file", has=", ".join(f"[{table}]" for table in role.all_tables))
        with self.noting():
            self._check_keys((), role.all_tables, dict.fromkeys(other.all_tables, hint))
        for table in dict.fromkeys(one.table for one in role.settings):
            known = [one.path[1] for one in role.settings if one.table == table]
            hint = misplaced.format(table=f"[{table}]", has=", ".join(known))
            others = {one.path[1]: hint for one in other.settings if one.table == table}
            with self.noting():
                self._check_keys((table,), known, others)

    def _check_keys(self, path: KeyPath, known: Sequence[str], others: Mapping[str, str]) -> None:
        """Note each key of the table at `path`, if there is one, that isn't `known`.

        `others` are keys that belong elsewhere, each with a word about it. Raises ConfigError: no table.
        """
        table = self.document.at(path)
        if table is None:
            return
        if not isinstance(table, dict):
            header = f"[{path[-1]}]" if isinstance(path[-1], str) else f"[[{path[-2]}]]"
            hint = f"write {header} on a line of its own, and its keys below"
            raise self.document.place(path).error(f"is {values.type_name(table)}, not a table", hint)
        for key, value in table.items():
            if key not in known:
                hint = others.get(key) or self._elsewhere(key)
                if not path and not isinstance(value, dict | list) and not hint:
                    hint = f"a key stands under its table: {', '.join(f'[{one}]' for one in known)}"
                hint = hint or values.suggestion(key, tuple(known))
                self.errors.append(self.document.place((*path, key)).error("unknown key", hint))

    def _elsewhere(self, key: str) -> str:
        """Where a key belongs that is right, and in the wrong place; "" for any other."""
        homes = self._homes.get(key)
        return f"it goes under {' or '.join(homes)}" if homes else ""

    def find_all(self, settings: Iterable[Setting]) -> dict[str, Found]:
        """Those of `settings` that something gives, and gives well, by name.

        Raises TypeError for a flag that none has: a bug.
        """
        settings = tuple(settings)
        if strangers := set(self._flags) - {one.flag_word for one in settings}:
            raise TypeError(f"no such flags: {', '.join(sorted(strangers))}")
        found = {}
        for setting in settings:
            with self.noting():
                one = self._find(setting)
                if one is not None:
                    found[setting.name] = one
        return found

    def _find(self, setting: Setting) -> Found | None:
        """The setting's value from the first that has it. An empty variable is one that is not set.

        What the file has is read also when it doesn't count: it is wrong today, not on the day without the
        flag.
        """
        in_file = None
        if self.document.at(setting.path) is not None:
            value = self.read_at(setting.path, setting.kind.read)
            in_file = Found(_plain(value, self.document.directory), self.document.place(setting.path))
        flag = self._flags.get(setting.flag_word)
        names = (setting.variable, *setting.variables)
        named, variable = next(((one, text) for one in names if (text := self.environ.get(one))), ("", ""))
        if flag is not None and flag != [] and flag != ():
            place, raw = Place(setting.flag), _from_flag(flag)
        elif variable:
            place, raw = Place(named), variable
        else:
            return in_file
        try:
            value = setting.kind.read(setting.kind.from_text(raw) if isinstance(raw, str) else raw)
        except WrongError as wrong:
            raise place.error(wrong.problem, wrong.hint) from wrong
        return Found(_plain(value), place, str(raw))

    def read_at(self, path: KeyPath, read: Callable[[object], T]) -> T:
        """The value at `path`, which is there, as `read` takes it. Raises ConfigError that points at it."""
        try:
            return read(self.document.at(path))
        except WrongError as wrong:
            raise self.document.place((*path, *wrong.at)).error(wrong.problem, wrong.hint) from wrong

    def read_table(self, path: KeyPath, keys: Mapping[str, Key]) -> dict[str, Any] | None:
        """The values of the table at `path` by name: those that are there, and all that must be.

        None when one is wrong or missing; that is noted.
        """
        before, result = len(self.errors), dict[str, Any]()
        with self.noting():
            self._check_keys(path, tuple(keys), {})
            # A key that is unknown here and one that is missing are mostly the same, misspelled.
            misspelled = len(self.errors) > before
            for name, key in keys.items():
                with self.noting():
                    if self.document.at((*path, name)) is not None:
                        result[name] = self.read_at((*path, name), key.kind.read)
                    elif key.required and not misspelled:
                        raise self.document.place(path, missing=name).error("missing", key.required)
        return result if len(self.errors) == before else None


def _plain(value: Any, directory: Path = Path()) -> Any:
    """Names of files as texts; relative ones start at `directory`."""
    if isinstance(value, tuple):
        return tuple(_plain(one, directory) for one in value)
    return str(directory / value) if isinstance(value, Path) else value


def _from_flag(flag: object) -> object:
    """A flag given several times is one text with commas, as a variable is."""
    if isinstance(flag, list | tuple):
        return ",".join(map(str, flag))
    return os.fspath(flag) if isinstance(flag, Path) else flag
