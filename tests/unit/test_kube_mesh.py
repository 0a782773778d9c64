"""What resources mean for a node: its interface, its peers, its relays, and what of it can't be used."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import msgspec
import pytest

from relayd.agent.discovery.stun_servers import StunServer
from relayd.coordination.kubernetes.claims import MAX_ALLOWED_IPS
from relayd.coordination.kubernetes.mesh import (
    MANAGED_RELAY,
    View,
    api_server,
    meaning,
)
from relayd.coordination.kubernetes.resources import MeshStatus
from relayd.coordination.model import OwnedInterface, RelayMode
from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.marks import HANDSHAKE_FRESH_S
from relayd.paths.patience import USUAL, Patience
from tests.helpers.kube_resources import KEYS, ME, mesh, node, peer, view


def test_stun_servers_of_the_mesh() -> None:
    made = meaning(view(of=mesh(stunServers=("stun:one.example.net:3478", "192.0.2.1:19302", "two"))), ME)
    assert made.mesh.stun == ("one.example.net:3478", "192.0.2.1:19302")
    assert any("stunServers" in line for line in made.problems)


@pytest.mark.parametrize("port", [0, -1, 70000])
def test_a_port_of_the_managed_relay_that_there_is_not_is_told_of(port: int) -> None:
    made = meaning(view(of=mesh(relay={"provider": "managed", "managed": {"port": port}})), ME)
    assert (made.mesh.relays, made.mesh.relay_sets) == ((), ())
    assert any("relay.managed.port" in line for line in made.problems)


@pytest.mark.parametrize(
    "text", ["stun.example..net:3478", "stun.example .net:3478", "[::1:3478", ":3478", "x:0"]
)
def test_a_stun_server_that_nobody_could_ask_is_told_of_and_left_out(text: str) -> None:
    """It was handed on, and ended each agent of the cluster."""
    made = meaning(view(of=mesh(stunServers=(text, "192.0.2.1:19302"))), ME)
    assert made.mesh.stun == ("192.0.2.1:19302",)
    assert [str(StunServer.parse(one)) for one in made.mesh.stun] == ["192.0.2.1:19302"]
    assert any("stunServers" in line for line in made.problems)


@pytest.mark.parametrize(
    ("relay", "fixed", "names"),
    [
        ({"provider": "managed"}, [], [f"{MANAGED_RELAY}:3478"]),
        ({"provider": "managed", "managed": {"port": 3500}}, [], [f"{MANAGED_RELAY}:3500"]),
        ({"provider": "managed", "managed": {"controlEndpoint": "192.0.2.9:1"}}, ["192.0.2.9:1"], []),
        ({"provider": "external", "external": {"endpoint": "192.0.2.1:3478"}}, ["192.0.2.1:3478"], []),
        (
            {
                "external": {
                    "endpoint": "192.0.2.1:3478",
                    "controlEndpoint": "192.0.2.2:1",
                    "transport": "tcp",
                }
            },
            ["192.0.2.2:1"],
            [],
        ),
    ],
)
def test_where_the_relay_is(relay: dict[str, Any], fixed: list[str], names: list[str]) -> None:
    made = meaning(view(of=mesh(relay=relay)), ME)
    assert [one.address for one in made.mesh.relays] == fixed
    assert [one.address for one in made.mesh.relay_sets] == names
    assert made.problems == ()


def test_a_relay_that_wirekube_manages_is_where_its_agents_have_found_it() -> None:
    status = MeshStatus(relayEndpoint="203.0.113.50:3478")
    there = msgspec.structs.replace(mesh(relay={"provider": "managed"}), status=status)
    made = meaning(view(of=there), ME).mesh
    assert ([one.address for one in made.relays], made.relay_sets) == (["203.0.113.50:3478"], ())


@pytest.mark.parametrize(
    "relay",
    [
        {"external": {"endpoint": "relay"}},
        {"external": {"controlEndpoint": "wss://relay.example.net/relay", "transport": "wss"}},
        {"provider": "managed", "managed": {"transport": "wss"}},
    ],
)
def test_a_relay_that_cannot_be_reached_is_said(relay: dict[str, Any]) -> None:
    made = meaning(view(of=mesh(relay=relay)), ME)
    assert (made.mesh.relays, made.mesh.relay_sets) == ((), ())
    assert any("WireKubeMesh: relay." in line for line in made.problems)


@pytest.mark.parametrize("own_relay", [(), (JoinString("own.example.net", 3478),)])
def test_in_the_mode_never_there_is_no_relay(own_relay: tuple[JoinString, ...]) -> None:
    of = mesh(relay={"mode": "never", "provider": "external", "external": {"endpoint": "192.0.2.1:3478"}})
    made = meaning(view(of=of), replace(ME, relays=own_relay)).mesh
    assert (made.relays, made.relay_mode) == ((), RelayMode.NEVER)


def test_the_times_of_the_mesh_and_those_that_it_does_not_name() -> None:
    own = Patience(fresh_handshake_s=200.0)
    assert meaning(view(), ME).mesh.patience.over(own) == own
    said = mesh(
        relay={"directRetryIntervalSeconds": 30, "handshakeTimeoutSeconds": 20},
        natTraversal={"healthProbeTimeoutSeconds": 7, "handshakeValidWindowSeconds": 240},
    )
    assert meaning(view(of=said), ME).mesh.patience.over(own) == Patience(
        silent_s=7.0, recheck_cap_s=30.0, try_s=20.0, fresh_handshake_s=240.0
    )


def test_a_session_that_wireguard_still_takes_is_never_called_stale() -> None:
    said = meaning(view(of=mesh(natTraversal={"handshakeValidWindowSeconds": 10})), ME).mesh.patience
    assert said.over(USUAL).fresh_handshake_s == HANDSHAKE_FRESH_S


@pytest.mark.parametrize(
    ("mesh_says", "node_says", "expected"),
    [
        ("", "", None),
        ("enabled", "", True),
        ("disabled", "", False),
        ("enabled", "disabled", False),
        ("", "enabled", True),
        ("enabled", "nonsense", True),
    ],
)
def test_the_birthday_method_is_the_meshs_or_the_nodes(
    mesh_says: str, node_says: str, expected: bool | None
) -> None:
    annotated = node(**({"wirekube.io/birthday-attack": node_says} if node_says else {}))
    of = mesh(natTraversal={"birthdayAttack": mesh_says} if mesh_says else {})
    assert meaning(view(of=of, on=annotated), ME).mesh.birthday is expected


def test_the_mesh_of_a_node() -> None:
    others = (
        peer("b", 1, endpoint="203.0.113.2:51820", allowedIPs=["10.100.0.2/32", "192.168.2.0/24"]),
        peer("c", 2, allowedIPs=["10.100.0.3/32"], persistentKeepalive=0),
    )
    mine = peer("a", 0, allowedIPs=["10.100.0.1/32"])
    made = meaning(view(mine, *others, of=mesh(mtu=1300, listenPort=5000)), ME)
    interface = made.mesh.interface
    assert isinstance(interface, OwnedInterface)
    assert (interface.name, interface.mtu, interface.listen_port) == ("wire_kube", 1300, 5000)
    assert interface.addresses == (ip_interface("10.100.0.1/32"),)
    b, c = made.mesh.peers
    assert b.endpoint == Endpoint.parse("203.0.113.2:51820")
    assert b.allowed_ips == (ip_network("10.100.0.2/32"), ip_network("192.168.2.0/24"))
    assert (c.endpoint, c.keepalive_s, b.keepalive_s) == (None, 0, 25)
    assert made.names == {KEYS[1].public(): "b", KEYS[2].public(): "c"}
    assert made.problems == ()


def test_a_removed_node_has_no_peers() -> None:
    made = meaning(view(peer("b", allowedIPs=["10.100.0.2/32"])), ME, removed=True)
    assert made.mesh.peers == ()


def test_a_node_without_allowed_ips_is_passive() -> None:
    made = meaning(view(peer("a", 0), peer("b", allowedIPs=["10.0.0.2/32"]), of=mesh(meshCIDR="")), ME)
    assert made.mesh.peers == ()
    assert "no allowedIPs" in made.problems[0]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"interfaceName": "../wg"}, "interfaceName"),
        ({"interfaceName": "a-name-that-is-too-long"}, "interfaceName"),
        ({"listenPort": 70000}, "listenPort: 70000"),
        ({"listenPort": -1}, "listenPort: -1"),
        ({"mtu": 100000}, "mtu: 100000"),
    ],
)
def test_an_interface_that_cannot_be_made_is_refused_before_it_is_tried(
    spec: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        meaning(view(of=mesh(**spec)), ME)


@pytest.mark.parametrize(
    "url", ["https://api:port", "https://[2001:db8::1", "https://h\u00f6st", "http://api"]
)
def test_a_server_that_can_be_none_is_said_and_not_asked(url: str) -> None:
    of = mesh(apiServerURL=url)
    assert api_server(of.spec)[0] == ""
    made = meaning(view(peer("b", 1, allowedIPs=["10.100.0.2/32"]), of=of), ME)
    assert any("apiServerURL" in line for line in made.problems)
    assert made.mesh.peers


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"publicKey": "x"}, "publicKey"),
        ({"endpoint": "127.0.0.1:51820"}, "can't be reached"),
        ({"endpoint": "0.0.0.0:51820"}, "can't be reached"),
        ({"endpoint": "127.64.1.1:22347"}, "can't be reached"),
        ({"endpoint": "192.0.2.1:0"}, "can't be reached"),
        ({"endpoint": "192.0.2.1:99999"}, "endpoint"),
        ({"endpoint": "home.example.net:51820"}, "endpoint"),
        ({"endpoint": "[::ffff:127.64.1.1]:22347"}, "can't be reached"),
        ({"endpoint": "255.255.255.255:51820"}, "can't be reached"),
        ({"endpoint": "[fe80::1%eth0]:51820"}, "can't be reached"),
        ({"endpoint": "[fe80::1%99999999999]:51820"}, "can't be reached"),
        ({"allowedIPs": ["fe80::1%eth0/128"]}, "has a zone"),
        ({"publicKey": "A" * 43 + "="}, "all zeros"),
        ({"allowedIPs": ["10.0.0.300/32"]}, "allowedIPs"),
        ({"allowedIPs": ["::/129"]}, "allowedIPs"),
    ],
)
def test_what_cant_be_used_is_left_out_and_said(spec: dict[str, Any], complaint: str) -> None:
    made = meaning(
        view(
            peer("a", 0, allowedIPs=["10.100.0.1/32"]),
            peer("b", 1, allowedIPs=["10.100.0.2/32"]),
            peer("bad", 2, **spec),
        ),
        ME,
    )
    assert "b" in made.names.values()
    assert any("bad" in line and complaint in line for line in made.problems)
    assert all(one.endpoint is None for one in made.mesh.peers)


def test_a_problem_is_a_line_however_much_it_quotes() -> None:
    made = meaning(view(peer("a", 0, allowedIPs=["10.0.0.1/32"]), peer("b", 1, allowedIPs=["x" * 10**6])), ME)
    (problem,) = made.problems
    assert "WireKubePeer b: allowedIPs" in problem
    assert len(problem) < 400


def test_of_more_allowed_ips_than_anybody_needs_the_first_count() -> None:
    many = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(MAX_ALLOWED_IPS + 1)]
    made = meaning(view(peer("a", 0, allowedIPs=["10.100.0.1/32"]), peer("b", 1, allowedIPs=many)), ME)
    assert len(made.mesh.peers[0].allowed_ips) == MAX_ALLOWED_IPS
    assert made.problems == (f"WireKubePeer b: of its allowedIPs the first {MAX_ALLOWED_IPS} count",)


def test_many_problems_are_summed_up() -> None:
    bad = [peer(f"p{n}", 1, made=n % 60, endpoint="nowhere") for n in range(100)]
    problems = meaning(view(peer("a", 0, allowedIPs=["10.100.0.1/32"]), *bad), ME).problems
    assert len(problems) == 20
    assert problems[-1].endswith("more")


def test_excluded_networks_are_not_routed() -> None:
    without = mesh(routing={"excludeCIDRs": ["192.168.0.0/16", "10.0.0.0/8"]})
    theirs = ["10.100.0.2/32", "192.168.2.0/24", "192.0.0.0/8"]
    mine = peer("a", 0, allowedIPs=["10.100.0.1/32"])
    (b,) = meaning(view(mine, peer("b", allowedIPs=theirs), of=without), ME).mesh.peers
    assert b.routed == (ip_network("10.100.0.2/32"), ip_network("192.0.0.0/8")), "never a node's own address"
    assert b.allowed_ips == tuple(map(ip_network, theirs)), "what comes from there is let in"


def test_the_tunnel_is_bypassed_on_a_common_wire_only_where_that_is_said() -> None:
    for policy, expected in (("", False), ("tunnel", False), ("bypass", True)):
        of = mesh(routing={"localSubnetPolicy": policy})
        assert meaning(view(of=of), ME).mesh.bypass_local is expected
    assert not meaning(view(), ME).mesh.bypass_local


def test_without_a_mesh_there_is_nothing_to_say() -> None:
    with pytest.raises(ValueError, match="no WireKubeMesh"):
        meaning(View(mesh=None, peers={}, node=None), ME)
