"""Two agents behind NATs, with real packets: every pairing, changes under a ping, cuts, and an address
change."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations_with_replacement

import pytest

from relayd.endpoints import Endpoint
from relayd.marks import PROXY_NETWORK, PROXY_PORT
from tests.helpers.natlab import Ipv6, Nat, Site
from tests.helpers.netns import status_of, wait_until
from tests.helpers.pairings import PAIRING
from tests.helpers.path_mesh import CONTROL, PORTS, PathMesh, Pings

BEHIND_NATS, OVER_IPV6 = "paths between two ends behind NATs", "paths over IPv6"

FIRST_PING_S = 2.0
DIRECT_S = 5.0
"""From both agents up."""

RELAYED_FOR_S = 6.0
"""A pair that is still relayed after this isn't about to go direct: a round of checks takes 5.4 s."""

BIRTHDAY_S = 60.0
"""Checks come to nothing after 6 s; an attempt takes up to 20 s, and fails three times in 10,000."""
RETURN_S = 30.0

KINDS: dict[str, tuple[Nat, ...]] = {
    "none": (),
    "full cone": (Nat.FULL_CONE,),
    "address-restricted": (Nat.ADDRESS_RESTRICTED,),
    "port-restricted": (Nat.PORT_RESTRICTED,),
    "symmetric": (Nat.SYMMETRIC,),
    "sequential": (Nat.SYMMETRIC_SEQUENTIAL,),
    "double": (Nat.PORT_RESTRICTED, Nat.FULL_CONE),
    "UDP blocked": (Nat.UDP_BLOCKED,),
}


def in_theory(a: str, b: str) -> str:
    """RFC 5128, section 3.3 and 3.4; "sequential" is a symmetric NAT whose ports can be predicted."""
    pair = {a, b}
    if "UDP blocked" in pair:
        return "relay"
    hard = {"port-restricted", "symmetric", "double"}
    if "symmetric" in pair and (len(pair) == 1 or pair & (hard - {"symmetric"})):
        return "relay"
    if pair == {"symmetric", "sequential"}:
        return "relay"  # one prediction is of no use to a port that is drawn
    if pair == {"sequential"}:
        return "either"  # where the predictions meet depends on the counters: as a rule in a later round
    return "direct"


BLOCKED_TRIED_WITH = ("none", "port-restricted")
"""No UDP is no UDP: these two stand for all."""

PAIRS = [
    (a, b)
    for a, b in combinations_with_replacement(KINDS, 2)
    if b != "UDP blocked" or a in BLOCKED_TRIED_WITH
]


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=lambda name: name.replace(" ", "-"))
def test_a_pairing_takes_the_path_that_theory_allows(
    a: str, b: str, record_property: Callable[[str, object], None]
) -> None:
    with PathMesh(KINDS[a], KINDS[b], ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents()
        up_at = mesh.wait_up()
        pings = Pings(mesh)
        first_at = wait_until(pings.first_at, "a ping is answered")
        expected = in_theory(a, b)
        if expected == "direct":
            direct_at = mesh.wait_path("direct")
            assert direct_at - up_at < DIRECT_S
            found = f"direct {max(0.0, direct_at - up_at):.1f} s"
        else:
            time.sleep(max(0.0, up_at + RELAYED_FOR_S - time.time()))
            paths = {mesh.path(name) for name in ("a", "b")}
            assert paths == {"relay"} or (expected == "either" and paths == {"direct"})
            found = paths.pop()
        record_property(PAIRING, (BEHIND_NATS, a, b, found))
        assert first_at - up_at < FIRST_PING_S
        result = pings.stop()
        assert result.lost() == []
        assert result.most_copies() <= 2


def over_ipv6(ipv6: Ipv6, name: str) -> Site:
    """A site whose IPv4 leads nowhere with another one like it."""
    return Site(name, (Nat.UDP_BLOCKED if ipv6 is Ipv6.NONE else Nat.SYMMETRIC,), ipv6=ipv6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Ipv6.OPEN, Ipv6.OPEN, "direct"),
        (Ipv6.OPEN, Ipv6.FIREWALL, "direct"),
        (Ipv6.FIREWALL, Ipv6.FIREWALL, "direct"),
        (Ipv6.OPEN, Ipv6.NONE, "relay"),
    ],
    ids=lambda one: one.value if isinstance(one, Ipv6) else one,
)
def test_a_pairing_over_ipv6_takes_the_path_that_theory_allows(
    a: Ipv6, b: Ipv6, expected: str, record_property: Callable[[str, object], None]
) -> None:
    with PathMesh(over_ipv6(a, "a"), over_ipv6(b, "b")) as mesh:
        mesh.start_agents()
        up_at = mesh.wait_up()
        pings = Pings(mesh)
        wait_until(pings.first_at, "a ping is answered")
        if expected == "direct":
            direct_at = mesh.wait_path("direct")
            assert direct_at - up_at < DIRECT_S
            found = f"direct {max(0.0, direct_at - up_at):.1f} s"
            assert {str(mesh.endpoint(name)) for name in ("a", "b")} == {
                str(Endpoint(mesh.internet.address(name, 6), PORTS[name])) for name in ("a", "b")
            }
        else:
            time.sleep(max(0.0, up_at + RELAYED_FOR_S - time.time()))
            assert {mesh.path(name) for name in ("a", "b")} == {"relay"}
            found = "relay"
        record_property(PAIRING, (OVER_IPV6, a.value, b.value, found))
        result = pings.stop()
        assert result.lost() == []
        assert result.most_copies() <= 2


