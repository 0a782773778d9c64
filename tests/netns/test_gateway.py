"""Port mappings by a real gateway: miniupnpd, behind whose NAT a host asks by PCP, NAT-PMP and UPnP."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface

import pytest
import trio

from relayd.agent.discovery import gateway
from relayd.agent.discovery.gateway import Mapped, NoMappingError, map_port
from relayd.demo.host import check_programs
from relayd.demo.lab import RELAYD, Node
from relayd.demo.process import Process
from relayd.demo.tunnel import Tunnel
from relayd.errors import HostError
from relayd.wire import port_control
from tests.helpers.inside import inside
from tests.helpers.natlab import Internet, Nat, Site
from tests.helpers.netns import wait_until, write

PORT = 51820
GATEWAY, OWN = IPv4Address("192.168.2.1"), IPv4Address("192.168.2.2")
CLAIMED = "11.0.0.1"
"""What miniupnpd is told to call its outer address: it refuses to work with one that is for documentation."""

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
CONFIG = f"""
ext_ifname=wan
ext_ip={CLAIMED}
listening_ip=lan0
ipv6_disable=yes
secure_mode=yes
uuid=3783ddd0-9d1f-4912-be72-4616e9510fcd
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=forward_upnp
upnp_nat_chain=prerouting_upnp
upnp_nat_postrouting_chain=postrouting_upnp
allow 1024-65535 192.168.2.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    try:
        check_programs(["miniupnpd"])
    except HostError as error:
        pytest.skip(str(error))
    with Internet([Site("home", (Nat.PORT_RESTRICTED,))], public=("stun1",)) as made:
        router, host = made.places["home"].routers[0], made.host("home")
        # Its only address there: miniupnpd takes the interface's first one for its own.
        router.ip(f"addr add {GATEWAY}/24 dev lan0", "addr del 192.0.2.2/32 dev lan0")
        # Multicast goes where the default route goes; an address with a prefix, as DHCP gives one.
        host.ip(
            "addr flush dev eth0 scope global",
            f"addr add {OWN}/24 dev eth0",
            f"route replace default via {GATEWAY} dev eth0",
        )
        router.run("nft", "-f", "-", stdin=CHAINS)
        yield made


def start(net: Internet, router: Node, settings: str) -> Process:
    write(router, "/run/miniupnpd.conf", CONFIG + settings)
    process = router.start("miniupnpd", "-d", "-f", "/run/miniupnpd.conf", "-P", "/run/miniupnpd.pid")
    last = "HTTP listening on" if "natpmp=no" in settings else "Listening for NAT-PMP/PCP traffic"
    process.wait_for_output(last, 10.0)
    return process


@pytest.fixture
def router(net: Internet) -> Node:
    return net.places["home"].routers[0]


@pytest.fixture
def both(net: Internet, router: Node) -> Iterator[Process]:
    """A gateway that does all three."""
    process = start(net, router, "enable_upnp=yes\nenable_natpmp=yes\n")
    yield process
    net.lab.discard(process)


def ask(net: Internet, *, upnp: bool = True, port: int = PORT) -> Mapped:
    with inside(net.host("home")):
        return trio.run(lambda: map_port(port, GATEWAY, OWN, upnp=upnp))


def gets_in(net: Internet, port: int, inner: int = PORT) -> bool:
    """Whether a stranger's datagram to the site's outer `port` comes to the host."""
    with inside(net.host("home")):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(net.host("stun1")):
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock, stranger:
        sock.bind(("", inner))
        sock.settimeout(1.0)
        stranger.sendto(b"?", (str(net.address("home")), port))
        try:
            return sock.recv(100) == b"?"
        except TimeoutError:
            return False


def test_pcp_maps_the_port_and_a_stranger_gets_in(net: Internet, both: Process) -> None:
    assert not gets_in(net, PORT)
    mapped = ask(net, upnp=False)
    assert (mapped.protocol, str(mapped.external)) == ("PCP", f"{CLAIMED}:{PORT}")
    assert 0 < mapped.lifetime_s <= gateway.LEASE_S
    assert mapped.gateway == str(GATEWAY)
    assert gets_in(net, mapped.external.port)
    assert ask(net, upnp=False).external == mapped.external, "asked again, it is the same mapping"


def test_nat_pmp_maps_where_there_is_no_pcp(
    net: Internet, both: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This gateway speaks both: the answer to PCP is replaced by what one without it says (RFC 6887, 9)."""

    def no_pcp(datagram: bytes, nonce: bytes, internal: int) -> port_control.PortMapping:
        raise port_control.OtherVersionError("it speaks NAT-PMP alone")

    monkeypatch.setattr(port_control, "pcp_map_answer_untrusted", no_pcp)
    mapped = ask(net, upnp=False, port=PORT + 1)
    assert (mapped.protocol, str(mapped.external.address)) == ("NAT-PMP", CLAIMED)
    assert gets_in(net, mapped.external.port, PORT + 1)


def test_upnp_maps_where_there_is_neither(net: Internet, router: Node) -> None:
    process = start(net, router, "enable_upnp=yes\nenable_natpmp=no\n")
    mapped = ask(net, port=PORT + 2)
    assert (mapped.protocol, str(mapped.external)) == ("UPnP", f"{CLAIMED}:{PORT + 2}")
    assert gets_in(net, mapped.external.port, PORT + 2)
    net.lab.discard(process)


def test_where_no_gateway_does_it_each_way_says_why(net: Internet) -> None:
    with pytest.raises(NoMappingError) as raised:
        ask(net)
    assert "PCP and NAT-PMP: " in str(raised.value)
    assert "UPnP: " in str(raised.value)


def test_relayd_stun_maps_when_it_is_told_to(net: Internet, both: Process) -> None:
    host = net.host("home")
    Tunnel(host, IPv4Interface("10.99.0.1/24"), port=PORT + 3, userspace=True)
    process = host.start(*RELAYD, "stun", "--interface", "wg0", "--map", "--json")
    wait_until(lambda: process.returncode() is not None, "it ends", 60.0)
    answer = json.loads(process.output().splitlines()[-1])
    [found] = [one for one in answer["findings"] if one["method"] == "upnp"]
    assert found["endpoint"] == f"{CLAIMED}:{PORT + 3}"
    assert found["source"] == f"PCP, {GATEWAY}"
