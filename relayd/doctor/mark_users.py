"""Who else looks at bits of our mark: policy rules, iptables and nftables rules. Pure.

A mark is 32 bits for everybody on the host, and everybody takes the bits that they like: kube-proxy
0x4000, Calico 0xffff0000, Cilium 0x0f00, Tailscale 0xff0000. What counts is one thing: does a rule decide
otherwise for a packet with our mark than for one without any? `0x574b & 0x4000` is 0x4000, for instance: to
kube-proxy each of our packets is one that it has marked itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from relayd.doctor.facts import FirewallDump
from relayd.kernel.routing import Rule
from relayd.marks import FWMARK

_ALL_BITS = 0xFFFFFFFF

KNOWN_OWNERS = {
    "KUBE-POSTROUTING": "kube-proxy, service traffic to be masqueraded",
    "kube-proxy": "kube-proxy, service traffic to be masqueraded",
    "KUBE-MARK-DROP": "kubelet",
    "CILIUM": "Cilium",
    "cali-": "Calico",
    "ts-": "Tailscale",
    "FLANNEL": "flannel",
    "CNI-HOSTPORT": "the portmap CNI plug-in",
    "KUBE-ROUTER": "kube-router",
    "WEAVE": "Weave",
}
"""Part of a chain's or table's name -> whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkUser:
    """A rule that looks at bits of our mark, or changes them."""

    place: str
    """The program's name, table and chain; or "ip rule", "ip -6 rule"."""

    text: str
    value: int
    mask: int
    kind: Literal["test", "set"]
    collides: bool
    """A test that our mark answers otherwise than no mark; a change of our mark that nothing guards."""

    @property
    def owner(self) -> str:
        """Whose the rule is, by the names of the place; "" when unknown."""
        return next((owner for part, owner in KNOWN_OWNERS.items() if part in self.place), "")


def answers_alike(value: int, mask: int) -> bool:
    """Whether the test `mark & mask == value` has one answer for a packet with our mark and one with none."""
    return ((FWMARK & mask) == value) == (value == 0)


def of_policy(rule: Rule) -> MarkUser | None:
    """What a policy rule has to do with bits of our mark; None: nothing."""
    if rule.mark is None or not rule.mask & FWMARK:
        return None
    return MarkUser(
        place="ip rule" if rule.version == 4 else "ip -6 rule",
        text=f"{rule} (inverted)" if "not" in rule.selectors else str(rule),
        value=rule.mark,
        mask=rule.mask,
        kind="test",
        collides=not answers_alike(rule.mark, rule.mask),
    )


def of_firewall(dump: FirewallDump) -> list[MarkUser]:
    """The rules of one program's dump. Those that let exactly our mark pass are taken for ours."""
    found = _of_nft(dump) if dump.program == "nft" else _of_iptables(dump)
    return [user for user in found if user.mask & FWMARK and not _is_ours(user)]


def _is_ours(user: MarkUser) -> bool:
    exact = user.kind == "test" and user.value == FWMARK and user.mask == _ALL_BITS
    return exact and _LETS_PASS.search(user.text) is not None


_LETS_PASS = re.compile(r"-j (ACCEPT|RETURN|CT --notrack|NOTRACK)\b|\b(accept|return|notrack)\b")
"""What a rule for exactly our mark may do with our packets, and be for us."""

# --- iptables-save ---

_TABLE = re.compile(r"\*(\S+)$")
_RULE = re.compile(r"-A (\S+) (.*)$")
# (`-m connmark --mark` is the connection's mark, not the packet's.)
_MATCH = re.compile(r"-m mark (! )?--mark (0x[0-9a-f]+)(?:/(0x[0-9a-f]+))?")
_SET = re.compile(r"-j MARK --set-x?mark (0x[0-9a-f]+)(?:/(0x[0-9a-f]+))?$")
_RESTORE = re.compile(r"-j CONNMARK --restore-mark(?: --nfmask (0x[0-9a-f]+))?")


