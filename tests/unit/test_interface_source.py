"""An existing interface as a source of the mesh."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
import trio
from trio.testing import MockClock

from relayd.coordination.interface import AdoptedSource
from relayd.coordination.model import AdoptedInterface, Mesh, MeshPeer
from relayd.coordination.source import Source
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.join import JoinString
from relayd.keys import PublicKey
from tests.helpers.fake_wireguard import FakeWireGuard
from tests.helpers.wireguard_contract import networks, new_key

RELAYS = (JoinString("relay.example.net", 3478),)
A, B = sorted(new_key().public() for _ in range(2))


@pytest.fixture
def wireguard() -> FakeWireGuard:
    fake = FakeWireGuard("wg0", new_key())
    fake.add_peer(B, allowed_ips=networks("10.2.0.0/16"), keepalive_s=25)
    fake.add_peer(A, allowed_ips=networks("fd01::/64", "10.1.0.0/16"), endpoint=Endpoint.parse("192.0.2.1:1"))
    return fake


@pytest.fixture
def source(wireguard: FakeWireGuard) -> Source:
    return AdoptedSource(wireguard.read, RELAYS)


async def test_the_interface_is_the_mesh(source: Source) -> None:
    assert await source.snapshot() == Mesh(
        interface=AdoptedInterface("wg0"),
        peers=(
            MeshPeer(key=A, allowed_ips=(ip_network("10.1.0.0/16"), ip_network("fd01::/64"))),
            MeshPeer(key=B, allowed_ips=(ip_network("10.2.0.0/16"),), keepalive_s=25),
        ),
        relays=RELAYS,
    )


async def test_an_interface_that_is_missing_is_told_at_once(wireguard: FakeWireGuard, source: Source) -> None:
    wireguard.failure = HostError("there is no interface wg0")
    with pytest.raises(HostError, match="no interface wg0"):
        await source.snapshot()


async def test_a_stale_snapshot_is_answered_at_once(wireguard: FakeWireGuard, source: Source) -> None:
    stale = await source.snapshot()
    wireguard.remove_peer(A)
    assert [peer.key for peer in (await source.changed(stale)).peers] == [B]


async def test_traffic_handshakes_and_endpoints_are_no_change(
    wireguard: FakeWireGuard, source: Source, autojump_clock: MockClock
) -> None:
    seen = await source.snapshot()
    with trio.move_on_after(60) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.changed, seen)
            await trio.sleep(3)
            wireguard.update_peer(
                A, endpoint=Endpoint.parse("127.64.0.1:22347"), handshake_at=1.0, rx_bytes=5, tx_bytes=6
            )
            wireguard.set_listen_port(4711)
    assert scope.cancelled_caught


async def test_a_new_peer_ends_the_wait(
    wireguard: FakeWireGuard, source: Source, autojump_clock: MockClock
) -> None:
    seen = await source.snapshot()
    new = PublicKey(bytes(31) + b"\x01")
    meshes: list[Mesh] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                meshes.append(await source.changed(seen))

            nursery.start_soon(wait)
            await trio.sleep(30)
            assert meshes == []
            wireguard.add_peer(new)
    assert [peer.key for peer in meshes[0].peers] == [new, A, B]


async def test_an_interface_that_goes_away_is_waited_for(
    wireguard: FakeWireGuard, source: Source, autojump_clock: MockClock
) -> None:
    seen = await source.snapshot()
    wireguard.failure = HostError("there is no interface wg0")
    meshes: list[Mesh] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                meshes.append(await source.changed(seen))

            nursery.start_soon(wait)
            await trio.sleep(30)
            wireguard.remove_peer(B)
            assert meshes == []
            wireguard.failure = None
    assert [peer.key for peer in meshes[0].peers] == [A]
