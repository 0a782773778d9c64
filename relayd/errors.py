"""What can go wrong, by who has to act on it."""

from __future__ import annotations

from typing import TypeVar


class RelaydError(Exception):
    """Base of all errors that relayd raises on purpose; its text is meant for a person.

    ``exit_status`` is what the process ends with when nothing handles the error.
    """

    exit_status = 1


class ConfigError(RelaydError):
    """The configuration, a flag or an environment variable is wrong. Nothing on the host was changed.

    ``source`` names the file or flag, ``line`` (from 1) and ``key`` the place in it where known, and
    ``hint`` says what would be right.
    """

    exit_status = 2

    def __init__(
        self, problem: str, *, source: str = "", line: int | None = None, key: str = "", hint: str = ""
    ) -> None:
        self.problem, self.source, self.line, self.key, self.hint = problem, source, line, key, hint
        place = f"{source}:{line}" if source and line is not None else source
        text = ": ".join(part for part in (place, key, problem) if part)
        super().__init__(f"{text} ({hint})" if hint else text)


class HostError(RelaydError):
    """The host lacks something (a capability, a module, an interface); the text says how to get it."""

    exit_status = 3


class RemoteProtocolError(RelaydError):
    """The other side broke the protocol. It ends that one connection, and no other."""


Leaf = TypeVar("Leaf", bound=BaseException)


def leaves(group: BaseExceptionGroup[Leaf]) -> list[Leaf]:
    """The exceptions in a group, and in those within it."""
    return [
        leaf
        for one in group.exceptions
        for leaf in (leaves(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]
