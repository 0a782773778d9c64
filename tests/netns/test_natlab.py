"""The laboratory's NATs are what they are called, in mapping and filtering, as RFC 5780's tests find out.

Not by relayd's own classification: this is what that is tested with.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from tests.helpers.inside import inside
from tests.helpers.natlab import Internet, Ipv6, Nat, Site, UnsupportedError

HEARD_S, SILENT_S = 2.0, 0.3
"""A datagram takes a millisecond here. That none comes must be waited for, so not for long."""

INDEPENDENT, BY_ADDRESS, BY_ADDRESS_AND_PORT = "endpoint", "address", "address and port"


class Behaviour(NamedTuple):
    mapping: str
    filtering: str


EXPECTED = {
    (): Behaviour(INDEPENDENT, INDEPENDENT),
    (Nat.FULL_CONE,): Behaviour(INDEPENDENT, INDEPENDENT),
    (Nat.ADDRESS_RESTRICTED,): Behaviour(INDEPENDENT, BY_ADDRESS),
    (Nat.PORT_RESTRICTED,): Behaviour(INDEPENDENT, BY_ADDRESS_AND_PORT),
    (Nat.SYMMETRIC,): Behaviour(BY_ADDRESS_AND_PORT, BY_ADDRESS_AND_PORT),
    (Nat.SYMMETRIC_SEQUENTIAL,): Behaviour(BY_ADDRESS_AND_PORT, BY_ADDRESS_AND_PORT),
    (Nat.UDP_BLOCKED,): None,
    (Nat.FULL_CONE, Nat.PORT_RESTRICTED): Behaviour(INDEPENDENT, BY_ADDRESS_AND_PORT),
    (Nat.PORT_RESTRICTED, Nat.FULL_CONE): Behaviour(INDEPENDENT, BY_ADDRESS_AND_PORT),
    (Nat.PORT_RESTRICTED, Nat.SYMMETRIC): Behaviour(BY_ADDRESS_AND_PORT, BY_ADDRESS_AND_PORT),
    (Nat.FULL_CONE, Nat.FULL_CONE): Behaviour(INDEPENDENT, INDEPENDENT),
}
NAMES = {nats: "-".join(["site", *(nat.value.replace("_", "") for nat in nats)]) for nats in EXPECTED}


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    sites = [Site(name, nats) for nats, name in NAMES.items()]
    sites.append(Site("open6", (Nat.PORT_RESTRICTED,), ipv6=Ipv6.OPEN))
    sites.append(Site("no6", (Nat.PORT_RESTRICTED,), ipv6=Ipv6.NONE))
    with Internet(sites) as made:
        yield made


@contextmanager
def udp(net: Internet, name: str, port: int = 0, version: int = 4) -> Iterator[socket.socket]:
    with inside(net.host(name)):
        sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("::" if version == 6 else "", port))
        sock.settimeout(HEARD_S)
        yield sock


def hears(sock: socket.socket, wait_s: float) -> bool:
    sock.settimeout(wait_s)
    try:
        sock.recv(100)
    except TimeoutError:
        return False
    return True


def behaviour(net: Internet, site: str, version: int = 4) -> Behaviour | None:
    """RFC 5780, sections 4.3 and 4.4. None: no UDP gets out."""
    first, second = (str(net.address(name, version)) for name in ("stun1", "stun2"))
    with ExitStack() as stack:
        ends = (("stun1", 3478), ("stun1", 3479), ("stun2", 3478), (site, 0), (site, 0))
        a, a_other, b, one, fresh = (stack.enter_context(udp(net, *end, version)) for end in ends)
        a.settimeout(SILENT_S)
        seen = []
        for server, where in ((a, (first, 3478)), (a_other, (first, 3479)), (b, (second, 3478))):
            one.sendto(b"?", where)
            try:
                seen.append(server.recvfrom(100)[1][:2])
            except TimeoutError:
                return None
            server.settimeout(HEARD_S)
        mapping = (
            INDEPENDENT if len(set(seen)) == 1 else BY_ADDRESS if seen[0] == seen[1] else BY_ADDRESS_AND_PORT
        )
        # The fresh one has spoken to `a` alone.
        fresh.sendto(b"?", (first, 3478))
        here = a.recvfrom(100)[1]
        for filtering, server in ((INDEPENDENT, b), (BY_ADDRESS, a_other)):
            server.sendto(b"!", here)
            if hears(fresh, SILENT_S):
                return Behaviour(mapping, filtering)
        a.sendto(b"!", here)
        assert hears(fresh, HEARD_S), "an answer gets in"
        return Behaviour(mapping, BY_ADDRESS_AND_PORT)


def punch(net: Internet, one: str, other: str, *, port: int = 51820, version: int = 4) -> bool:
    """Textbook hole punching with mappings learnt from a public host: whether both heard the other."""
    stun = net.address("stun1", version)
    with ExitStack() as stack:
        ends = (("stun1", 3478), (one, port), (other, port + 1))
        server, x, y = (stack.enter_context(udp(net, *end, version)) for end in ends)
        mapped = []
        for sock in (x, y):
            sock.sendto(b"?", (str(stun), 3478))
            mapped.append(server.recvfrom(100)[1])
        to, heard = {x: mapped[1], y: mapped[0]}, set()
        for _ in range(3):
            for sock in (x, y):
                sock.sendto(b"punch", to[sock])
            for sock in (x, y):
                sock.settimeout(SILENT_S)
                try:
                    to[sock] = sock.recvfrom(100)[1]  # from now on: where it really came from
                except TimeoutError:
                    continue
                heard.add(sock)
        return len(heard) == 2


@pytest.mark.parametrize("nats", EXPECTED, ids=NAMES.values())
def test_a_nat_of_each_kind_maps_and_filters_as_its_name_says(net: Internet, nats: tuple[Nat, ...]) -> None:
    assert behaviour(net, NAMES[nats]) == EXPECTED[nats]


def test_ipv6_is_not_translated_and_let_in_as_the_site_says(net: Internet) -> None:
    firewalled = NAMES[(Nat.PORT_RESTRICTED,)]
    assert behaviour(net, firewalled, 6) == Behaviour(INDEPENDENT, BY_ADDRESS_AND_PORT)
    assert behaviour(net, "open6", 6) == Behaviour(INDEPENDENT, INDEPENDENT)
    assert behaviour(net, NAMES[()], 6) == Behaviour(INDEPENDENT, INDEPENDENT)
    assert behaviour(net, NAMES[(Nat.UDP_BLOCKED,)], 6) is None
    with udp(net, "stun1", 3478, 6) as server, udp(net, "open6", 51820, 6) as sock:
        sock.sendto(b"?", (str(net.address("stun1", 6)), 3478))
        assert server.recvfrom(100)[1][:2] == (str(net.address("open6", 6)), 51820)
    assert "inet6" not in net.host("no6").run("ip", "address", "show", "dev", "eth0")


@pytest.mark.parametrize(
    ("one", "other", "works"),
    [
        (Nat.FULL_CONE, Nat.SYMMETRIC, True),
        (Nat.ADDRESS_RESTRICTED, Nat.SYMMETRIC, True),
        (Nat.PORT_RESTRICTED, Nat.ADDRESS_RESTRICTED, True),
        (Nat.PORT_RESTRICTED, Nat.SYMMETRIC, False),
        (Nat.SYMMETRIC, Nat.SYMMETRIC_SEQUENTIAL, False),
    ],
    ids=lambda value: value.value if isinstance(value, Nat) else None,
)
def test_punching_works_where_theory_has_it(net: Internet, one: Nat, other: Nat, works: bool) -> None:
    assert punch(net, NAMES[(one,)], NAMES[(other,)]) is works


def test_two_ports_of_a_sequential_nat_follow_each_other(net: Internet) -> None:
    site = NAMES[(Nat.SYMMETRIC_SEQUENTIAL,)]
    with udp(net, "stun1", 3478) as a, udp(net, "stun2", 3478) as b, udp(net, site) as sock:
        ports = []
        for name, server in (("stun1", a), ("stun2", b)):
            sock.sendto(b"?", (str(net.address(name)), 3478))
            ports.append(server.recvfrom(100)[1][1])
        assert ports[1] == ports[0] + 1
        assert 40000 <= ports[0] < 42000


@pytest.mark.parametrize("hairpin", [True, False], ids=["hairpin", "no-hairpin"])
@pytest.mark.parametrize("nat", [Nat.PORT_RESTRICTED, Nat.FULL_CONE], ids=lambda nat: nat.value)
def test_two_hosts_behind_one_nat_reach_each_other_by_hairpin_and_on_the_lan(nat: Nat, hairpin: bool) -> None:
    with Internet([Site("home", (nat,), hosts=2, hairpin=hairpin)], public=("stun1",)) as net:
        assert punch(net, "home", "home2") is hairpin
        with udp(net, "home", 1000) as one, udp(net, "home2", 2000) as two:
            one.sendto(b"?", (str(net.lan_address("home", 1)), 2000))
            assert two.recvfrom(100)[1] == (str(net.lan_address("home")), 1000)


def test_a_cut_is_silent_and_concerns_one_way_or_both_and_no_other_pair(net: Internet) -> None:
    with udp(net, "stun1", 4000) as one, udp(net, "stun2", 4000) as two, udp(net, "relay", 4000) as third:
        here, there, beyond = ((str(net.address(name)), 4000) for name in ("stun1", "stun2", "relay"))
        net.cut("stun1", "stun2", both=False)
        one.sendto(b"lost", there)
        two.sendto(b"heard", here)
        assert one.recv(100) == b"heard"
        assert not hears(two, SILENT_S)
        net.mend("stun1", "stun2", both=False)
        net.cut("stun1", "stun2")
        one.sendto(b"lost", there)
        two.sendto(b"lost", here)
        one.sendto(b"heard", beyond)
        assert third.recv(100) == b"heard"
        assert not hears(two, SILENT_S)
        assert not hears(one, 0.01)
        net.mend("stun1", "stun2")
        one.sendto(b"heard", there)
        assert hears(two, HEARD_S)


def test_loss_is_about_what_was_asked_for_and_goes_away(net: Internet) -> None:
    with udp(net, "stun1", 4000) as one, udp(net, "stun2", 4000) as two:
        there = (str(net.address("stun2")), 4000)

        def arrived(sent: int) -> int:
            heard = 0
            for number in range(sent):
                one.sendto(b"?", there)
                if number % 100 == 99:  # what fits the receiver's buffer for sure
                    heard += sum(iter(lambda: hears(two, SILENT_S), False))
            return heard

        net.impair("stun2", loss_percent=30.0)
        # 400 draws of 0.7: 280, give or take 9.2. Six deviations are never met.
        assert 225 < arrived(400) < 335
        net.impair("stun2")
        assert arrived(400) == 400


def test_delay_is_there_where_the_kernel_has_netem_and_told_to_be_missing_elsewhere(net: Internet) -> None:
    if not net.netem():
        with pytest.raises(UnsupportedError, match="netem"):
            net.impair("stun2", delay_ms=50)
        return
    net.impair("stun2", delay_ms=50)
    with udp(net, "stun1", 4000) as one, udp(net, "stun2", 4000) as two:
        started = time.monotonic()
        one.sendto(b"?", (str(net.address("stun2")), 4000))
        assert hears(two, HEARD_S)
        assert time.monotonic() - started > 0.045
    net.impair("stun2")


@pytest.mark.parametrize("nats", [(), (Nat.PORT_RESTRICTED,)], ids=["public", "nat"])
def test_a_renumbered_site_has_another_address_and_no_mapping_of_before(
    net: Internet, nats: tuple[Nat, ...]
) -> None:
    site = NAMES[nats]
    with udp(net, "stun1", 3478) as server, udp(net, site, 51820) as sock:
        stun = (str(net.address("stun1")), 3478)
        sock.sendto(b"?", stun)
        before = server.recvfrom(100)[1]
        fresh = net.renumber(site)
        server.sendto(b"!", before)
        assert not hears(sock, SILENT_S)
        sock.sendto(b"?", stun)
        after = server.recvfrom(100)[1]
        assert after[0] == str(fresh) == str(net.address(site)) != before[0]
        server.sendto(b"!", after)
        assert hears(sock, HEARD_S)
    assert behaviour(net, site) == EXPECTED[nats]


@pytest.mark.parametrize("nat", [Nat.FULL_CONE, Nat.PORT_RESTRICTED], ids=lambda nat: nat.value)
def test_a_nat_that_was_restarted_has_forgotten_its_mappings(net: Internet, nat: Nat) -> None:
    with udp(net, "stun1", 3478) as server, udp(net, NAMES[(nat,)], 51820) as sock:
        sock.sendto(b"?", (str(net.address("stun1")), 3478))
        here = server.recvfrom(100)[1]
        net.forget_mappings(NAMES[(nat,)])
        server.sendto(b"!", here)
        assert not hears(sock, SILENT_S)


def test_a_mapping_ends_after_the_time_that_was_asked_for() -> None:
    with ExitStack() as stack:
        brief = Site("brief", (Nat.PORT_RESTRICTED,), udp_timeout_s=2)
        net = stack.enter_context(Internet([brief], public=("stun1",)))
        server, sock = (stack.enter_context(udp(net, *end)) for end in (("stun1", 3478), ("brief", 0)))
        for wait_s, gets_in in ((0.5, True), (4.0, False)):
            sock.sendto(b"?", (str(net.address("stun1")), 3478))
            here = server.recvfrom(100)[1]
            time.sleep(wait_s)
            server.sendto(b"!", here)
            assert hears(sock, SILENT_S) is gets_in


def test_what_can_not_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="several hosts"):
        Site("a", (), hosts=2)
    with pytest.raises(ValueError, match="hairpinning"):
        Site("a", (Nat.SYMMETRIC,), hairpin=True)
