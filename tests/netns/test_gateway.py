"""Port mappings by a real gateway: miniupnpd, behind whose NAT a host asks by PCP, NAT-PMP and UPnP."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest
import trio

from relayd.agent.discovery import gateway
from relayd.agent.discovery.gateway import Mapped, NoMappingError, map_port
from relayd.demo.host import check_programs
from relayd.demo.lab import RELAYD
from relayd.demo.process import Process
from relayd.demo.tunnel import Tunnel
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.wire import port_control
from tests.helpers.gateway import CLAIMED, make_gateway, start_gateway
from tests.helpers.inside import inside
from tests.helpers.natlab import Internet, Nat, Site
from tests.helpers.netns import status_of, wait_until
from tests.helpers.path_mesh import CONTROL, PathMesh
from tests.helpers.path_mesh import PORTS as PATH_PORTS

PORT = 51820
GATEWAY, OWN = IPv4Address("192.168.2.1"), IPv4Address("192.168.2.2")


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    try:
        check_programs(["miniupnpd"])
    except HostError as error:
        pytest.skip(str(error))
    with Internet([Site("home", (Nat.PORT_RESTRICTED,))], public=("stun1",)) as made:
        assert make_gateway(made, "home") == (GATEWAY, OWN)
        yield made


@pytest.fixture
def both(net: Internet) -> Iterator[Process]:
    """A gateway that does all three."""
    process = start_gateway(net, "home")
    yield process
    net.lab.discard(process)


def ask(net: Internet, *, upnp: bool = True, port: int = PORT) -> Mapped:
    with inside(net.host("home")):
        return trio.run(lambda: map_port(port, GATEWAY, OWN, upnp=upnp))


ASK_BY_UPNP = f"""
import ipaddress, sys, trio
from relayd.agent.discovery.gateway import map_port
found = trio.run(map_port, int(sys.argv[1]), *map(ipaddress.IPv4Address, ({str(GATEWAY)!r}, {str(OWN)!r})))
print(found.protocol, found.external)
"""
"""For a process of its own: UPnP is asked in a thread of trio's, which keeps them for the next use, and with
them the namespace that they were made in."""


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
    assert (mapped.protocol, str(mapped.external.address)) == ("NAT-PMP", str(CLAIMED))
    assert gets_in(net, mapped.external.port, PORT + 1)


def test_upnp_maps_where_there_is_neither(net: Internet) -> None:
    process = start_gateway(net, "home", pmp=False)
    try:
        said = net.host("home").run(sys.executable, "-c", ASK_BY_UPNP, str(PORT + 2))
        assert said.splitlines()[-1] == f"UPnP {CLAIMED}:{PORT + 2}"
        assert gets_in(net, PORT + 2, PORT + 2)
    finally:
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


# With agents -----------------------------------------------------------------------------------------------


def discovered(mesh: PathMesh, name: str) -> dict[str, Any] | None:
    """What the agent says of how its host is reached, once it knows."""
    status = status_of(mesh.nodes[name], CONTROL)
    found: dict[str, Any] | None = status["discovery"] if status is not None else None
    return found if found is not None and found["nat"] else None


def test_a_pair_that_no_punching_helps_goes_direct_by_the_gateways_mapping() -> None:
    """Port-restricted against symmetric stays relayed in theory: here the mapping lets strangers in."""
    with PathMesh((Nat.PORT_RESTRICTED,), (Nat.SYMMETRIC,)) as mesh:
        make_gateway(mesh.internet, "a")
        start_gateway(mesh.internet, "a")
        mesh.start_agents()
        mesh.wait_up()
        mesh.wait_path("direct", timeout_s=60.0)
        # What leaves the router has its other address, by which the mapping lets in too.
        outside = {CLAIMED, mesh.internet.address("a")}
        assert mesh.endpoint("b") in {Endpoint(address, PATH_PORTS["a"]) for address in outside}
        for name, nat, methods in (
            ("a", "port-restricted-cone", {"stun", "upnp", "internal-ip"}),
            ("b", "symmetric", {"stun", "internal-ip"}),
        ):
            found = wait_until(partial(discovered, mesh, name), f"{name} knows its NAT")
            assert found["nat"]["ipv4"] == nat
            assert {one["method"] for one in found["findings"]} >= methods


def test_without_it_the_pair_stays_relayed() -> None:
    with PathMesh((Nat.PORT_RESTRICTED,), (Nat.SYMMETRIC,), agent="port_mapping = false") as mesh:
        make_gateway(mesh.internet, "a")
        start_gateway(mesh.internet, "a")
        mesh.start_agents()
        mesh.wait_up()
        mesh.wait_path("relay")
        time.sleep(8.0)  # a round of checks, and the discovery's questions, are over by then
        assert [mesh.path(name) for name in ("a", "b")] == ["relay", "relay"]
