"""relayd's firewall rules: its exemptions from two chains of Kubernetes, where there are such chains.

KUBE-FIREWALL (table filter) is kubelet's. It drops what comes to 127.0.0.0/8 with another source. Where a CNI
rewrites sources on the way, that hits the packets between WireGuard and the proxy on `lo`; our rule, the
chain's first, lets through what carries our mark.

KUBE-POSTROUTING (table nat) is kube-proxy's, in its modes iptables and ipvs. It gives another source to what
carries the bit 0x4000 of the mark, and 0x574b contains that. The agent refuses datagrams from a port that
isn't WireGuard's, and peers would see a port that changes. kube-proxy fills that chain anew every time; so
our rule stands in POSTROUTING, before the one that leads there, and marked packets never get there.

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
from collections.abc import Iterator
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

_FOR_MARKED = ("-m", "mark", "--mark", f"{marks.FWMARK:#x}")


@dataclass(frozen=True, slots=True)
class Exemption:
    """A rule of ours for marked packets, and the chain that it keeps them from."""

    table: str
    chain: str
    """Where the rule stands."""

    spec: tuple[str, ...]
    """The rule, as iptables is told it."""

    keeps_from: str
    """The chain of Kubernetes. Where it isn't `chain` itself, the rule stands before the jump to it."""

    versions: tuple[int, ...]
    """4: iptables, 6: ip6tables."""


KUBELET = Exemption(
    "filter",
    marks.FIREWALL_CHAIN,
    (*_FOR_MARKED, "-d", "127.0.0.0/8", "-j", "ACCEPT", "-m", "comment", "--comment", marks.FIREWALL_COMMENT),
    marks.FIREWALL_CHAIN,
    versions=(4,),
)
KUBE_PROXY = Exemption(
    "nat",
    "POSTROUTING",
    (*_FOR_MARKED, "-j", "ACCEPT", "-m", "comment", "--comment", marks.NAT_COMMENT),
    marks.NAT_CHAIN,
    versions=(4, 6),
)
EXEMPTIONS = (KUBELET, KUBE_PROXY)

SEARCH_PATH = os.pathsep.join(("/usr/sbin", "/sbin", "/usr/local/sbin", os.environ.get("PATH", "")))
LEGACY_TABLES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}
"""Tables that legacy iptables has; asking for one that isn't there would load its module."""

NFT, LEGACY = "nft", "legacy"

_ABSENT = 1  # iptables' exit status for a chain, or a rule, that isn't there


@dataclass(frozen=True, slots=True)
class Chain:
    """An exemption's chain in one variant: how many rules, and which of them (from 1) are ours."""

    variant: str
    length: int
    ours: tuple[int, ...]
    exemption: Exemption = KUBELET
    version: int = 4
    jump: int = 0
    """The first rule that leads to `keeps_from`, where that is another chain; 0: none does."""

    @property
    def is_right(self) -> bool:
        """One copy: the first of all, or before the jump. With no jump (any more) it does no harm."""
        if self.exemption.keeps_from == self.exemption.chain:
            return self.ours == (1,)
        return not self.jump or (len(self.ours) == 1 and self.ours[0] < self.jump)

    @property
    def place(self) -> int:
        """Where the rule belongs, once the copies that there are have gone."""
        return max(1, self.jump - sum(number < self.jump for number in self.ours))

    @property
    def program(self) -> str:
        """What lists it."""
        return f"{'iptables' if self.version == 4 else 'ip6tables'}-{self.variant}"

    def __str__(self) -> str:
        return f"{self.program} rule {self.exemption.chain} {' '.join(_FOR_MARKED)} ACCEPT"


class Firewall(Protocol):
    """The host's firewall, as far as those rules go. Every call is bounded in time and raises HostError."""

    async def chains(self) -> list[Chain]:
        """The exemptions' chains, wherever there is one to be exempted from, or a rule of ours."""
        ...

    async def insert(self, chain: Chain) -> None:
        """The rule, at its place."""
        ...

    async def delete(self, chain: Chain) -> None:
        """One copy of the rule, if there is one."""
        ...


async def put_right(firewall: Firewall, chain: Chain) -> None:
    """Make it exactly one copy, at its place. Raises HostError."""
    for _ in chain.ours:
        await firewall.delete(chain)
    await firewall.insert(chain)


