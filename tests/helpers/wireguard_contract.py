"""What holds for every WireGuard that relayd drives: written once, run against the fake, a userspace process
and the kernel.

A test module subclasses `WireGuardContract` and gives it a `pair` fixture: two interfaces that are up, have
neither key nor peers, and can reach each other over 127.0.0.1.
"""

from __future__ import annotations

import dataclasses
import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Protocol

import pytest

from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.device import Interface, Network, Peer, PeerSettings, WireGuard
from relayd.keys import KEY_BYTES, PrivateKey, PublicKey

PORT, OTHER_PORT = 51901, 51902
MARK = 0x574B


def new_key() -> PrivateKey:
    """A private key that no other test uses."""
    return PrivateKey(os.urandom(KEY_BYTES))


def networks(*texts: str) -> tuple[Network, ...]:
    """Allowed IPs."""
    return tuple(ip_network(text) for text in texts)


def as_settings(peer: Peer) -> PeerSettings:
    """The settings that ask for what `peer` has, its allowed IPs in a fixed order."""
    return PeerSettings(
        key=peer.key,
        allowed_ips=in_order(peer.allowed_ips),
        endpoint=peer.endpoint,
        keepalive_s=peer.keepalive_s,
    )


def in_order(allowed_ips: tuple[Network, ...]) -> tuple[Network, ...]:
    """Allowed IPs sorted: an interface keeps them in a tree, and lists them in its own order."""
    v4 = sorted(network for network in allowed_ips if isinstance(network, IPv4Network))
    v6 = sorted(network for network in allowed_ips if isinstance(network, IPv6Network))
    return (*v4, *v6)


def settings_of(interface: Interface) -> dict[PublicKey, PeerSettings]:
    """All of an interface's peers as settings, by key."""
    return {key: as_settings(peer) for key, peer in interface.peers.items()}


def by_key(*peers: PeerSettings) -> dict[PublicKey, PeerSettings]:
    """Settings in the form of `settings_of`."""
    ordered = (dataclasses.replace(peer, allowed_ips=in_order(peer.allowed_ips)) for peer in peers)
    return {peer.key: peer for peer in ordered}


class Pair(Protocol):
    """Two interfaces that can reach each other over 127.0.0.1."""

    @property
    def here(self) -> WireGuard: ...
    @property
    def there(self) -> WireGuard: ...

    async def handshake(self) -> None:
        """Both have been made each other's peers, one with keepalive: return when they have a session."""
        ...


