"""What an agent makes of discovery and pathfinders, for its node's resource."""

from __future__ import annotations

import pytest

from relayd.agent.cluster import discovered, overall, reported
from relayd.coordination.kubernetes.mesh import Discovered
from relayd.endpoints import Endpoint
from relayd.paths.candidates import make
from relayd.paths.findings import Finding, Method
from relayd.paths.nat_class import NatType

SEEN = Endpoint.parse("203.0.113.1:4000")
SIX = Endpoint.parse("[2001:db8::5]:51820")


def finding(method: Method, endpoint: Endpoint = SEEN, *, estimated: bool = False) -> Finding:
    return Finding(method=method, endpoint=endpoint, estimated=estimated)


@pytest.mark.parametrize("method", [Method.MANUAL, Method.STUN, Method.UPNP, Method.AWS_METADATA])
def test_what_was_really_seen_is_published(method: Method) -> None:
    found = discovered([finding(method)], NatType.CONE)
    assert found == Discovered(endpoint="203.0.113.1:4000", method=method.value)


def test_a_guess_and_an_interfaces_address_are_not() -> None:
    guess, internal = finding(Method.STUN, estimated=True), finding(Method.INTERNAL_IP)
    assert discovered([internal, guess], NatType.CONE) == Discovered()
    assert discovered([], NatType.UNKNOWN) == Discovered()


def test_a_symmetric_nats_mapping_and_an_ipv6_address_are_unsure() -> None:
    assert not discovered([finding(Method.STUN)], NatType.SYMMETRIC).sure
    assert discovered([finding(Method.STUN, SIX)], NatType.SYMMETRIC).sure, "no NAT there"
    assert discovered([finding(Method.UPNP)], NatType.SYMMETRIC).sure
    assert discovered([finding(Method.IPV6, SIX)], NatType.OPEN) == Discovered(
        endpoint="[2001:db8::5]:51820", method="ipv6", sure=False
    )


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((), ""),
        (("gathering", "failed", "connected", "relay"), "connected"),
        (("checking", "relay"), "relay"),
        (("gathering", "failed", "checking"), "checking"),
        (("gathering", "failed"), "failed"),
    ],
)
def test_the_best_of_the_peers_states_is_the_nodes(states: tuple[str, ...], expected: str) -> None:
    assert overall(states) == expected


def test_candidates_in_the_resources_words() -> None:
    one = make("srflx", SEEN)
    assert reported([one]) == [{"type": "srflx", "address": "203.0.113.1:4000", "priority": one.priority}]
