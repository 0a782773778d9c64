"""A userspace WireGuard (wireguard-go) by its UAPI socket: the contract, and what a host can lack."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from relayd.demo.lab import Lab, Node
from relayd.demo.tunnel import add_kernel_link, start_wireguard_go
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.device import PeerSettings
from relayd.kernel.uapi import UserspaceWireGuard
from tests.helpers.wireguard_contract import OTHER_PORT, PORT, Pair, WireGuardContract, new_key
from tests.helpers.wireguard_pairs import RealPair


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def node(lab: Lab) -> Node:
    return lab.node("wg")


def userspace(node: Node, name: str) -> UserspaceWireGuard:
    """The interface `name` of the node, driven from outside it."""
    return UserspaceWireGuard(name, node.path(f"/run/wireguard/{name}.sock"))


class TestUserspaceWireGuard(WireGuardContract):
    @pytest.fixture
    def pair(self, lab: Lab, node: Node) -> Iterator[Pair]:
        names = ("here0", "there0")
        processes = [start_wireguard_go(node, name) for name in names]
        node.ip(*(f"link set {name} up" for name in names))
        yield RealPair(*(userspace(node, name) for name in names))
        for process in processes:
            process.terminate()  # and not killed: it takes its socket along
            process.wait()
            lab.discard(process)


@pytest.fixture
def wireguard(lab: Lab, node: Node) -> Iterator[UserspaceWireGuard]:
    process = start_wireguard_go(node, "wg0")
    node.ip("link set wg0 up")
    yield userspace(node, "wg0")
    process.terminate()
    process.wait()
    lab.discard(process)


async def test_set_endpoint_changes_one_field_of_wg_dump(wireguard: UserspaceWireGuard, node: Node) -> None:
    key, other = new_key().public(), new_key().public()
    peers = [
        PeerSettings(key=key, allowed_ips=(), endpoint=Endpoint.parse("192.0.2.1:1"), keepalive_s=0),
        PeerSettings(key=other, allowed_ips=(), endpoint=Endpoint.parse("192.0.2.2:2")),
    ]
    await wireguard.configure(new_key(), listen_port=PORT, fwmark=0x574B, peers=peers)
    before = sorted(node.run("wg", "show", "all", "dump").splitlines())  # its peers come in no order
    assert any("192.0.2.1:1" in line for line in before)
    await wireguard.set_endpoint(key, Endpoint.parse("127.64.0.1:22347"))
    after = sorted(node.run("wg", "show", "all", "dump").splitlines())
    assert after == [line.replace("192.0.2.1:1", "127.64.0.1:22347") for line in before]


async def test_a_port_in_use_is_told_by_its_number(wireguard: UserspaceWireGuard, node: Node) -> None:
    await wireguard.configure(new_key(), listen_port=PORT, fwmark=0, peers=[])
    other = start_wireguard_go(node, "wg1")
    try:
        node.ip("link set wg1 up")
        with pytest.raises(HostError, match=f"UDP port {PORT}: it is in use"):
            await userspace(node, "wg1").configure(new_key(), listen_port=PORT, fwmark=0, peers=[])
        await userspace(node, "wg1").configure(new_key(), listen_port=OTHER_PORT, fwmark=0, peers=[])
    finally:
        other.terminate()
        other.wait()


async def test_a_process_that_ended_is_told(lab: Lab, node: Node) -> None:
    process = start_wireguard_go(node, "wg9")
    gone = userspace(node, "wg9")
    await gone.configure(new_key(), listen_port=0, fwmark=0, peers=[])
    process.kill()
    process.wait()
    lab.discard(process)
    with pytest.raises(HostError, match=r"nothing answers at .*wg9\.sock"):
        await gone.read()


# open_wireguard and ensure_interface look at the namespace they run in: these run in the node ---------------

SCRIPT = """
import json, sys, trio
from ipaddress import ip_interface
from relayd.errors import HostError
from relayd.kernel.wireguard import ensure_interface, open_wireguard

async def main(what, name, mtu, addresses):
    try:
        if what == "ensure":
            return await ensure_interface(name, mtu=mtu, addresses=[ip_interface(a) for a in addresses])
        return type(await open_wireguard(name)).__name__
    except HostError as error:
        return f"HostError: {error}"

