"""What a process tells its service manager, as bytes (sd_notify(3)). Pure.

A notification is one datagram of `NAME=value` lines, with descriptors beside it where the message is about
some. The whole vocabulary that relayd uses stands here.
"""

from __future__ import annotations

import re

READY = b"READY=1"
STOPPING = b"STOPPING=1"
WATCHDOG = b"WATCHDOG=1"

BARRIER = b"BARRIER=1"
"""Comes with the write end of a pipe, which the manager closes when it has seen all that was sent before."""

MAX_NAME_BYTES = 255
"""FDNAME_MAX (systemd, src/basic/fd-util.h)."""

_NAME = re.compile(rf"[\x20-\x39\x3b-\x7e]{{1,{MAX_NAME_BYTES}}}")


def status(text: str) -> bytes:
    """One line for a person: `systemctl status` shows it."""
    return b"STATUS=" + " ".join(text.split()).encode("utf-8", "replace")


def reloading(now_us: int) -> bytes:
    """Reading the configuration again, until the next READY. `now_us`: microseconds of CLOCK_MONOTONIC, by
    which the manager tells this reload's READY from an earlier one's (Type=notify-reload)."""
    return b"RELOADING=1\nMONOTONIC_USEC=%d" % now_us


def store(name: str, *, poll: bool) -> bytes:
    """Keep the descriptor beside this message, and give it to the next process under `name`.

    Not `poll`: keep it whatever happens to it; else the manager closes it when it hangs up (EPOLLHUP).
    Raises ValueError for a name that the manager wouldn't take.
    """
    return b"FDSTORE=1\nFDNAME=" + _checked(name) + (b"" if poll else b"\nFDPOLL=0")


def remove(name: str) -> bytes:
    """Close what is kept under `name`. Raises ValueError as `store`."""
    return b"FDSTOREREMOVE=1\nFDNAME=" + _checked(name)


def _checked(name: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a descriptor's name: {name!r} (1 to {MAX_NAME_BYTES} of ASCII, no colon)")
    return name.encode()
