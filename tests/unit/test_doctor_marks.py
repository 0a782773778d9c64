"""Who else looks at bits of our mark: read out of what iptables and nft print."""

from __future__ import annotations

import pytest

from relayd.doctor.facts import FirewallDump
from relayd.doctor.mark_users import MarkUser, answers_alike, of_firewall, of_policy
from relayd.kernel.routing import MAIN, Rule


@pytest.mark.parametrize(
    ("value", "mask", "alike"),
    [
        (0x4000, 0x4000, False),  # kube-proxy: ours has the bit
        (0x0, 0x4000, False),  # "not marked by kube-proxy", as its nftables mode asks
        (0x8000, 0x8000, True),  # kubelet's drop
        (0x200, 0xF00, True),  # Cilium's proxy
        (0x700, 0xF00, False),
        (0x80000, 0xFF0000, True),  # Tailscale
        (0x10000, 0xFFFF0000, True),  # Calico
        (0xCA6C, 0xFFFFFFFF, True),  # wg-quick
        (0x574B, 0xFFFFFFFF, False),
        (0x0, 0xFFFFFFFF, False),  # "carries no mark at all"
    ],
)
def test_whether_a_test_tells_our_mark_from_none(value: int, mask: int, alike: bool) -> None:
    assert answers_alike(value, mask) is alike


def rule(table: str, text: str, program: str = "iptables-nft") -> list[MarkUser]:
    return of_firewall(FirewallDump(program, f"*{table}\n{text}\nCOMMIT\n"))


def nft(*lines: str, chain: str = "out", hook: str = "", table: str = "ip mine") -> list[MarkUser]:
    base = [f"type filter hook {hook} priority 0; policy accept;"] if hook else []
    body = "\n".join(f"\t\t{line}" for line in (*base, *lines))
    return of_firewall(FirewallDump("nft", f"table {table} {{\n\tchain {chain} {{\n{body}\n\t}}\n}}\n"))


@pytest.mark.parametrize(
    ("table", "text", "bits", "collides"),
    [
        ("nat", "-A K -m mark ! --mark 0x4000/0x4000 -j RETURN", (0x4000, 0x4000), True),
        ("filter", "-A F -m mark --mark 0x200/0xf00 -j ACCEPT", (0x200, 0xF00), False),
        ("filter", "-A F -m mark --mark 0x574b -j DROP", (0x574B, 0xFFFFFFFF), True),
        ("mangle", "-A OUTPUT -j MARK --set-xmark 0x1/0xffffffff", (0x1, 0xFFFFFFFF), True),
        ("mangle", "-A OUTPUT -j MARK --set-xmark 0x1/0x1", (0x1, 0x1), False),
        ("mangle", "-A OUTPUT -p tcp -j MARK --set-xmark 0x0/0xff", (0x0, 0xFF), False),
        ("mangle", "-A K -j MARK --set-xmark 0x4000/0x0", (0x4000, 0x4000), False),
        ("mangle", "-A OUTPUT -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", (0, 0xFF), True),
    ],
)
def test_iptables(table: str, text: str, bits: tuple[int, int], collides: bool) -> None:
    (user,) = rule(table, text)
    assert (user.value, user.mask) == bits
    assert user.collides is collides
    assert user.text == text
    assert user.place == f"iptables-nft {table} {text.split()[1]}"


@pytest.mark.parametrize(
    "text",
    [
        "-A F -m mark --mark 0x80000/0xff0000 -j DROP",
        "-A F -m connmark --mark 0x4000/0x4000 -j DROP",
        "-A OUTPUT -j CONNMARK --restore-mark --nfmask 0xf0000 --ctmask 0xf0000",
        "-A OUTPUT -m mark --mark 0x574b -j ACCEPT",
        "-A OUTPUT -o lo -m mark --mark 0x574b -j CT --notrack",
        ":F - [0:0]",
    ],
)
def test_iptables_rules_that_are_no_business_of_ours(text: str) -> None:
    assert rule("filter", text) == []


@pytest.mark.parametrize(
    ("line", "bits", "collides"),
    [
        ("meta mark & 0x00004000 == 0x00000000 return", (0x0, 0x4000), True),
        ("meta mark & 0x00000f00 != 0x00000200 accept", (0x200, 0xF00), False),
        ("meta mark 0x00000001 accept", (0x1, 0xFFFFFFFF), False),
        ("meta mark 0x0000574b drop", (0x574B, 0xFFFFFFFF), True),
        ("meta mark set 0x00000001", (0x1, 0xFFFFFFFF), True),
        ("meta mark set ct mark", (0x0, 0xFFFFFFFF), True),
        ("meta mark set meta mark | 0x00004000", (0x4000, 0x4000), False),
        ("meta mark set meta mark ^ 0x00004000", (0x4000, 0x4000), True),
        ("meta mark set meta mark & 0xffff0000", (0xFFFF0000, 0xFFFF), True),
        ("ip daddr 192.0.2.1 meta mark set 0x00000001", (0x1, 0xFFFFFFFF), False),
    ],
)
def test_nft(line: str, bits: tuple[int, int], collides: bool) -> None:
    (user,) = nft(line, hook="output")
    assert (user.value, user.mask) == bits
    assert user.collides is collides
    assert user.place == "nft ip mine out"


@pytest.mark.parametrize(
    "line",
    [
        "ct mark 0x00004000 accept",
        "ct mark set meta mark",
        "meta mark & 0x00ff0000 == 0x00080000 drop",
        "meta mark 0x0000574b return",
        "oif lo meta mark 0x0000574b notrack",
    ],
)
def test_nft_rules_that_are_no_business_of_ours(line: str) -> None:
    assert nft(line, hook="output") == []


def test_what_iptables_prints_itself_is_not_read_from_nft_once_more() -> None:
    assert nft("meta mark 0x0000574b drop", table="ip filter") == []


def test_a_set_that_nothing_leads_to_is_not_taken_for_a_collision() -> None:
    (user,) = nft("meta mark set 0x00000001", chain="elsewhere")
    assert not user.collides


def test_the_owner_is_known_by_the_chains_name() -> None:
    (user,) = rule("nat", "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN")
    assert user.owner == "kube-proxy, service traffic to be masqueraded"


def test_a_policy_rule_without_bits_of_ours_is_none_of_our_business() -> None:
    assert of_policy(Rule(version=4, priority=5, table=MAIN)) is None
    assert of_policy(Rule(version=4, priority=5, table=52, mark=0x80000, mask=0xFF0000)) is None
    found = of_policy(Rule(version=6, priority=5, table=52, mark=0x4000, mask=0x4000))
    assert found is not None
    assert (found.place, found.collides) == ("ip -6 rule", True)
