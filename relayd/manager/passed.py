"""Descriptors that the manager gave this process when it started it: LISTEN_FDS (sd_listen_fds(3)).

Listeners of a socket unit, and what an earlier process put into the descriptor store, come the same way, each
with a name.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass

FIRST = 3
"""SD_LISTEN_FDS_START: they follow the standard streams, one after the other."""

UNNAMED = "unknown"
"""What the manager calls a descriptor that nobody named."""

VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True, slots=True)
class Passed:
    """One descriptor, open, ours to close."""

    name: str
    fd: int


def take_passed(environ: MutableMapping[str, str], *, pid: int | None = None) -> list[Passed]:
    """The descriptors that came with `environ`, in order; the variables that tell of them are taken out.

    None when they are for another process: it inherited the variables from one that was started so.
    They aren't inherited further by programs that this one runs. `pid` is our own unless given.
    Raises ValueError when the variables contradict themselves.
    """
    told = {name: environ.pop(name, None) for name in VARIABLES}
    count, whose = told["LISTEN_FDS"], told["LISTEN_PID"]
    if count is None or whose is None:
        return []
    if not (count.isascii() and count.isdigit() and whose.isascii() and whose.isdigit()):
        raise ValueError(f"LISTEN_FDS={count} LISTEN_PID={whose}: not numbers")
    if int(whose) != (os.getpid() if pid is None else pid):
        return []
    given = told["LISTEN_FDNAMES"]
    names = given.split(":") if given else [UNNAMED] * int(count)
    if len(names) != int(count):
        raise ValueError(f"LISTEN_FDS={count}, but LISTEN_FDNAMES names {len(names)}")
    passed = [Passed(name, fd) for fd, name in enumerate(names, FIRST)]
    for one in passed:
        try:
            os.set_inheritable(one.fd, False)
        except OSError as error:
            raise ValueError(f"LISTEN_FDS={count}, but descriptor {one.fd} isn't open") from error
    return passed
