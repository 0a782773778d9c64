"""A command line's words as plain values."""

from __future__ import annotations

from dataclasses import dataclass

FILES, DIRECTORIES = ("FILE", "PATH"), ("DIR",)
"""What stands for a value tells what a shell completes it with."""


@dataclass(frozen=True, slots=True)
class Option:
    """One flag, or one argument without a flag."""

    flags: tuple[str, ...]
    """() for an argument without."""

    value: str
    """What stands for its value, as help has it; "" when it takes none."""

    help: str
    group: str
    choices: tuple[str, ...] = ()
    several: bool = False
    optional: bool = False
    """Its value, or an argument without a flag, may be left out."""

    @property
    def takes_file(self) -> bool:
        return self.value.startswith(FILES)

    @property
    def takes_directory(self) -> bool:
        return self.value.startswith(DIRECTORIES)


@dataclass(frozen=True, slots=True)
class Command:
    """One command, or one action of a command."""

    words: tuple[str, ...]
    """`("config", "check")`."""

    summary: str
    description: str
    epilog: str
    options: tuple[Option, ...]
    actions: tuple[Command, ...] = ()
    """`relayd config` has check and show."""