def _of_iptables(dump: FirewallDump) -> Iterator[MarkUser]:
    table = ""
    for line in dump.text.splitlines():
        if heading := _TABLE.match(line):
            table = heading[1]
        if (rule := _RULE.match(line)) is None:
            continue
        chain, body = rule[1], rule[2]
        place = f"{dump.program} {table} {chain}"
        for match in _MATCH.finditer(body):
            yield _test(place, line, int(match[2], 16), int(match[3] or "0xffffffff", 16))
        # In other chains something has chosen the packets before: that is a test, and seen as one.
        unguarded = chain == "OUTPUT" and body.startswith("-j ")
        if change := _SET.search(body):
            # xt_MARK: mark = (mark & ~mask) ^ value
            value, mask = int(change[1], 16), int(change[2] or "0xffffffff", 16)
            changes = ((FWMARK & ~mask) ^ value) != FWMARK
            yield _change(place, line, value, mask | value, collides=unguarded and changes)
        elif restore := _RESTORE.search(body):
            mask = int(restore[1] or "0xffffffff", 16)
            yield _change(place, line, 0, mask, collides=unguarded and bool(mask & FWMARK))


# --- nft list ruleset ---

_NFT_TABLE = re.compile(r"table (\S+) (\S+) \{$")
_NFT_CHAIN = re.compile(r"chain (\S+) \{$")
_NFT_HOOK = re.compile(r"type \S+ hook (\S+) ")
_NFT_TEST = re.compile(
    r"(?<!ct )(?<!set )\b(?:meta )?mark (?:(?:&|and) (0x[0-9a-f]+) )?(==|!=)? ?(0x[0-9a-f]+)\b"
)
_NFT_SET = re.compile(
    r"(?<!ct )\b(?:meta )?mark set (?:(?:meta )?mark (?P<how>[&|^]|and|or|xor) )?"
    r"(?P<value>0x[0-9a-f]+|ct mark)"
)
_IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")


def _of_nft(dump: FirewallDump) -> Iterator[MarkUser]:
    table = chain = hook = ""
    skipped = False
    for line in (line.strip() for line in dump.text.splitlines()):
        if heading := _NFT_TABLE.match(line):
            table = f"{heading[1]} {heading[2]}"
            # iptables-nft's own: they are read as iptables prints them.
            skipped = heading[1] in ("ip", "ip6") and heading[2] in _IPTABLES_TABLES
        elif heading := _NFT_CHAIN.match(line):
            chain, hook = heading[1], ""
        elif heading := _NFT_HOOK.match(line):
            hook = heading[1]
        elif not skipped:
            place = f"nft {table} {chain}"
            for match in _NFT_TEST.finditer(line):
                yield _test(place, line, int(match[3], 16), int(match[1] or "0xffffffff", 16))
            if (change := _NFT_SET.search(line)) is not None:
                yield _nft_change(place, line, change, unguarded=hook == "output" and change.start() == 0)


def _nft_change(place: str, line: str, change: re.Match[str], *, unguarded: bool) -> MarkUser:
    how = change["how"] or ""
    if change["value"] == "ct mark":
        return _change(place, line, 0, _ALL_BITS, collides=unguarded)
    value = int(change["value"], 16)
    after = {"&": FWMARK & value, "|": FWMARK | value, "^": FWMARK ^ value, "": value}
    words = {"and": "&", "or": "|", "xor": "^"}
    operator = words.get(how, how)
    mask = {"&": ~value & _ALL_BITS, "|": value, "^": value, "": _ALL_BITS}[operator]
    return _change(place, line, value, mask, collides=unguarded and after[operator] != FWMARK)


def _test(place: str, text: str, value: int, mask: int) -> MarkUser:
    collides = not answers_alike(value, mask)
    return MarkUser(place=place, text=text, value=value, mask=mask, kind="test", collides=collides)


def _change(place: str, text: str, value: int, mask: int, *, collides: bool) -> MarkUser:
    return MarkUser(place=place, text=text, value=value, mask=mask, kind="set", collides=collides)