def test_two_hosts_behind_one_nat_meet_on_its_inside() -> None:
    with PathMesh((Nat.SYMMETRIC,), one_site=True, ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents()
        mesh.wait_up()
        mesh.wait_path("direct")
        endpoint = mesh.endpoint("a")
        assert endpoint == Endpoint(mesh.internet.lan_address("a", 1), PORTS["b"])


def test_two_hosts_that_one_nat_keeps_apart_meet_by_its_hairpin() -> None:
    """As on a wireless network that isolates its clients: the inner addresses lead nowhere."""
    site = Site("a", (Nat.PORT_RESTRICTED,), hosts=2, hairpin=True, isolated=True, ipv6=Ipv6.NONE)
    with PathMesh(site, one_site=True) as mesh:
        mesh.start_agents()
        mesh.wait_up()
        pings = Pings(mesh)
        mesh.wait_path("direct")
        outer = mesh.internet.address("a")
        assert mesh.endpoint("a") == Endpoint(outer, PORTS["b"])
        assert mesh.endpoint("b") == Endpoint(outer, PORTS["a"])
        assert pings.stop().lost() == []


def test_the_birthday_method_makes_a_symmetric_and_a_port_restricted_nat_meet() -> None:
    hard, easy = "a", "b"
    nats = ((Nat.SYMMETRIC,), (Nat.PORT_RESTRICTED,))
    with PathMesh(*nats, agent="birthday = true", ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents()
        mesh.wait_up()
        pings = Pings(mesh)
        mesh.wait_path("direct", timeout_s=BIRTHDAY_S)
        endpoint = mesh.endpoint(hard)
        assert endpoint is not None
        assert endpoint.address in PROXY_NETWORK  # a port of our own stands for the socket that was met
        assert endpoint.port != PROXY_PORT
        seen = mesh.endpoint(easy)
        assert seen is not None
        assert seen.address == mesh.internet.address(hard)
        time.sleep(2.0)
        result = pings.stop()
        assert result.lost() == []
        assert result.most_copies() <= 2
        assert [mesh.path(name) for name in ("a", "b")] == ["direct", "direct"]
        status = status_of(mesh.nodes[hard], CONTROL)
        assert status is not None
        told = status["direct_paths"]["birthday"]
        assert (told["sockets"], told["attempts"]) == (1, 1)  # the others are closed
        # The way through our own process goes with it, and the relay takes over.
        mesh.agents[hard].kill()
        mesh.agents[hard].wait()
        mesh.start_agents(hard)
        mesh.wait_up()
        pings = Pings(mesh, easy)
        wait_until(pings.first_at, "a ping is answered again", RETURN_S)
        assert pings.stop().answers
