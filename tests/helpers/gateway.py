"""A site's router becomes a gateway that maps ports: miniupnpd, by UPnP, NAT-PMP and PCP."""

from __future__ import annotations

from ipaddress import IPv4Address

from relayd.demo.lab import Node
from relayd.demo.process import Process
from tests.helpers.natlab import Internet
from tests.helpers.netns import write

CLAIMED = IPv4Address("11.0.0.1")
"""What miniupnpd is told to call its outer address: it refuses to work with one that is for documentation.
The site is reached by it too."""

CHAINS = """
table inet miniupnpd {
    chain forward { type filter hook forward priority 0; jump forward_upnp; }
    chain forward_upnp { }
    chain prerouting { type nat hook prerouting priority -100; jump prerouting_upnp; }
    chain prerouting_upnp { }
    chain postrouting { type nat hook postrouting priority 100; jump postrouting_upnp; }
    chain postrouting_upnp { }
}
"""
CONFIG = """
ext_ifname=wan
ext_ip={claimed}
listening_ip=lan0
ipv6_disable=yes
secure_mode=yes
uuid=3783ddd0-9d1f-4912-be72-4616e9510fcd
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=forward_upnp
upnp_nat_chain=prerouting_upnp
upnp_nat_postrouting_chain=postrouting_upnp
allow 1024-65535 {network}.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


def make_gateway(net: Internet, site: str) -> tuple[IPv4Address, IPv4Address]:
    """Give the site's only router and host addresses with a prefix, as DHCP does. (gateway, host)"""
    place = net.places[site]
    router, host = place.routers[0], place.hosts[0]
    gateway, own = (IPv4Address(f"192.168.{place.number}.{last}") for last in (1, 2))
    # Its only address there: miniupnpd takes the interface's first one for its own.
    router.ip(
        f"addr add {gateway}/24 dev lan0", "addr del 192.0.2.2/32 dev lan0", f"addr add {CLAIMED}/32 dev wan"
    )
    net.host("core").ip(f"route add {CLAIMED}/32 dev to{place.number}")
    # Multicast goes where the default route goes.
    host.ip(
        "addr flush dev eth0 scope global",
        f"addr add {own}/24 dev eth0",
        f"route replace default via {gateway} dev eth0",
    )
    router.run("nft", "-f", "-", stdin=CHAINS)
    return gateway, own


def start_gateway(net: Internet, site: str, *, upnp: bool = True, pmp: bool = True) -> Process:
    """miniupnpd on the site's router, ready."""
    place = net.places[site]
    router: Node = place.routers[0]
    words = {True: "yes", False: "no"}
    switches = f"enable_upnp={words[upnp]}\nenable_natpmp={words[pmp]}\n"
    config = CONFIG.format(claimed=CLAIMED, network=f"192.168.{place.number}")
    write(router, "/run/miniupnpd.conf", config + switches)
    process = router.start("miniupnpd", "-d", "-f", "/run/miniupnpd.conf", "-P", "/run/miniupnpd.pid")
    process.wait_for_output("Listening for NAT-PMP/PCP traffic" if pmp else "HTTP listening on", 10.0)
    return process
