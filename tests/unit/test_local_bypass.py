"""What is on a wire of this host's own, proved, stays out of the tunnel where the mesh wants that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import trio
from trio.testing import MockClock

from relayd.agent.local_bypass import LOOK_S, LocalBypass, on_own_addresses
from relayd.coordination.model import AdoptedInterface, Mesh, MeshPeer
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.routing import LOCAL, MAIN, Hop
from tests.helpers.wireguard_contract import networks, new_key

KEY = new_key().public()
HERE = Endpoint.parse("192.168.1.7:51820")
OWN = ip_network("192.168.1.7/32")
PEER = MeshPeer(key=KEY, allowed_ips=networks("10.100.0.7/32", "192.168.1.7/32", "192.168.1.0/24"))


def mesh(*, bypass: bool = True) -> Mesh:
    return Mesh(interface=AdoptedInterface("wg0"), peers=(PEER,), relays=(), bypass_local=bypass)


def test_only_the_very_address_counts_at_which_the_peer_is() -> None:
    assert on_own_addresses([PEER], {KEY: HERE}) == {ip_address("192.168.1.7"): OWN}
    assert on_own_addresses([PEER], {KEY: Endpoint.parse("192.168.1.8:1")}) == {}
    assert on_own_addresses([PEER], {}) == {}
    assert on_own_addresses([replace(PEER, unrouted=(OWN,))], {KEY: HERE}) == {}


class Host:
    """Where packets go, and what is proved."""

    def __init__(self) -> None:
        self.mesh = mesh()
        self.proved = {KEY: HERE}
        self.hop: Hop | None = Hop(device="eth0", table=MAIN)
        self.failure: HostError | None = None
        self.changes = 0
        self.bypass = LocalBypass(
            "wg0",
            mesh=lambda: self.mesh,
            proved=lambda: self.proved,
            look_up=self._look_up,
            changed=self._changed,
        )

    async def _look_up(self, addresses: Sequence[IPv4Address | IPv6Address]) -> Sequence[Hop | None]:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return [self.hop for _ in addresses]

    async def _changed(self) -> None:
        await trio.lowlevel.checkpoint()
        self.changes += 1


async def test_a_peer_on_a_common_wire_and_its_leaving_route_anew(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    host = Host()
    await nursery.start(host.bypass.run)
    await trio.sleep(0.1)
    assert (host.bypass.networks, host.changes) == (frozenset([OWN]), 1)
    await trio.sleep(10 * LOOK_S)
    assert host.changes == 1
    host.proved.clear()
    await trio.sleep(LOOK_S)
    assert (host.bypass.networks, host.changes) == (frozenset(), 2)
    nursery.cancel_scope.cancel()


async def test_what_is_behind_a_gateway_in_the_tunnel_or_here_is_no_common_wire() -> None:
    host = Host()
    for hop in (
        None,
        Hop(device="eth0", table=MAIN, gateway=ip_address("192.168.0.1")),
        Hop(device="wg0", table=MAIN),
        Hop(device="lo", table=LOCAL),
    ):
        host.hop = hop
        await host.bypass.look()
        assert host.bypass.networks == frozenset()


async def test_it_is_done_only_where_the_mesh_wants_it() -> None:
    host = Host()
    host.mesh = mesh(bypass=False)
    await host.bypass.look()
    assert host.bypass.networks == frozenset()
    host.mesh = mesh()
    await host.bypass.look()
    assert host.bypass.networks == {OWN}
    host.mesh = mesh(bypass=False)
    await host.bypass.look()
    assert host.bypass.networks == frozenset()


async def test_a_host_whose_routing_cannot_be_read_changes_nothing() -> None:
    host = Host()
    await host.bypass.look()
    host.failure = HostError("cannot look routes up")
    await host.bypass.look()
    assert host.bypass.networks == {OWN}
