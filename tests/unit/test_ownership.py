"""ownership.decide: the table of what to do about an interface of that name."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from relayd import marks
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.device import NO_KEY, Interface, Peer, PeerSettings
from relayd.kernel.links import MADE_HERE, Link
from relayd.kernel.ownership import Start, belongs_to_relayd, decide, settings_for
from relayd.keys import PublicKey

OWN, OTHER, PEER = (PublicKey(letter * 32) for letter in (b"o", b"x", b"p"))
KERNELS = Link("wire_kube", 7, "wireguard", 1420, True)
OURS = replace(KERNELS, alias=MADE_HERE)
PROCESS = replace(KERNELS, kind="tun")
PEERS = {PEER: Peer(PEER, None, (), None, 0, 0, 0)}


def interface(key: PublicKey, *, peers: bool = True, fwmark: int = 0) -> Interface:
    return Interface("wire_kube", key, 51820, fwmark, PEERS if peers else {})


BLANK = interface(NO_KEY, peers=False)


@pytest.mark.parametrize(
    ("link", "seen", "about_to_make", "start"),
    [
        (None, None, False, Start.MAKE),
        (KERNELS, interface(OWN), False, Start.USE),
        (OURS, interface(OWN), False, Start.USE),
        (PROCESS, interface(OWN), False, Start.USE),
        (OURS, interface(OTHER), False, Start.MAKE_ANEW),
        (OURS, interface(NO_KEY), False, Start.MAKE_ANEW),
        (OURS, BLANK, False, Start.USE),
        (KERNELS, BLANK, True, Start.USE),
        (PROCESS, BLANK, False, Start.USE),
    ],
)
def test_what_is_done_about_an_interface(
    link: Link | None, seen: Interface | None, about_to_make: bool, start: Start
) -> None:
    assert decide(link, seen, OWN, about_to_make=about_to_make) is start


@pytest.mark.parametrize(
    ("link", "seen", "about_to_make", "why"),
    [
        (replace(KERNELS, kind="veth"), None, False, "is a veth interface, not WireGuard"),
        (replace(OURS, kind="dummy"), None, True, "is a dummy interface, not WireGuard"),
        (replace(KERNELS, kind="tun"), None, False, "is a tun interface, not WireGuard"),
        (KERNELS, interface(OTHER), False, "has another key than ours"),
        (KERNELS, interface(OTHER), True, "has another key than ours"),
        (KERNELS, interface(NO_KEY), True, "has another key than ours"),
        (KERNELS, BLANK, False, "has another key than ours"),
        (PROCESS, interface(OTHER), True, "run by a userspace WireGuard with another key"),
    ],
)
def test_g22_what_is_not_ours_is_refused(
    link: Link, seen: Interface | None, about_to_make: bool, why: str
) -> None:
    with pytest.raises(HostError, match=why):
        decide(link, seen, OWN, about_to_make=about_to_make)


def test_cleanup_takes_what_has_our_alias_our_key_or_our_mark() -> None:
    assert belongs_to_relayd(OURS, interface(OTHER), None)
    assert belongs_to_relayd(KERNELS, interface(OWN), OWN)
    assert belongs_to_relayd(KERNELS, interface(OTHER, fwmark=marks.FWMARK), OWN)
    assert not belongs_to_relayd(KERNELS, interface(OTHER), OWN)
    assert not belongs_to_relayd(KERNELS, interface(OTHER), None)
    assert not belongs_to_relayd(PROCESS, interface(OWN), OWN)


@pytest.mark.parametrize(
    ("has", "at_start", "while_running"),
    [
        (None, True, True),
        ("127.64.1.2:22347", False, False),  # on the relay
        ("192.0.2.7:1", True, False),  # `plan` then keeps it if there is a session
    ],
)
def test_an_endpoint_is_set_only_where_none_is_to_stay(
    has: str | None, at_start: bool, while_running: bool
) -> None:
    wanted = PeerSettings(
        key=PEER, allowed_ips=(ip_network("10.0.0.0/8"),), endpoint=Endpoint.parse("192.0.2.1:1")
    )
    peer = replace(PEERS[PEER], endpoint=None if has is None else Endpoint.parse(has))
    current = replace(interface(OWN), peers={PEER: peer})
    for endpoints, expected in ((True, at_start), (False, while_running)):
        (settings,) = settings_for([wanted], current, endpoints=endpoints)
        assert (settings.endpoint is not None) is expected