class WireGuardContract:
    """The claims. Subclasses give the fixture `pair`."""

    async def test_an_interface_without_a_key_says_how_to_give_it_one(self, pair: Pair) -> None:
        with pytest.raises(HostError, match="no private key"):
            await pair.here.read()

    async def test_what_was_configured_is_read_back(self, pair: Pair) -> None:
        own = new_key()
        peers = (
            PeerSettings(
                key=new_key().public(),
                allowed_ips=networks("10.99.0.2/32", "fd00:99::/64", "192.0.2.0/25"),
                endpoint=Endpoint.parse("192.0.2.1:51820"),
                keepalive_s=25,
            ),
            PeerSettings(
                key=new_key().public(),
                allowed_ips=networks("0.0.0.0/0", "::/0"),
                endpoint=Endpoint.parse("[2001:db8::7]:1"),
            ),
            PeerSettings(key=new_key().public(), allowed_ips=()),
        )
        await pair.here.configure(own, listen_port=PORT, fwmark=MARK, peers=peers)
        got = await pair.here.read()
        assert (got.name, got.public_key, got.listen_port, got.fwmark) == (
            pair.here.name, own.public(), PORT, MARK,
        )  # fmt: skip
        assert settings_of(got) == by_key(*peers)
        for peer in got.peers.values():
            assert (peer.handshake_at, peer.rx_bytes) == (None, 0)

    async def test_the_second_configuration_replaces_the_first(self, pair: Pair) -> None:
        gone, kept, changed = (new_key().public() for _ in range(3))
        before = [
            PeerSettings(key=gone, allowed_ips=networks("10.1.0.0/16")),
            PeerSettings(key=kept, allowed_ips=networks("10.2.0.0/16"), keepalive_s=25),
            PeerSettings(
                key=changed,
                # one to go to another peer, one to keep, one to go altogether
                allowed_ips=networks("10.3.0.0/16", "10.4.0.0/16", "10.5.0.0/16"),
                endpoint=Endpoint.parse("192.0.2.3:3"),
                keepalive_s=25,
            ),
        ]
        after = [
            before[1],
            PeerSettings(
                key=changed, allowed_ips=networks("10.4.0.0/16"), endpoint=Endpoint.parse("192.0.2.4:4")
            ),
            PeerSettings(key=new_key().public(), allowed_ips=networks("10.3.0.0/16")),
        ]
        await pair.here.configure(new_key(), listen_port=PORT, fwmark=MARK, peers=before)
        own = new_key()
        await pair.here.configure(own, listen_port=OTHER_PORT, fwmark=0, peers=after)
        got = await pair.here.read()
        assert (got.public_key, got.listen_port, got.fwmark) == (own.public(), OTHER_PORT, 0)
        assert settings_of(got) == by_key(*after)

    async def test_two_peers_can_swap_their_allowed_ips(self, pair: Pair) -> None:
        own, one, two = new_key(), new_key().public(), new_key().public()
        left, right = networks("10.1.0.0/16", "fd01::/64"), networks("10.2.0.0/16", "fd02::/64")
        for first, second in ((left, right), (right, left)):
            peers = [PeerSettings(key=one, allowed_ips=first), PeerSettings(key=two, allowed_ips=second)]
            await pair.here.configure(own, listen_port=PORT, fwmark=0, peers=peers)
            assert settings_of(await pair.here.read()) == by_key(*peers)

    async def test_any_port_is_the_port_that_it_has(self, pair: Pair) -> None:
        own = new_key()
        await pair.here.configure(own, listen_port=PORT, fwmark=0, peers=[])
        await pair.here.configure(own, listen_port=0, fwmark=0, peers=[])
        assert (await pair.here.read()).listen_port == PORT

    async def test_a_peer_without_an_endpoint_setting_keeps_the_one_it_has(self, pair: Pair) -> None:
        own, key = new_key(), new_key().public()
        has = PeerSettings(
            key=key, allowed_ips=networks("10.1.0.0/16"), endpoint=Endpoint.parse("192.0.2.1:1")
        )
        asks = PeerSettings(key=key, allowed_ips=networks("10.2.0.0/16"))
        for peer in (has, asks):
            await pair.here.configure(own, listen_port=PORT, fwmark=0, peers=[peer])
        got = (await pair.here.read()).peers[key]
        assert (got.endpoint, got.allowed_ips) == (has.endpoint, asks.allowed_ips)

    @pytest.mark.parametrize("text", ["127.64.1.2:22347", "[2001:db8::7]:51820"])
    async def test_set_endpoint_changes_that_and_nothing_else(self, pair: Pair, text: str) -> None:
        key = new_key().public()
        peers = [
            PeerSettings(
                key=key,
                allowed_ips=networks("10.1.0.0/16", "fd01::/64"),
                endpoint=Endpoint.parse("192.0.2.1:1"),
                keepalive_s=0,
            ),
            PeerSettings(key=new_key().public(), allowed_ips=networks("10.2.0.0/16")),
        ]
        await pair.here.configure(new_key(), listen_port=PORT, fwmark=MARK, peers=peers)
        before = await pair.here.read()
        await pair.here.set_endpoint(key, Endpoint.parse(text))
        after = await pair.here.read()
        expected = dataclasses.replace(before.peers[key], endpoint=Endpoint.parse(text))
        assert after == dataclasses.replace(before, peers={**before.peers, key: expected})

    async def test_set_endpoint_makes_no_peer(self, pair: Pair) -> None:
        known = PeerSettings(key=new_key().public(), allowed_ips=networks("10.1.0.0/16"))
        await pair.here.configure(new_key(), listen_port=PORT, fwmark=0, peers=[known])
        before = await pair.here.read()
        await pair.here.set_endpoint(new_key().public(), Endpoint.parse("192.0.2.1:1"))
        assert await pair.here.read() == before

    async def test_endpoints_of_many_peers_are_set_and_nothing_else_changes(self, pair: Pair) -> None:
        # More than one netlink message.
        keys = [new_key().public() for _ in range(250)]
        peers = [PeerSettings(key=key, allowed_ips=()) for key in keys]
        await pair.here.configure(new_key(), listen_port=PORT, fwmark=MARK, peers=peers)
        before = await pair.here.read()
        wanted = {key: Endpoint.parse(f"127.64.0.1:{port}") for port, key in enumerate(keys, 1)}
        wanted[new_key().public()] = Endpoint.parse("192.0.2.1:1")  # that isn't there
        assert await pair.here.set_endpoints(wanted) == {}
        after = await pair.here.read()
        assert after.peers == {
            key: dataclasses.replace(peer, endpoint=wanted[key]) for key, peer in before.peers.items()
        }

    async def test_many_peers_and_allowed_ips_arrive_whole(self, pair: Pair) -> None:
        # More than one netlink message both ways: peers, and the allowed IPs of one peer.
        peers = [
            PeerSettings(
                key=new_key().public(), allowed_ips=networks(f"10.200.{number}.0/24", f"fd00:{number:x}::/64")
            )
            for number in range(120)
        ]
        long = tuple(IPv4Network(((10 << 24) + (number << 8), 24)) for number in range(1200))
        peers.insert(60, PeerSettings(key=new_key().public(), allowed_ips=long))
        own = new_key()
        for _ in range(2):  # the second time there is nothing to do
            await pair.here.configure(own, listen_port=PORT, fwmark=0, peers=peers)
            assert settings_of(await pair.here.read()) == by_key(*peers)

    async def test_a_live_session_keeps_its_endpoint_through_a_configuration(self, pair: Pair) -> None:
        own, other = new_key(), new_key()
        there_at = Endpoint.parse(f"127.0.0.1:{OTHER_PORT}")
        to_there = PeerSettings(
            key=other.public(), allowed_ips=networks("10.1.0.0/16"), endpoint=there_at, keepalive_s=1
        )
        to_here = PeerSettings(key=own.public(), allowed_ips=networks("10.2.0.0/16"))
        await pair.there.configure(other, listen_port=OTHER_PORT, fwmark=0, peers=[to_here])
        await pair.here.configure(own, listen_port=PORT, fwmark=0, peers=[to_there])
        await pair.handshake()
        before = (await pair.here.read()).peers[other.public()]
        assert before.handshake_at is not None

        elsewhere = dataclasses.replace(
            to_there, endpoint=Endpoint.parse("192.0.2.1:1"), allowed_ips=networks("10.3.0.0/16")
        )
        await pair.here.configure(own, listen_port=PORT, fwmark=0, peers=[elsewhere])
        after = (await pair.here.read()).peers[other.public()]
        assert (after.endpoint, after.allowed_ips) == (there_at, elsewhere.allowed_ips)
        assert after.handshake_at is not None
        assert after.handshake_at >= before.handshake_at  # the session lives on: no key was written again
        # The side that was told no endpoint has learnt it from the first packet.
        heard = (await pair.there.read()).peers[own.public()]
        assert heard.endpoint == Endpoint.parse(f"127.0.0.1:{PORT}")
        assert heard.rx_bytes > 0
