"""Who holds a UDP port in this network namespace: sockets by /proc/net/udp, processes by /proc/PID/fd."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from relayd.doctor.facts import PortHolder
from relayd.observe.text import printable

_TABLES = {"udp": socket.AF_INET, "udp6": socket.AF_INET6}


def holders(ports: set[int]) -> tuple[PortHolder, ...]:
    """Everybody who has one of `ports`, on whatever address."""
    found = [
        entry
        for name, family in _TABLES.items()
        for entry in parse_table(_text(Path("/proc/self/net") / name), family)
        if entry[1] in ports
    ]
    if not found:
        return ()
    owners = _owners({inode for _, _, inode in found})
    return tuple(
        PortHolder(port, address, *(owners.get(inode) or (None, "", ""))) for address, port, inode in found
    )


def parse_table(text: str, family: int) -> Iterator[tuple[str, int, int]]:
    """(address, port, inode) of each socket in /proc/net/udp or udp6 (proc(5))."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10:
            continue
        address, _, port = fields[1].partition(":")
        # The address is printed as 32-bit words in the machine's byte order.
        words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
        packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
        yield socket.inet_ntop(family, packed), int(port, 16), int(fields[9])


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:  # a kernel without IPv6
        return ""


def _owners(inodes: set[int]) -> dict[int, tuple[int, str, str]]:
    """Socket inode -> (pid, name, command line), for those processes that we may look into."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, tuple[int, str, str]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for descriptor in (process / "fd").iterdir():
                inode = wanted.get(os.readlink(descriptor))
                if inode is not None and inode not in found:
                    found[inode] = (int(process.name), *_names(process))
        except OSError:  # it ended, or isn't ours to look into
            continue
    return found


def _names(process: Path) -> tuple[str, str]:
    name = (process / "comm").read_text().strip()
    words = (process / "cmdline").read_bytes().decode(errors="replace").strip("\0").split("\0")
    return printable(name), printable(" ".join(words))
