"""relayd's one firewall rule, in kubelet's chain KUBE-FIREWALL, where there is such a chain.

kubelet drops what comes to 127.0.0.0/8 with another source. Where a CNI rewrites sources on the way, that
hits the packets between WireGuard and the proxy on `lo`; the rule lets through what carries our mark.

iptables comes in two variants, with rules of their own each, and a host can have both, one or none: nft (its
binary is `iptables-nft`, or just `iptables`) and legacy likewise. A variant without a binary isn't looked at.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from relayd import marks
from relayd.errors import HostError
from relayd.kernel import hints

DEADLINE_S = 15.0
"""For one call. iptables waits for its lock (-w), and lists tens of thousands of rules in a second."""

LOCK_WAIT_S = 5

SPEC = (
    "-m", "mark", "--mark", f"{marks.FWMARK:#x}", "-d", "127.0.0.0/8", "-j", "ACCEPT",
    "-m", "comment", "--comment", marks.FIREWALL_COMMENT,
)  # fmt: skip
"""The rule, as iptables is told it."""

SEARCH_PATH = os.pathsep.join(("/usr/sbin", "/sbin", "/usr/local/sbin", os.environ.get("PATH", "")))
LEGACY_TABLES = Path("/proc/net/ip_tables_names")
"""Tables that legacy iptables has; asking for one that isn't there would load its module."""

NFT, LEGACY = "nft", "legacy"

_ABSENT = 1  # iptables' exit status for a chain, or a rule, that isn't there


@dataclass(frozen=True, slots=True)
class Chain:
    """KUBE-FIREWALL in one variant: how many rules, and which of them (from 1) are ours."""

    variant: str
    length: int
    ours: tuple[int, ...]

    @property
    def is_right(self) -> bool:
        """One copy, the first of all."""
        return self.ours == (1,)

    def __str__(self) -> str:
        return f"iptables-{self.variant} rule {marks.FIREWALL_CHAIN} -m mark --mark {marks.FWMARK:#x} ACCEPT"


class Firewall(Protocol):
    """The host's firewall, as far as that rule goes. Every call is bounded in time and raises HostError."""

    async def chains(self) -> list[Chain]:
        """KUBE-FIREWALL wherever there is one."""
        ...

    async def insert(self, variant: str) -> None:
        """The rule, as the first of the chain."""
        ...

    async def delete(self, variant: str) -> None:
        """One copy of the rule, if there is one."""
        ...


async def put_right(firewall: Firewall, chain: Chain) -> None:
    """Make it exactly one copy, the first of the chain. Raises HostError."""
    for _ in chain.ours:
        await firewall.delete(chain.variant)
    await firewall.insert(chain.variant)


