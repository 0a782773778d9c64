"""Sites and public hosts around one core router, as nodes of a laboratory.

    public host          203.0.113.N      2001:db8:0:N::1
    a site's router      203.0.113.N      2001:db8:0:N::1     (one for each NAT; inner ones 100.64.N.x)
    a site's hosts       192.168.N.2, .3  2001:db8:1:N::2, ::3

Each node hangs on a wire of its own (no bridge), so that every access link can be impaired or cut alone. A
host's only interface is `eth0`; without a NAT it holds the public address itself.

Of the kernel only veth and nf_tables are needed; delays, jitter and duplication need netem as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from relayd.demo.lab import Lab, Node
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from tests.helpers.inside import inside
from tests.helpers.natlab.site import Ipv6, Nat, Site, router_rules

_GATEWAY6 = IPv6Address("fe80::1")
"""A router's address on each of its downlinks."""
_UPLINK6 = IPv6Address("fe80::2")
_FRESH_FROM = 100
"""New public addresses of sites that are renumbered: 203.0.113.100 and up."""

_CORE_RULES = """
table inet core {
    set cut4 { type ipv4_addr . ipv4_addr; }
    set cut6 { type ipv6_addr . ipv6_addr; }
    chain loss { type filter hook prerouting priority raw; }
    chain cut { type filter hook forward priority filter
        ip saddr . ip daddr @cut4 drop
        ip6 saddr . ip6 daddr @cut6 drop
    }
}
"""


class UnsupportedError(Exception):
    """This kernel lacks what was asked for (netem): the test is for another one."""


@dataclass
class Place:
    """A site or a public host as it was built."""

    number: int
    site: Site
    address: IPv4Address
    """As the rest of the internet sees it."""
    prefix6: IPv6Address | None
    hosts: list[Node] = field(default_factory=list)
    routers: list[Node] = field(default_factory=list)
    """From the hosts outwards."""

    @property
    def edge(self) -> tuple[Node, str]:
        """Who holds the public address, and on which interface."""
        return (self.routers[-1], "wan") if self.routers else (self.hosts[0], "eth0")

    def outside_of(self, layer: int) -> IPv4Address:
        """The outer address of the router at `layer`."""
        if layer == len(self.routers) - 1:
            return self.address
        return IPv4Address(f"100.64.{self.number}.{layer + 2}")