class Iptables:
    """The firewall by iptables' binaries."""

    def __init__(self, search_path: str = SEARCH_PATH) -> None:
        self._search_path = search_path
        self._binaries: dict[tuple[str, int], str] | None = None

    async def chains(self) -> list[Chain]:
        """See Firewall."""
        found = []
        for variant, version in await self.binaries():
            for one in EXEMPTIONS:
                if version not in one.versions or (
                    variant == LEGACY and one.table not in legacy_tables(version)
                ):
                    continue
                command = (variant, version, one.table, "-S", one.chain)
                status, listing = await self._run(*command, may_fail=True)
                chain = chain_of(variant, listing, one, version)
                if status == 0 and (one.chain == one.keeps_from or chain.jump or chain.ours):
                    found.append(chain)
        return found

    async def insert(self, chain: Chain) -> None:
        """See Firewall."""
        where = ("-I", chain.exemption.chain, str(chain.place))
        await self._run(chain.variant, chain.version, chain.exemption.table, *where, *chain.exemption.spec)

    async def delete(self, chain: Chain) -> None:
        """See Firewall."""
        command = (chain.variant, chain.version, chain.exemption.table, "-D", chain.exemption.chain)
        await self._run(*command, *chain.exemption.spec, may_fail=True)

    async def binaries(self) -> dict[tuple[str, int], str]:
        """(Variant, version) -> path of its binary, for those that are installed. Raises HostError."""
        if self._binaries is None:
            found = {}
            for version, name in ((4, "iptables"), (6, "ip6tables")):
                for variant in (NFT, LEGACY):
                    if path := shutil.which(f"{name}-{variant}", path=self._search_path):
                        found[variant, version] = path
                plain = shutil.which(name, path=self._search_path)
                if plain is not None and not {(NFT, version), (LEGACY, version)} <= set(found):
                    _, said = await self._call([plain, "--version"])
                    # "iptables v1.8.9 (nf_tables)"; before 1.8 there was only legacy, and no word for it.
                    found.setdefault((NFT if "nf_tables" in said else LEGACY, version), plain)
            self._binaries = found
        return self._binaries

    async def _run(
        self, variant: str, version: int, table: str, *arguments: str, may_fail: bool = False
    ) -> tuple[int, str]:
        """-> exit status, output. With `may_fail`, that chain or rule isn't there is no error."""
        binary = (await self.binaries())[variant, version]
        argv = [binary, "-w", str(LOCK_WAIT_S), "-t", table, *arguments]
        status, output = await self._call(argv)
        # Of what it lists, comments are somebody's own words.
        if status != 0 and ("ermission" in output or "you must be root" in output):
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


def chain_of(variant: str, listing: str, exemption: Exemption = KUBELET, version: int = 4) -> Chain:
    """The chain that `iptables -S CHAIN` lists."""
    rules = [words[2:] for words in _rules_of(listing) if words[1] == exemption.chain]
    # The order of matches is iptables' own: it lists others first than were given first.
    wanted = sorted(exemption.spec)
    ours = tuple(number for number, words in enumerate(rules, 1) if sorted(words) == wanted)
    jumps = (number for number, words in enumerate(rules, 1) if words[-2:] == ["-j", exemption.keeps_from])
    return Chain(variant, len(rules), ours, exemption, version, jump=next(jumps, 0))


def _rules_of(listing: str) -> Iterator[list[str]]:
    """The words of each rule: from "-A", its chain on."""
    begun = ""
    for line in listing.split("\n"):
        begun = f"{begun}\n{line}" if begun else line
        try:
            words = shlex.split(begun) if begun.startswith("-A ") else []
        except ValueError:  # a line break in a comment: the next line belongs to it
            continue
        begun = ""
        if len(words) > 1:
            yield words


# --- has anything changed? ---


def legacy_tables(version: int = 4) -> list[str]:
    """The tables that legacy iptables (6: ip6tables) has in this network namespace."""
    try:
        return LEGACY_TABLES[version].read_text().split()
    except OSError:  # the module was never loaded, or this isn't root
        return []


_IPT_SO_GET_INFO = 64  # linux/netfilter_ipv4/ip_tables.h; IP6T_SO_GET_INFO likewise
_SOL_IP, _SOL_IPV6 = 0, 41  # linux/socket.h


class _IptGetinfo(ctypes.Structure):
    """struct ipt_getinfo, of the same header. struct ip6t_getinfo is the same."""

    _fields_ = [
        ("name", ctypes.c_char * 32),
        ("valid_hooks", ctypes.c_uint),
        ("hook_entry", ctypes.c_uint * 5),
        ("underflow", ctypes.c_uint * 5),
        ("num_entries", ctypes.c_uint),
        ("size", ctypes.c_uint),
    ]


def legacy_size() -> tuple[tuple[int, int], ...]:
    """Rules and bytes of each of legacy iptables' tables that have an exemption; () when it has none of them,
    or we may not know.

    The kernel tells nobody when legacy iptables replaces a table. This is a cheap way to notice.
    """
    found: list[tuple[int, int]] = []
    for version, family, level in ((4, socket.AF_INET, _SOL_IP), (6, socket.AF_INET6, _SOL_IPV6)):
        present = legacy_tables(version)
        tables = [one.table for one in EXEMPTIONS if version in one.versions and one.table in present]
        if not tables:
            continue
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:  # no descriptors left: the periodic look finds what this doesn't
            continue
        with sock:
            found += [size for table in tables if (size := _size_of(sock, level, table)) is not None]
    return tuple(found)


def _size_of(sock: socket.socket, level: int, table: str) -> tuple[int, int] | None:
    libc = ctypes.CDLL(None, use_errno=True)
    info = _IptGetinfo(name=table.encode())
    length = ctypes.c_uint(ctypes.sizeof(info))
    failed = libc.getsockopt(sock.fileno(), level, _IPT_SO_GET_INFO, ctypes.byref(info), ctypes.byref(length))
    return None if failed else (info.num_entries, info.size)