print(json.dumps(trio.run(main, *json.loads(sys.argv[1]))))
"""


def ask(node: Node, what: str, name: str, mtu: int = 1420, addresses: tuple[str, ...] = ()) -> object:
    """What `open_wireguard(name)` or `ensure_interface(name, ...)` gives in the node."""
    arguments = json.dumps([what, name, mtu, addresses])
    answer: object = json.loads(
        node.run(sys.executable, "-c", SCRIPT, arguments, timeout_s=30).splitlines()[-1]
    )
    return answer


def test_a_userspace_interface_is_opened_by_its_socket(wireguard: UserspaceWireGuard, node: Node) -> None:
    assert ask(node, "open", wireguard.name) == "UserspaceWireGuard"


def test_a_missing_interface_is_told_with_those_that_exist(wireguard: UserspaceWireGuard, node: Node) -> None:
    assert ask(node, "open", "wg7") == "HostError: there is no interface wg7; WireGuard interfaces here: wg0"


def test_another_kind_of_interface_is_left_alone(node: Node) -> None:
    node.ip("link add wgveth type veth peer name wgpeer")
    before = node.run("ip", "address", "show", "dev", "wgveth")
    for what in ("open", "ensure"):
        assert str(ask(node, what, "wgveth", 1300, ("10.5.0.1/24",))).startswith(
            "HostError: wgveth is a veth interface, not WireGuard: it was left alone"
        )
    assert node.run("ip", "address", "show", "dev", "wgveth") == before
    assert str(ask(node, "open", "lo")).startswith("HostError: lo is a network device, not WireGuard")


def test_a_tun_interface_without_a_process_is_told(node: Node) -> None:
    node.ip("tuntap add dev wgtun mode tun")
    assert "no userspace WireGuard answers" in str(ask(node, "open", "wgtun"))


def test_ensure_interface_sets_up_what_a_process_runs(wireguard: UserspaceWireGuard, node: Node) -> None:
    addresses = ("10.99.0.1/24", "fd00:99::1/64")
    assert ask(node, "ensure", wireguard.name, 1380, addresses) is False
    shown = node.run("ip", "address", "show", "dev", wireguard.name)
    assert all(address in shown for address in addresses)
    assert "mtu 1380" in shown
    assert ask(node, "ensure", wireguard.name, 1420, ("10.99.0.2/24",)) is False
    shown = node.run("ip", "address", "show", "dev", wireguard.name)
    assert "10.99.0.2/24" in shown
    assert "10.99.0.1/24" not in shown
    assert "fd00:99::1" not in shown


def test_a_secondary_address_survives_its_primary(wireguard: UserspaceWireGuard, node: Node) -> None:
    node.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/all/promote_secondaries")
    node.ip("addr add 10.99.0.1/24 dev wg0", "addr add 10.99.0.2/24 dev wg0")
    assert ask(node, "ensure", wireguard.name, 1420, ("10.99.0.2/24",)) is False
    shown = node.run("ip", "address", "show", "dev", wireguard.name)
    assert "10.99.0.2/24" in shown
    assert "10.99.0.1/24" not in shown


def test_without_the_capability_the_error_says_how_to_get_it(node: Node) -> None:
    drop = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    arguments = json.dumps(["ensure", "wgnew", 1420, []])
    said = node.run(*drop, sys.executable, "-c", SCRIPT, arguments, timeout_s=30)
    assert "cannot make wgnew: CAP_NET_ADMIN is missing" in said
    assert "AmbientCapabilities=CAP_NET_ADMIN" in said


def test_a_missing_interface_is_made_or_the_kernel_is_told_to_lack_wireguard(node: Node) -> None:
    kernel_has_it = add_kernel_link(node, "wgprobe")
    said = ask(node, "ensure", "wgnew", 1380, ("10.6.0.1/24",))
    if kernel_has_it:
        assert said is True
        assert "10.6.0.1/24" in node.run("ip", "address", "show", "dev", "wgnew")
    else:
        assert "this kernel has no WireGuard" in str(said)
        assert "wireguard-go wgnew" in str(said)