class Internet:
    """See the module. Used as a context manager; everything goes with it."""

    def __init__(self, sites: Sequence[Site], public: Sequence[str] = ("relay", "stun1", "stun2")) -> None:
        """Raises HostError when the host allows no namespaces, or nft is missing."""
        self.lab = Lab()
        self.places: dict[str, Place] = {}
        self._fresh: Iterator[int] = itertools.count(_FRESH_FROM)
        self._lossy: dict[str, float] = {}
        try:
            self._core = self._router("core")
            self._nft(self._core, _CORE_RULES)
            everybody = [Site(name, ipv6=Ipv6.OPEN) for name in public] + list(sites)
            for number, site in enumerate(everybody, 1):
                self.places[site.name] = self._build(number, site)
        except BaseException:
            self.lab.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lab.close()

    # Building -----------------------------------------------------------------------------------------------

    def _node(self, name: str) -> Node:
        node = self.lab.node(name)
        # Addresses are given, and must be usable at once: no detection of duplicates, no waiting for routers.
        settings = ("accept_dad", "accept_ra")
        node.run(
            "sh", "-c",
            "for one in all default; do "
            + "".join(f"echo 0 > /proc/sys/net/ipv6/conf/$one/{name}; " for name in settings)
            + "echo 0 > /proc/sys/net/ipv4/conf/$one/rp_filter; done",
        )  # fmt: skip
        return node

    def _router(self, name: str) -> Node:
        node = self._node(name)
        forward = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
        node.run("sh", "-c", "; ".join(f"echo 1 > /proc/sys/{key}" for key in forward))
        return node

    def _nft(self, node: Node, text: str) -> None:
        node.run("nft", "-f", "-", stdin=text)

    def _build(self, number: int, site: Site) -> Place:
        place = Place(
            number,
            site,
            IPv4Address(f"203.0.113.{number}"),
            IPv6Address(f"2001:db8:{1 if site.nats else 0}:{number:x}::")
            if site.ipv6 is not Ipv6.NONE
            else None,
        )
        place.routers = [self._router(f"{site.name}-nat{n}") for n in range(len(site.nats))]
        parent, downlink, level = self._core, f"to{number}", 0
        for layer in reversed(range(len(site.nats))):  # from the core towards the hosts
            router, outermost = place.routers[layer], layer == len(site.nats) - 1
            outer6 = IPv6Address(f"2001:db8:0:{number:x}::1") if place.prefix6 and outermost else None
            self._wire(router, "wan", parent, downlink, level, place.outside_of(layer), outer6)
            if place.prefix6:  # the site's prefix is routed down, hop by hop
                router.ip(f"addr add {_UPLINK6}/64 dev wan", f"route replace default via {_GATEWAY6} dev wan")
                parent.ip(f"route add {place.prefix6}/64 via {_UPLINK6} dev {downlink}")
            self._nft(router, self._rules(place, layer))
            if site.udp_timeout_s is not None:
                for key in ("udp_timeout", "udp_timeout_stream"):
                    path = f"/proc/sys/net/netfilter/nf_conntrack_{key}"
                    router.run("sh", "-c", f"echo {site.udp_timeout_s} > {path}")
            parent, downlink, level = router, "lan0", level + 1
        for index in range(site.hosts):
            name = site.name if index == 0 else f"{site.name}{index + 1}"
            host = self._node(name)
            place.hosts.append(host)
            if site.nats:
                address, downlink = IPv4Address(f"192.168.{number}.{index + 2}"), f"lan{index}"
                address6 = place.prefix6 + index + 2 if place.prefix6 else None
            else:
                address, address6 = place.address, place.prefix6 + 1 if place.prefix6 else None
            self._wire(host, "eth0", parent, downlink, level, address, address6)
            if place.prefix6 is None:
                host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
        return place

    def _rules(self, place: Place, layer: int, *, remake: bool = False) -> str:
        return router_rules(
            place.site.nats[layer],
            outside=place.outside_of(layer),
            hairpin=place.site.hairpin and layer == 0,
            isolated=place.site.isolated and layer == 0,
            wall6=place.site.ipv6 is Ipv6.FIREWALL and layer == len(place.site.nats) - 1,
            remake=remake,
        )

    def _wire(
        self,
        node: Node,
        device: str,
        parent: Node,
        downlink: str,
        level: int,
        address: IPv4Address,
        address6: IPv6Address | None,
    ) -> None:
        """From `device` of the node to `downlink` of its router, default routes included."""
        # Another gateway at each level: ARP ignores requests that come from an address of one's own.
        gateway = f"192.0.2.{level + 1}"
        node.ip(f"link add {device} type veth peer name {downlink} netns {parent.pid}")
        parent.ip(
            f"addr add {gateway}/32 dev {downlink}",
            f"addr add {_GATEWAY6}/64 dev {downlink}",
            f"link set {downlink} up",
            f"route add {address}/32 dev {downlink}",
            *([f"route add {address6}/128 dev {downlink}"] if address6 else []),
        )
        node.ip(
            f"addr add {address}/32 dev {device}",
            *([f"addr add {address6}/128 dev {device}"] if address6 else []),
            f"link set {device} up",
            f"route add default via {gateway} dev {device} onlink",
            *([f"route add default via {_GATEWAY6} dev {device}"] if address6 else []),
        )

    # Using --------------------------------------------------------------------------------------------------

    def host(self, name: str) -> Node:
        """A public host or a site's host, by its name."""
        return self.lab.nodes[name]

    def address(self, name: str, version: int = 4) -> IPv4Address | IPv6Address:
        """What others see of a place: the public IPv4 address, or its (first) host's IPv6 address."""
        place = self.places[name]
        if version == 4:
            return place.address
        if place.prefix6 is None:
            raise ValueError(f"{name} has no IPv6")
        return place.prefix6 + (2 if place.routers else 1)

    def lan_address(self, name: str, index: int = 0) -> IPv4Address:
        """A host's own IPv4 address."""
        place = self.places[name]
        return IPv4Address(f"192.168.{place.number}.{index + 2}") if place.routers else place.address

    def endpoint(self, name: str, port: int, version: int = 4) -> Endpoint:
        """`address` with a port."""
        return Endpoint(self.address(name, version), port)

    def impair(
        self,
        name: str,
        *,
        loss_percent: float = 0.0,
        delay_ms: float = 0.0,
        jitter_ms: float = 0.0,
        duplicate_percent: float = 0.0,
    ) -> None:
        """On the place's access link, each way (so a round trip gets twice the delay). Zeros undo it.

        Loss alone works everywhere; raises UnsupportedError for the rest where the kernel has no netem.
        """
        place = self.places[name]
        node, device = place.edge
        ends = ((self._core, f"to{place.number}"), (node, device))
        for where, one in ends:
            where.run("sh", "-c", f"tc qdisc del dev {one} root 2>/dev/null || true")
        self._lossy.pop(name, None)
        if delay_ms or jitter_ms or duplicate_percent:
            for where, one in ends:
                try:
                    where.run(
                        *f"tc qdisc add dev {one} root netem limit 10000 loss {loss_percent}% "
                        f"delay {delay_ms}ms {jitter_ms}ms duplicate {duplicate_percent}%".split()
                    )
                except HostError as error:
                    raise UnsupportedError(f"no netem here: {error}") from error
        elif loss_percent:
            self._lossy[name] = loss_percent
        rules = "flush chain inet core loss\n"
        for lossy, percent in self._lossy.items():
            at = self.places[lossy]
            matches = [f'iifname "to{at.number}"', f"ip daddr {at.address}"]
            matches += [f"ip6 daddr {at.prefix6}/64"] if at.prefix6 else []
            for match in matches:
                draw = f"numgen random mod 10000 < {percent * 100:.0f}"
                rules += f"add rule inet core loss {match} {draw} drop\n"
        self._nft(self._core, rules)

    def cut(self, source: str, destination: str, *, both: bool = True) -> None:
        """Nothing passes from one place to the other any more, without an error, until `mend`.

        With `both` nor the other way round. All else passes.
        """
        self._cut("add", source, destination, both=both)

    def mend(self, source: str, destination: str, *, both: bool = True) -> None:
        """Undo `cut`, with the same arguments."""
        self._cut("delete", source, destination, both=both)

    def _cut(self, verb: str, source: str, destination: str, *, both: bool) -> None:
        for version in (4, 6):
            try:
                one, other = self.address(source, version), self.address(destination, version)
            except ValueError:  # one of them has no IPv6
                continue
            pairs = [f"{one} . {other}"] + ([f"{other} . {one}"] if both else [])
            self._nft(self._core, f"{verb} element inet core cut{version} {{ {', '.join(pairs)} }}")

    def renumber(self, name: str) -> IPv4Address:
        """A new public IPv4 address, as after a reconnect: every NAT mapping is lost. The address."""
        place = self.places[name]
        node, device = place.edge
        old, place.address = place.address, IPv4Address(f"203.0.113.{next(self._fresh)}")
        self._core.ip(
            f"route add {place.address}/32 dev to{place.number}", f"route del {old}/32 dev to{place.number}"
        )
        # Source NAT's mappings go with the address that they are to (nf_nat_masquerade.c).
        node.ip(
            f"addr add {place.address}/32 dev {device}",
            f"addr del {old}/32 dev {device}",
            f"route replace default via 192.0.2.1 dev {device} onlink",
        )
        if place.routers:
            self._nft(node, self._rules(place, len(place.routers) - 1, remake=True))
        return place.address

    def second_address(self, name: str) -> IPv4Address:
        """One more address for a public host, as a STUN server with two of them needs."""
        place = self.places[name]
        address = IPv4Address(f"203.0.113.{next(self._fresh)}")
        self._core.ip(f"route add {address}/32 dev to{place.number}")
        place.hosts[0].ip(f"addr add {address}/32 dev eth0")
        return address

    def forget_mappings(self, name: str) -> None:
        """The site's NATs lose all mappings, as when they are restarted."""
        for layer, router in enumerate(self.places[name].routers):
            with inside(router), NFCTSocket() as conntrack:
                conntrack.flush()
            self._nft(router, self._rules(self.places[name], layer, remake=True))

    def netem(self) -> bool:
        """Whether this kernel can delay and duplicate."""
        try:
            self._core.run(*["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
        except HostError:
            return False
        self._core.run(*["tc", "qdisc", "del", "dev", "lo", "root"])
        return True


NATS: tuple[Nat, ...] = tuple(Nat)
"""All kinds, for tests that go through them."""
