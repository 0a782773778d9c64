"""The kernel's own WireGuard by netlink: the contract, and what only a kernel can show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_interface

import pytest

from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel import links
from relayd.kernel.device import PeerSettings
from relayd.kernel.netlink import NetlinkWireGuard
from relayd.kernel.wireguard import ensure_interface, open_wireguard
from relayd.keys import PublicKey
from tests.helpers.wireguard_contract import (
    OTHER_PORT,
    PORT,
    Pair,
    WireGuardContract,
    as_settings,
    networks,
    new_key,
)
from tests.helpers.wireguard_pairs import RealPair


def sh(script: str, *, stdin: str = "") -> str:
    """The output of a shell script that must not fail."""
    done = subprocess.run(
        ["sh", "-ec", script], input=stdin, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def removed(*names: str) -> None:
    """Interfaces of a test go, if they are there."""
    for name in names:
        subprocess.run(["ip", "link", "del", name], capture_output=True, timeout=60, check=False)


class TestNetlinkWireGuard(WireGuardContract):
    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        sh("""for name in here there; do ip link add $name type wireguard; ip link set $name up; done""")
        yield RealPair(NetlinkWireGuard("here"), NetlinkWireGuard("there"))
        removed("here", "there")


@pytest.fixture
def quick() -> Iterator[str]:
    """An interface as wg-quick makes it, by `ip` and `wg` alone. -> its name"""
    sh(
        f"""
        ip link add wg0 type wireguard
        wg set wg0 private-key /dev/stdin listen-port {PORT} fwmark 0x2a \
            peer {PEERS[0]} endpoint 192.0.2.1:51820 persistent-keepalive 25 \
                allowed-ips 10.9.1.0/24,fd09:1::/64 \
            peer {PEERS[1]} endpoint '[2001:db8::1]:1' allowed-ips 10.9.2.0/24 \
            peer {PEERS[2]} allowed-ips 10.9.3.0/24
        ip address add 10.9.0.1/16 dev wg0
        ip link set wg0 mtu 1420 up
        """,
        stdin=OWN.to_base64(),
    )
    yield "wg0"
    removed("wg0")


OWN = new_key()
PEERS = [new_key().public() for _ in range(3)]


async def test_an_interface_that_wg_quick_made_is_read_as_wg_shows_it(quick: str) -> None:
    interface = await (await open_wireguard(quick)).read()
    assert (interface.name, interface.public_key) == (quick, OWN.public())
    assert (interface.listen_port, interface.fwmark) == (PORT, 0x2A)
    assert {key: as_settings(peer) for key, peer in interface.peers.items()} == {
        PEERS[0]: PeerSettings(
            key=PEERS[0],
            allowed_ips=networks("10.9.1.0/24", "fd09:1::/64"),
            endpoint=Endpoint.parse("192.0.2.1:51820"),
            keepalive_s=25,
        ),
        PEERS[1]: PeerSettings(
            key=PEERS[1], allowed_ips=networks("10.9.2.0/24"), endpoint=Endpoint.parse("[2001:db8::1]:1")
        ),
        PEERS[2]: PeerSettings(key=PEERS[2], allowed_ips=networks("10.9.3.0/24")),
    }


async def test_set_endpoint_changes_one_field_of_wg_dump(quick: str) -> None:
    wireguard = await open_wireguard(quick)
    # tx_bytes and the preshared key are in there too; the peer with keepalive would count up.
    sh(
        f"wg set wg0 peer {PEERS[0]} persistent-keepalive 0 preshared-key /dev/stdin",
        stdin=new_key().to_base64(),
    )
    before = sh("wg show all dump; ip address show dev wg0; ip route")
    await wireguard.set_endpoint(PEERS[0], Endpoint.parse("127.64.0.1:22347"))
    after = sh("wg show all dump; ip address show dev wg0; ip route")
    assert before.count("192.0.2.1:51820") == 1
    assert after == before.replace("192.0.2.1:51820", "127.64.0.1:22347")


async def test_configuring_what_is_there_already_changes_nothing(quick: str) -> None:
    sh(
        f"wg set wg0 peer {PEERS[0]} persistent-keepalive 0 preshared-key /dev/stdin",
        stdin=new_key().to_base64(),
    )
    wireguard = await open_wireguard(quick)
    peers = [as_settings(peer) for peer in (await wireguard.read()).peers.values()]
    before = sh("wg show all dump")
    await wireguard.configure(OWN, listen_port=PORT, fwmark=0x2A, peers=peers)
    assert sh("wg show all dump") == before


async def test_a_link_local_endpoint_keeps_its_zone(quick: str) -> None:
    wireguard = await open_wireguard(quick)
    for zone in ("1", "lo"):
        await wireguard.set_endpoint(PEERS[2], Endpoint.parse(f"[fe80::7%{zone}]:77"))
        assert "[fe80::7%lo]:77" in sh("wg show wg0 endpoints")
        assert (await wireguard.read()).peers[PEERS[2]].endpoint == Endpoint.parse("[fe80::7%1]:77")


@pytest.fixture
async def made() -> AsyncIterator[bool]:
    """Whether ensure_interface says that it made `wire0`."""
    yield await ensure_interface("wire0", mtu=1380, addresses=[ip_interface("10.99.0.1/24")])
    removed("wire0")


async def test_ensure_interface_makes_one_and_then_finds_it_right(made: bool) -> None:
    assert made
    link = await links.find("wire0")
    assert link is not None
    assert (link.kind, link.mtu, link.is_up) == ("wireguard", 1380, True)
    wireguard = await open_wireguard("wire0")
    key = new_key()
    peer = PeerSettings(key=new_key().public(), allowed_ips=networks("10.99.0.2/32"))
    await wireguard.configure(key, listen_port=PORT, fwmark=0x574B, peers=[peer])
    before = sh("wg show all dump; ip -d address show dev wire0; ip route")
    assert not await ensure_interface("wire0", mtu=1380, addresses=[ip_interface("10.99.0.1/24")])
    assert sh("wg show all dump; ip -d address show dev wire0; ip route") == before


async def test_ensure_interface_replaces_addresses_and_keeps_peers(made: bool) -> None:
    wireguard = await open_wireguard("wire0")
    peer = PeerSettings(key=new_key().public(), allowed_ips=networks("10.99.0.2/32"))
    await wireguard.configure(new_key(), listen_port=PORT, fwmark=0, peers=[peer])
    before = await wireguard.read()
    await ensure_interface(
        "wire0", mtu=1420, addresses=[ip_interface("10.98.0.1/24"), ip_interface("fd98::1/64")]
    )
    shown = sh("ip -o address show dev wire0")
    assert "10.98.0.1/24" in shown
    assert "fd98::1/64" in shown
    assert "10.99.0.1" not in shown
    assert await wireguard.read() == before


async def test_an_interface_that_was_made_goes_again_when_the_rest_fails() -> None:
    with pytest.raises(HostError, match="cannot set up wire1"):
        await ensure_interface("wire1", mtu=1, addresses=[ip_interface("fd98::1/64")])
    assert await links.find("wire1") is None


async def test_a_port_in_use_is_told_by_its_number(quick: str) -> None:
    assert await ensure_interface("wire0", mtu=1420, addresses=[])
    try:
        with pytest.raises(HostError, match=f"UDP port {PORT}: it is in use"):
            await NetlinkWireGuard("wire0").configure(new_key(), listen_port=PORT, fwmark=0, peers=[])
        sh(f"ip link set wire0 down; wg set wire0 listen-port {PORT}")
        with pytest.raises(HostError, match="wire0 cannot be set up: its UDP port is in use"):
            await ensure_interface("wire0", mtu=1420, addresses=[])
        await NetlinkWireGuard("wire0").configure(new_key(), listen_port=OTHER_PORT, fwmark=0, peers=[])
    finally:
        removed("wire0")


async def test_where_ipv6_is_disabled_that_is_told_and_no_capability_asked_for() -> None:
    sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
    try:
        with pytest.raises(HostError, match="fd08::1/64: IPv6 is disabled on wire0"):
            await ensure_interface("wire0", mtu=1420, addresses=[ip_interface("fd08::1/64")])
    finally:
        sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=0")


async def test_a_missing_interface_is_told_with_those_that_exist(quick: str) -> None:
    with pytest.raises(HostError, match="there is no interface wg7; WireGuard interfaces here: wg0"):
        await open_wireguard("wg7")


async def test_an_interface_that_goes_away_is_told_by_the_next_call(quick: str) -> None:
    wireguard = await open_wireguard(quick)
    removed(quick)
    with pytest.raises(HostError, match=f"there is no interface {quick}"):
        await wireguard.read()
    with pytest.raises(HostError, match=f"there is no interface {quick}"):
        await wireguard.set_endpoint(PublicKey(bytes(32)), Endpoint.parse("192.0.2.1:1"))


async def test_an_interface_replaced_by_another_kind_is_told(quick: str) -> None:
    wireguard = await open_wireguard(quick)
    sh(f"ip link del {quick}; ip link add {quick} type veth peer name other0")
    with pytest.raises(HostError, match=f"{quick} is a veth interface, not WireGuard"):
        await wireguard.read()


def test_without_the_capability_the_error_says_how_to_get_it(quick: str) -> None:
    script = (
        "import trio; from relayd.kernel.wireguard import open_wireguard; trio.run(open_wireguard, 'wg0')"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 1
    assert "HostError: cannot read wg0: CAP_NET_ADMIN is missing" in done.stderr
    assert "setcap cap_net_admin+ep" in done.stderr
