"""docs/node-management.md beside the agent: what the page's commands set up and remove, relayd does too.

What needs no kernel WireGuard is in tests/netns/test_node_management.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from relayd.config import KEY_FILE
from relayd.kernel.firewall import Iptables
from relayd.kernel.host_rules import HostRules, owned
from relayd.kernel.ownership import Owned, open_owned
from relayd.kernel.routing import NetlinkRouting
from relayd.kernel.sysctls import Sysctls
from tests.helpers.node_page import BLOCKS
from tests.helpers.wireguard_contract import new_key
from tests.kernel.shell import host, removed, sh

STATE = Path("/var/lib/wirekube")
ADDRESSES = (ip_interface("10.11.0.1/24"), ip_interface("fd00:11::1/64"))
ALLOWED_IPS = (ip_network("10.11.0.2/32"), ip_network("fd00:11::2/128"))
KEY = new_key()


@pytest.fixture(autouse=True)
def kubernetes_node() -> Iterator[None]:
    """A node with kubelet's chain, and with things of others that must survive."""
    sh(
        "iptables-nft -N KUBE-FIREWALL; "
        "iptables-nft -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP; "
        "ip link add wg0 type wireguard; ip link set wg0 up; ip address add 10.12.0.1/24 dev wg0; "
        "ip rule add priority 200 from 10.99.0.0/16 lookup 99; ip route add 10.98.0.0/16 dev wg0 table 99"
    )
    yield
    removed("wire_kube", "wg0")
    sh(
        "ip rule del priority 200 from 10.99.0.0/16; "
        "iptables-nft -F KUBE-FIREWALL; iptables-nft -X KUBE-FIREWALL"
    )


def run(name: str) -> str:
    """A block of the page as root would paste it. What it printed, complaints too."""
    done = subprocess.run(
        ["sh", "-c", BLOCKS[name]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


def write_key() -> None:
    """As the agent's first start does."""
    sh(f"mkdir -p -m 0700 {STATE}; umask 077; cat >{STATE / KEY_FILE}", stdin=f"{KEY.to_base64()}\n")


async def agent_sets_up() -> list[str]:
    """As the agent does at its start. -> what the rules' part of it wrote"""
    write_key()
    wanted = Owned(
        name="wire_kube", private_key=KEY, listen_port=51820, mtu=1420, addresses=ADDRESSES, peers=()
    )
    (await open_owned(wanted, STATE)).wireguard.close()
    rules = HostRules(NetlinkRouting(), Sysctls(STATE), Iptables())
    return list((await rules.apply(owned("wire_kube", ADDRESSES, ALLOWED_IPS), relay=())).written)


def comparable() -> list[str]:
    """`host()` without the order in which things were made."""
    return sorted(host().splitlines())


async def test_by_the_pages_commands_a_node_is_set_up_and_cleaned_up_as_by_relayd() -> None:
    before = host()
    assert await agent_sets_up() != []
    by_agent = comparable()
    said = run("whose")
    assert "alias made by relayd" in said
    assert said.count(str(KEY.public())) == 2
    assert run("verify") != ""
    assert run("remove") == ""
    assert run("verify") == ""
    assert host() == before

    write_key()
    sh(
        "ip link add wire_kube type wireguard; ip link set wire_kube alias 'made by relayd'; "
        f"wg set wire_kube private-key {STATE / KEY_FILE}; ip link set wire_kube up mtu 1420; "
        + "; ".join(f"ip address add {address} dev wire_kube" for address in ADDRESSES)
    )
    assert run("set up") == ""
    assert run("routes") == ""
    assert comparable() == by_agent
    assert await agent_sets_up() == [], "what the page sets up, the agent finds right"
    sh("sysctl -q -w net.ipv4.conf.lo.accept_local=0")  # it was on before that start, and so not relayd's
    assert run("remove") == ""
    assert host() == before