class Iptables:
    """The firewall by iptables' binaries."""

    def __init__(self, search_path: str = SEARCH_PATH) -> None:
        self._search_path = search_path
        self._binaries: dict[str, str] | None = None

    async def chains(self) -> list[Chain]:
        """See Firewall."""
        found = []
        for variant in await self.binaries():
            if variant == LEGACY and not legacy_filter_exists():
                continue
            status, listing = await self._run(variant, "-S", marks.FIREWALL_CHAIN, may_fail=True)
            if status == 0:
                found.append(chain_of(variant, listing))
        return found

    async def insert(self, variant: str) -> None:
        """See Firewall."""
        await self._run(variant, "-I", marks.FIREWALL_CHAIN, "1", *SPEC)

    async def delete(self, variant: str) -> None:
        """See Firewall."""
        await self._run(variant, "-D", marks.FIREWALL_CHAIN, *SPEC, may_fail=True)

    async def binaries(self) -> dict[str, str]:
        """Variant -> path of its binary, for those that are installed. Raises HostError."""
        if self._binaries is None:
            found = {}
            for variant in (NFT, LEGACY):
                if path := shutil.which(f"iptables-{variant}", path=self._search_path):
                    found[variant] = path
            plain = shutil.which("iptables", path=self._search_path)
            if plain is not None and len(found) < 2:
                _, version = await self._call([plain, "--version"])
                # "iptables v1.8.9 (nf_tables)"; before 1.8 there was only legacy, and no word for it.
                found.setdefault(NFT if "nf_tables" in version else LEGACY, plain)
            self._binaries = found
        return self._binaries

    async def _run(self, variant: str, *arguments: str, may_fail: bool = False) -> tuple[int, str]:
        """-> exit status, output. With `may_fail`, that chain or rule isn't there is no error."""
        binary = (await self.binaries())[variant]
        argv = [binary, "-w", str(LOCK_WAIT_S), "-t", "filter", *arguments]
        status, output = await self._call(argv)
        if "ermission" in output or "you must be root" in output:
            raise hints.lacks_capability(f"run {os.path.basename(binary)}")
        # A kernel without nf_tables has no such chain either.
        if status == 0 or (may_fail and (status == _ABSENT or "not supported" in output)):
            return status, output
        raise HostError(f"`{shlex.join(argv)}` failed with status {status}: {output.strip()}")

    async def _call(self, argv: list[str]) -> tuple[int, str]:
        with trio.move_on_after(DEADLINE_S):
            try:
                done = await trio.run_process(
                    argv, capture_stdout=True, stderr=subprocess.STDOUT, check=False,
                    env={"PATH": self._search_path, "LC_ALL": "C"},
                )  # fmt: skip
            except OSError as error:
                raise HostError(f"cannot run {argv[0]}: {error.strerror}") from error
            return done.returncode, done.stdout.decode(errors="replace")
        raise hints.no_answer(f"run `{shlex.join(argv)}`", "it", DEADLINE_S)


def chain_of(variant: str, listing: str) -> Chain:
    """The chain that `iptables -S KUBE-FIREWALL` lists."""
    begin = ["-A", marks.FIREWALL_CHAIN]
    rules = []
    for line in listing.splitlines():
        if line.startswith("-A "):
            words = shlex.split(line)
            if words[:2] == begin:
                rules.append(words[2:])
    # The order of matches is iptables' own: it lists others first than were given first.
    wanted = sorted(SPEC)
    ours = tuple(number for number, words in enumerate(rules, 1) if sorted(words) == wanted)
    return Chain(variant, len(rules), ours)


# --- has anything changed? ---


def legacy_filter_exists() -> bool:
    """Whether legacy iptables has a filter table in this network namespace."""
    try:
        return "filter" in LEGACY_TABLES.read_text().split()
    except OSError:  # the module was never loaded, or this isn't root
        return False


_IPT_SO_GET_INFO = 64  # linux/netfilter_ipv4/ip_tables.h


class _IptGetinfo(ctypes.Structure):
    """struct ipt_getinfo, of the same header."""

    _fields_ = [
        ("name", ctypes.c_char * 32),
        ("valid_hooks", ctypes.c_uint),
        ("hook_entry", ctypes.c_uint * 5),
        ("underflow", ctypes.c_uint * 5),
        ("num_entries", ctypes.c_uint),
        ("size", ctypes.c_uint),
    ]


def legacy_size() -> tuple[int, int] | None:
    """Rules and bytes of legacy iptables' filter table; None: it has none, or we may not know.

    The kernel tells nobody when legacy iptables replaces the table. This is a cheap way to notice.
    """
    if not legacy_filter_exists():
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    info = _IptGetinfo(name=b"filter")
    length = ctypes.c_uint(ctypes.sizeof(info))
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:  # no descriptors left: the periodic look finds what this doesn't
        return None
    with sock:
        failed = libc.getsockopt(
            sock.fileno(), socket.IPPROTO_IP, _IPT_SO_GET_INFO, ctypes.byref(info), ctypes.byref(length)
        )
    return None if failed else (info.num_entries, info.size)
