"""Where a host may be reached: what is believed first, and what outlives a failure."""

from __future__ import annotations

import pytest

from relayd.endpoints import Endpoint
from relayd.paths.findings import Finding, Method, in_order, on_port, renewed, to_publish


def finding(method: str, endpoint: str, *, estimated: bool = False) -> Finding:
    return Finding(method=Method(method), endpoint=Endpoint.parse(endpoint), estimated=estimated)


SEEN = finding("stun", "203.0.113.5:51820")
GUESS = finding("stun", "203.0.113.5:40000", estimated=True)
HOST = finding("internal-ip", "192.168.1.2:51820")


def test_methods_are_believed_in_the_order_of_their_evidence_and_guesses_last() -> None:
    found = [
        GUESS,
        HOST,
        finding("ipv6", "[2001:db8::1]:1"),
        finding("aws-metadata", "203.0.113.6:1"),
        finding("upnp", "203.0.113.7:1"),
        SEEN,
        finding("manual", "203.0.113.8:1"),
    ]
    assert [one.method.value for one in in_order(found)] == [
        *("manual", "stun", "upnp", "aws-metadata", "ipv6", "internal-ip"),
        "stun",
    ]


def test_an_endpoint_that_two_methods_found_has_the_better_ones_name() -> None:
    [one] = in_order([finding("internal-ip", "203.0.113.5:51820"), SEEN])
    assert one is SEEN


FOUR, SIX = (Method.STUN, 4), (Method.STUN, 6)
NEWER = finding("stun", "203.0.113.77:51820")
SEEN6 = finding("stun", "[2001:db8::1]:51820")


@pytest.mark.parametrize(
    ("known", "fresh", "failed", "expected"),
    [
        ([SEEN, HOST], [HOST], {FOUR}, [SEEN, HOST]),
        ([SEEN, HOST], [HOST], set(), [HOST]),
        ([SEEN, HOST], [NEWER, HOST], set(), [NEWER, HOST]),
        ([SEEN, SEEN6], [NEWER], {SIX}, [NEWER, SEEN6]),
        ([SEEN], [GUESS], set(), [SEEN]),
        ([SEEN], [GUESS, HOST], {SIX}, [SEEN, HOST]),
        ([GUESS], [SEEN], set(), [SEEN]),
        ([], [GUESS], set(), [GUESS]),
        ([GUESS], [], {FOUR}, [GUESS]),
    ],
    ids=["stun-failed", "stun-says-none", "moved", "one-version-failed", "guess-for-seen", "guess-and-host",
         "seen-for-guess", "guess-for-nothing", "guess-kept"],
)  # fmt: skip
def test_what_is_known_after_another_look(
    known: list[Finding], fresh: list[Finding], failed: set[tuple[Method, int]], expected: list[Finding]
) -> None:
    assert renewed(known, fresh, failed=failed) == expected


def test_a_published_endpoint_is_never_replaced_by_a_guess() -> None:
    published = Endpoint.parse("203.0.113.5:51820")
    assert to_publish([GUESS], published) == published
    assert to_publish([GUESS], None) == GUESS.endpoint
    assert to_publish([], published) == published
    assert to_publish([NEWER, GUESS], published) == NEWER.endpoint


def test_a_guess_can_be_told_with_wireguards_port() -> None:
    assert [str(one.endpoint) for one in on_port([GUESS, NEWER], 51820)] == [
        "203.0.113.5:51820",
        "203.0.113.77:51820",
    ]
