"""What is written to an interface: what differs, and nothing else."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Literal

import pytest
import trio
from pyroute2.netlink.generic.wireguard import wgmsg

from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel import rtnl
from relayd.kernel.device import NO_KEY, Changes, Interface, Peer, PeerChange, PeerSettings, plan
from relayd.kernel.netlink import (
    ALLOWED_IPS_A_MESSAGE,
    MESSAGES_A_CALL,
    PEERS_A_MESSAGE,
    NetlinkWireGuard,
    messages_of,
)
from relayd.kernel.planned import PlannedWireGuard
from relayd.kernel.wireguard_dump import Reader
from relayd.keys import PublicKey
from tests.helpers.wireguard_contract import networks, new_key

NLMSG_HEADER_BYTES = 16
NOW = 1_700_000_000.0
OWN, A, B = new_key(), new_key().public(), new_key().public()
HERE, THERE = Endpoint.parse("192.0.2.1:1"), Endpoint.parse("192.0.2.2:2")


def interface(handshake_at: float | None = None) -> Interface:
    """One that has peer A."""
    peer = Peer(A, HERE, networks("10.1.0.0/16"), handshake_at, rx_bytes=1, tx_bytes=1, keepalive_s=25)
    return Interface(name="wg0", public_key=OWN.public(), listen_port=51820, fwmark=5, peers={A: peer})


def planned(current: Interface, endpoint: Endpoint | None, *, ips: str = "10.1.0.0/16") -> Changes:
    """What it takes to have peer A with this endpoint and these allowed IPs."""
    peers = [PeerSettings(key=A, allowed_ips=networks(ips), endpoint=endpoint, keepalive_s=25)]
    return plan(current, OWN, listen_port=51820, fwmark=5, peers=peers, now=NOW)


@pytest.mark.parametrize("endpoint", [HERE, None])
def test_what_is_right_already_is_not_written(endpoint: Endpoint | None) -> None:
    assert planned(interface(), endpoint) == Changes()


@pytest.mark.parametrize(
    ("age_s", "kept"),
    [
        pytest.param(0, True, id="just-now"),
        pytest.param(179.9, True, id="fresh"),
        pytest.param(180, False, id="stale"),
        pytest.param(-60, True, id="the-clock-was-set-back"),
    ],
)
def test_only_a_live_session_keeps_its_endpoint(age_s: float, kept: bool) -> None:
    change = Changes() if kept else Changes(peers=(PeerChange(key=A, endpoint=THERE),))
    assert planned(interface(handshake_at=NOW - age_s), THERE) == change


def test_a_peer_that_never_had_a_handshake_gets_the_endpoint() -> None:
    assert planned(interface(), THERE) == Changes(peers=(PeerChange(key=A, endpoint=THERE),))


def test_a_live_session_gets_its_allowed_ips_and_keeps_its_endpoint() -> None:
    change = PeerChange(key=A, allowed_ips=networks("10.3.0.0/16"))
    assert planned(interface(handshake_at=NOW), THERE, ips="10.3.0.0/16") == Changes(peers=(change,))


def test_each_difference_is_written_alone() -> None:
    other_key = new_key()
    got = plan(
        interface(), other_key, listen_port=1, fwmark=0, peers=[PeerSettings(key=B, allowed_ips=())], now=NOW
    )
    assert got == Changes(
        private_key=other_key,
        listen_port=1,
        fwmark=0,
        remove=(A,),
        peers=(PeerChange(key=B, new=True, allowed_ips=()),),
    )


def test_netlink_messages_stay_small_and_say_it_all() -> None:
    long = networks(*(f"10.{number // 256}.{number % 256}.0/24" for number in range(1100)))
    many = [new_key().public() for _ in range(250)]
    changes = Changes(
        peers=(
            PeerChange(key=A, new=True, endpoint=HERE, allowed_ips=long, keepalive_s=25),
            *(PeerChange(key=key, new=True, allowed_ips=networks("fd00::/64")) for key in many),
        )
    )
    reader = Reader("wg0")
    for attributes in messages_of(changes):
        message = wgmsg()
        message["attrs"] = [("WGDEVICE_A_IFNAME", "wg0"), *attributes]
        message.encode()
        assert len(message.data) < 0xFFFF
        decoded = wgmsg(bytes(message.data))
        decoded.decode()
        peers = decoded.get_attr("WGDEVICE_A_PEERS")
        assert len(peers) <= PEERS_A_MESSAGE
        assert sum(len(peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()) for peer in peers) <= ALLOWED_IPS_A_MESSAGE
        # The kernel splits a dump as a request is split: the parts of one peer are put together again.
        assert sum(1 for _ in reader.feed(bytes(message.data)[NLMSG_HEADER_BYTES:])) == len(peers)
    got = reader.interface()
    assert set(got.peers) == {A, *many}
    assert got.peers[A].allowed_ips == long
    assert (got.peers[A].endpoint, got.peers[A].keepalive_s) == (HERE, 25)


class Picky(PlannedWireGuard):
    """Refuses a whole request for one endpoint in it, as a kernel does, and may be gone altogether."""

    engine: Literal["kernel"] = "kernel"

    def __init__(self, refused: PublicKey | None = None, *, gone: bool = False) -> None:
        super().__init__("wg0")
        self.refused, self.gone = refused, gone
        self.writes = 0
        self.done: set[PublicKey] = set()

    async def dump(self) -> Interface:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise HostError("there is no interface wg0")
        return Interface("wg0", NO_KEY, 0, 0, {})

    async def _write(self, attempt: str, changes: Changes) -> None:
        await self.dump()
        self.writes += 1
        if any(peer.key == self.refused for peer in changes.peers):
            raise HostError(f"cannot {attempt}: Invalid argument")
        self.done |= {peer.key for peer in changes.peers}


ENDPOINTS = {new_key().public(): Endpoint.parse(f"127.64.0.{number}:22347") for number in range(1, 6)}


async def test_endpoints_of_many_are_one_request() -> None:
    wireguard = Picky()
    assert await wireguard.set_endpoints(ENDPOINTS) == {}
    assert (wireguard.writes, wireguard.done) == (1, set(ENDPOINTS))
    assert await wireguard.set_endpoints({}) == {}
    assert wireguard.writes == 1


async def test_one_that_is_refused_costs_the_others_nothing() -> None:
    bad = list(ENDPOINTS)[2]
    wireguard = Picky(bad)
    refused = await wireguard.set_endpoints(ENDPOINTS)
    assert list(refused) == [bad]
    assert wireguard.done == set(ENDPOINTS) - {bad}


async def test_an_interface_that_is_gone_is_not_asked_for_each_of_a_thousand() -> None:
    wireguard = Picky(gone=True)
    refused = await wireguard.set_endpoints(ENDPOINTS)
    assert {str(error) for error in refused.values()} == {"there is no interface wg0"}
    assert set(refused) == set(ENDPOINTS)
    assert wireguard.writes == 0


async def test_what_takes_long_is_written_in_calls_that_have_a_deadline_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tens of thousands of allowed IPs took longer than one call may, each time anew: no other peer came."""
    calls: list[str] = []

    async def call(attempt: str, function: object) -> None:
        await trio.lowlevel.checkpoint()
        calls.append(attempt)

    monkeypatch.setattr(rtnl, "call", call)
    many = tuple(ip_network((10 << 24 | number, 32)) for number in range(20 * ALLOWED_IPS_A_MESSAGE))
    change = PeerChange(key=new_key().public(), new=True, allowed_ips=many)
    await NetlinkWireGuard("wire_kube")._write("configure it", Changes(peers=(change,)))
    assert calls == ["configure it"] * (20 // MESSAGES_A_CALL)
