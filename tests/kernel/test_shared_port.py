"""WireGuard's port, shared with the kernel, which holds it: STUN from it and sealed messages to it, IPv4 and
IPv6, while a tunnel ping goes on."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import pairwise

import pytest
import trio

from relayd.agent.discovery.stun_answers import ask_servers
from relayd.agent.discovery.stun_client import StunClient
from relayd.agent.discovery.stun_look import look
from relayd.agent.discovery.stun_servers import Resolver
from relayd.agent.discovery.stun_servers import StunServer as Named
from relayd.agent.shared_port import SharedPort
from relayd.endpoints import Endpoint
from relayd.netio.poller import Poller
from relayd.netio.raw_udp import Datagram
from relayd.paths.nat_class import NatType
from relayd.relay.stun_server import Pair, StunServer
from relayd.wire.port_messages import SEALED_MAGIC
from tests.helpers.inside import inside_path
from tests.helpers.wireguard_contract import new_key
from tests.kernel.shell import sh

PORT, STUN_PORT = 51820, 3478
NEAR, FAR = {4: "192.0.2.1", 6: "2001:db8::1"}, {4: "192.0.2.2", 6: "2001:db8::2"}
QUESTIONS = 10
PINGS = 300


@pytest.fixture(scope="module")
def tunnel() -> Iterator[None]:
    """Kernel WireGuard in the namespaces `near` and `far`, with each other as peers."""
    keys = {"near": new_key(), "far": new_key()}
    sh(
        f"""
        ip netns add near; ip netns add far
        ip link add wan netns near type veth peer name wan netns far
        for node in near far; do
            ip -n $node link set lo up; ip -n $node link add wg0 type wireguard
        done
        ip -n near addr add {NEAR[4]}/24 dev wan; ip -n near addr add {NEAR[6]}/64 dev wan nodad
        ip -n far addr add {FAR[4]}/24 dev wan; ip -n far addr add {FAR[6]}/64 dev wan nodad
        ip -n near link set wan up; ip -n far link set wan up
        ip -n near addr add 10.99.0.1/24 dev wg0; ip -n far addr add 10.99.0.2/24 dev wg0
        """
    )
    for name, other, address in (("near", "far", FAR[4]), ("far", "near", NEAR[4])):
        sh(
            f"ip netns exec {name} wg set wg0 private-key /dev/stdin listen-port {PORT} fwmark 0x574b "
            f"peer {keys[other].public()} allowed-ips 10.99.0.0/24 endpoint {address}:{PORT}",
            stdin=keys[name].to_base64(),
        )
    sh("ip -n near link set wg0 up; ip -n far link set wg0 up")
    sh("ip netns exec near ping -n -c 3 -i 0.3 -W 5 10.99.0.2")
    yield
    sh("ip netns del near; ip netns del far")


def counters() -> tuple[int, int, int, int]:
    """ICMP and ICMPv6 port unreachables sent, and errors and drops of wg0, in `near`."""
    found = sh("ip netns exec near cat /proc/net/snmp").splitlines()
    icmp = next(
        dict(zip(names.split(), values.split(), strict=True))
        for names, values in pairwise(found)
        if names.startswith("Icmp:") and "OutDestUnreachs" in names
    )
    six = dict(line.split() for line in sh("ip netns exec near cat /proc/net/snmp6").splitlines())
    [link] = json.loads(sh("ip -n near -s -j link show wg0"))
    received = link["stats64"]["rx"]
    unreachable = int(icmp["OutDestUnreachs"]), int(six["Icmp6OutDestUnreachs"])
    return *unreachable, received["errors"], received["dropped"]


@pytest.fixture
def ping(tunnel: None) -> Iterator[subprocess.Popen[str]]:
    """One in 20 ms, through the tunnel."""
    command = f"ip netns exec near ping -n -q -i 0.02 -c {PINGS} -W 5 10.99.0.2"
    with subprocess.Popen(command.split(), stdout=subprocess.PIPE, text=True) as process:
        yield process


async def test_stun_and_sealed_messages_share_the_kernels_port_while_the_tunnel_goes_on(
    ping: subprocess.Popen[str],
) -> None:
    endpoints = sh("ip netns exec near wg show wg0 endpoints")
    before = counters()
    sealed: list[Datagram] = []
    clients: list[StunClient] = []

    def on_stun(datagram: Datagram) -> None:
        clients[0].on_datagram(datagram)

    with ExitStack() as stack:
        poller = Poller()
        stack.callback(poller.close)
        pairs = []
        with inside_path("/run/netns/far"):
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                both = []
                for port in (STUN_PORT, STUN_PORT + 1):
                    sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                    sock.setblocking(False)
                    sock.bind((FAR[version], port))
                    both.append(sock)
                pairs.append(Pair(both[0], both[1]))
            peer = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server = StunServer(poller, pairs)
        stack.callback(server.close)
        with inside_path("/run/netns/near"):
            shared = SharedPort(PORT, on_stun=on_stun, on_sealed=sealed.append)
        stack.callback(shared.close)
        shared.join(poller)
        clients.append(StunClient(shared))
        assert not shared.estimated
        async with trio.open_nursery() as nursery:
            await nursery.start(poller.run)
            # IPv4's source is looked up for each datagram, where this task is.
            with inside_path("/run/netns/near"):
                for version in (4, 6):
                    to = Endpoint(ip_address(FAR[version]), STUN_PORT)
                    for number in range(QUESTIONS):
                        answer = await clients[0].ask(to, give_up_s=20.0)
                        assert answer.mapped == Endpoint(ip_address(NEAR[version]), PORT)
                        assert str(answer.local) == NEAR[version]
                        peer.sendto(SEALED_MAGIC + bytes([number]) * 1400, (NEAR[4], PORT))
                        await trio.sleep(0.05)
                    own = {ip_address(NEAR[version])}
                    told = await ask_servers(clients[0], Resolver(), [Named(FAR[version], STUN_PORT)])
                    found = await look(told, PORT, version=version, own=own)
                    assert found.verdict.nat is NatType.OPEN
            nursery.cancel_scope.cancel()
    assert [one.payload[8] for one in sealed] == [*range(QUESTIONS)] * 2
    said = ping.communicate()[0]
    assert re.search(rf"{PINGS} packets transmitted, {PINGS} received", said), said
    assert counters() == before, "nobody was told that the port is closed, and WireGuard counts no error"
    assert sh("ip netns exec near wg show wg0 endpoints") == endpoints
