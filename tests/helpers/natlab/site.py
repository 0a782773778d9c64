"""What is to be built: sites, each behind NATs of some kind, and the rules that make a router one of them.

All of it concerns UDP; TCP and ICMP get a plain masquerade. The terms are RFC 4787's (mapping and filtering),
the names in brackets those of RFC 3489. IPv6 is never translated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address

MAPPING_S = 120
"""How long full_cone and address_restricted remember a mapping that nobody uses: the least that RFC 4787
(REQ-5) allows. The others' is conntrack's own, `Site.udp_timeout_s`."""

FIRST_SEQUENTIAL_PORT, SEQUENTIAL_PORTS = 40000, 2000


class Nat(Enum):
    """One router's kind."""

    FULL_CONE = "full_cone"
    """Mapping and filtering endpoint-independent: whoever knows a mapping gets in."""
    ADDRESS_RESTRICTED = "address_restricted"
    """Mapping endpoint-independent, filtering by address."""
    PORT_RESTRICTED = "port_restricted"
    """Mapping endpoint-independent, filtering by address and port. It keeps the source port while that is
    free, as Linux does: two hosts behind one such NAT must use two ports, or the second has another mapping
    for each destination."""
    SYMMETRIC = "symmetric"
    """Mapping and filtering by address and port; ports are drawn at random."""
    SYMMETRIC_SEQUENTIAL = "symmetric_sequential"
    """As SYMMETRIC, but each new mapping gets the next port."""
    UDP_BLOCKED = "udp_blocked"
    """All UDP is dropped, of both families: only TCP gets out."""


class Ipv6(Enum):
    """What a site has of IPv6."""

    NONE = "none"
    FIREWALL = "firewall"
    """Only answers get in (RFC 6092)."""
    OPEN = "open"


@dataclass(frozen=True)
class Site:
    """`nats` is from the host outwards: (PORT_RESTRICTED, SYMMETRIC) is a home router behind a carrier's NAT.
    None at all: the host itself holds the public address.

    With `hosts` 2 there is a second one, called NAME2, and so on. `hairpin`: hosts behind the innermost NAT
    reach each other by their public addresses too (RFC 4787, REQ-9). `isolated`: and not by their own ones,
    as many a wireless network has it. `udp_timeout_s`: how long conntrack keeps a mapping; it counts from
    the last packet either way.
    """

    name: str
    nats: tuple[Nat, ...] = ()
    hosts: int = 1
    ipv6: Ipv6 = Ipv6.FIREWALL
    hairpin: bool = False
    isolated: bool = False
    udp_timeout_s: int | None = None

    def __post_init__(self) -> None:
        if self.hosts != 1 and not self.nats:
            raise ValueError("only behind a NAT can there be several hosts")
        if self.hairpin and self.nats[:1] not in ((Nat.FULL_CONE,), (Nat.PORT_RESTRICTED,)):
            raise ValueError("hairpinning is there for full_cone and port_restricted")


def router_rules(
    nat: Nat,
    *,
    outside: IPv4Address,
    hairpin: bool = False,
    isolated: bool = False,
    wall6: bool = False,
    remake: bool = False,
) -> str:
    """nftables rules of a router whose uplink is `wan`, with the address `outside`; its downlinks are `lan*`.

    `isolated`: between downlinks only a hairpin leads. `wall6`: IPv6 lets only answers in. `remake`: replace
    the rules of before.
    """
    into, out, note = "", "masquerade", ""
    if nat in (Nat.FULL_CONE, Nat.ADDRESS_RESTRICTED) or hairpin:
        # After source NAT: the port is the mapped one here.
        note = "update @mapped { udp sport : ct original ip saddr . ct original proto-src }"
    if nat is Nat.FULL_CONE:
        into = 'iifname "wan" meta l4proto udp dnat ip to udp dport map @mapped'
    elif nat is Nat.ADDRESS_RESTRICTED:
        note += "\n        update @sent { ip daddr . udp sport }"
        into = 'iifname "wan" ip saddr . udp dport @sent dnat ip to udp dport map @mapped'
    elif nat is Nat.SYMMETRIC:
        out = "meta l4proto udp masquerade fully-random\n        masquerade"
    elif nat is Nat.SYMMETRIC_SEQUENTIAL:
        ports = ", ".join(f"{n} : {FIRST_SEQUENTIAL_PORT + n}" for n in range(SEQUENTIAL_PORTS))
        out = (
            f"meta l4proto udp masquerade to :numgen inc mod {SEQUENTIAL_PORTS} map {{ {ports} }}"
            "\n        masquerade"
        )
    if hairpin:
        into += (
            f'\n        iifname "lan*" ip daddr {outside} meta l4proto udp dnat ip to udp dport map @mapped'
        )
    back = f'oifname "lan*" iifname "lan*" ct status dnat snat to {outside}' if hairpin else ""
    return f"""
{"delete table ip nat; delete table inet wall" if remake else ""}
table ip nat {{
    map mapped {{
        type inet_service : ipv4_addr . inet_service
        flags dynamic,timeout; timeout {MAPPING_S}s; size 65535
    }}
    set sent {{ type ipv4_addr . inet_service; flags dynamic,timeout; timeout {MAPPING_S}s; size 65535; }}
    chain into {{ type nat hook prerouting priority dstnat
        {into}
    }}
    chain out {{ type nat hook postrouting priority srcnat
        {back}
        oifname "wan" jump leaving
    }}
    chain leaving {{
        {out}
    }}
    chain note {{ type filter hook postrouting priority srcnat + 10
        oifname "wan" meta l4proto udp jump noted
    }}
    chain noted {{
        {note}
    }}
    # Conntrack clash: were a stranger's early packet taken in here, it would be recorded as a connection to
    # the router itself, and the host's own packet to that stranger would find its port taken and leave from
    # another one, so that punching fails. Real routers drop such input, and unconfirmed entries vanish.
    chain input {{ type filter hook input priority filter
        ct state established,related accept
        iifname "wan" meta l4proto icmp accept
        iifname "wan" drop
    }}
}}
table inet wall {{
    chain forward {{ type filter hook forward priority filter
        {"meta l4proto udp drop" if nat is Nat.UDP_BLOCKED else ""}
        {ISOLATED if isolated else ""}
        {WALL6 if wall6 else ""}
    }}
}}
"""


ISOLATED = """iifname "lan*" oifname "lan*" ct status dnat accept
        iifname "lan*" oifname "lan*" drop"""

WALL6 = """meta nfproto ipv4 accept
        ct state established,related accept
        meta l4proto ipv6-icmp accept
        iifname "wan" drop"""
