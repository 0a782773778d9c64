"""`relayd stun` behind NATs of each kind, asked of relays: the verdict, and the words.

All sites ask at the same time, each from the port of a wireguard-go of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any

import pytest

from relayd.demo.lab import RELAYD
from relayd.demo.tunnel import Tunnel
from tests.helpers.natlab import Internet, Ipv6, Nat, Site
from tests.helpers.netns import wait_until

PORT = 51820
ANSWER_S = 60.0
"""Three questions are given up one after the other at worst, 3 s each; the rest is a busy machine."""


@dataclass(frozen=True)
class Expected:
    nats: tuple[Nat, ...]
    nat: str
    filtering: str
    ipv6: Ipv6 = Ipv6.FIREWALL
    nat6: str = "port-restricted-cone"


EXPECTED = {
    "public": Expected((), "open", "not by port", Ipv6.OPEN, "open"),
    "fullcone": Expected((Nat.FULL_CONE,), "cone", "not by port"),
    "addrres": Expected((Nat.ADDRESS_RESTRICTED,), "cone", "not by port"),
    "portres": Expected((Nat.PORT_RESTRICTED,), "port-restricted-cone", "address-and-port-dependent"),
    "sym": Expected((Nat.SYMMETRIC,), "symmetric", "address-and-port-dependent", Ipv6.OPEN, "open"),
    "symseq": Expected((Nat.SYMMETRIC_SEQUENTIAL,), "symmetric", "address-and-port-dependent"),
    "double": Expected(
        (Nat.FULL_CONE, Nat.PORT_RESTRICTED), "port-restricted-cone", "address-and-port-dependent"
    ),
    "carrier": Expected((Nat.PORT_RESTRICTED, Nat.SYMMETRIC), "symmetric", "address-and-port-dependent"),
    "blocked": Expected((Nat.UDP_BLOCKED,), "unknown", "unknown", Ipv6.FIREWALL, "unknown"),
}


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    sites = [Site(name, one.nats, ipv6=one.ipv6) for name, one in EXPECTED.items()]
    sites.append(Site("no6", (Nat.PORT_RESTRICTED,), ipv6=Ipv6.NONE, udp_timeout_s=4))
    with Internet(sites, public=("relay", "stun1")) as made:
        relays = [
            made.host(name).relayd("serve", "--open", "--log", "json", "--http", "off")
            for name in ("relay", "stun1")
        ]
        for relay in relays:
            relay.wait_for_output("relay.started", 30.0)
        for number, site in enumerate(sites):
            Tunnel(made.host(site.name), IPv4Interface(f"10.99.0.{number + 1}/24"), port=PORT, userspace=True)
        yield made


def servers(net: Internet) -> list[str]:
    return [str(net.endpoint(name, 3478, version)) for name in ("relay", "stun1") for version in (4, 6)]


@dataclass(frozen=True)
class Told:
    status: int
    answer: dict[str, Any]

    def version(self, number: int) -> dict[str, Any]:
        return next(one for one in self.answer["versions"] if one["version"] == number)


@pytest.fixture(scope="module")
def told(net: Internet) -> dict[str, Told]:
    asking = {
        name: net.host(name).start(*RELAYD, "stun", *servers(net), "--interface", "wg0", "--json")
        for name in EXPECTED
    }
    found = {}
    for name, process in asking.items():
        wait_until(lambda one=process: one.returncode() is not None, f"{name} has its answer", ANSWER_S)  # type: ignore[misc]
        said = process.output()
        found[name] = Told(process.returncode() or 0, json.loads(said.splitlines()[-1]))
        net.lab.discard(process)
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_each_kind_of_nat_is_called_by_its_name(net: Internet, told: dict[str, Told], name: str) -> None:
    expected, said = EXPECTED[name], told[name]
    assert (said.answer["port"], said.answer["estimated"]) == (PORT, False)
    four, six = said.version(4), said.version(6)
    assert (four["nat"], four["filtering"]) == (expected.nat, expected.filtering)
    assert six["nat"] == expected.nat6
    if name == "blocked":
        assert said.status == 1
        assert {one["problem"] for one in four["asked"]} == {"no answer within 3 s"}
        return
    assert said.status == 0
    assert {one["mapped"].rpartition(":")[0] for one in four["asked"]} == {str(net.address(name))}
    assert {one["mapped"] for one in six["asked"]} == {str(net.endpoint(name, PORT, 6))}
    if expected.nat == "symmetric":
        assert len({one["mapped"] for one in four["asked"]}) == 4, "one for each server's port"
    else:
        assert {one["mapped"] for one in four["asked"]} == {str(net.endpoint(name, PORT))}


@pytest.mark.parametrize("name", ["symseq", "sym"])
def test_ports_that_follow_each_other_are_predicted_and_random_ones_are_not(
    told: dict[str, Told], name: str
) -> None:
    four = told[name].version(4)
    if name == "sym":
        assert four["prediction"] is None
        return
    last = max(int(one["mapped"].rpartition(":")[2]) for one in four["asked"])
    assert four["prediction"]["step"] == 1
    assert int(four["prediction"]["next"].rpartition(":")[2]) == last + 1


def test_findings_are_in_the_order_in_which_they_are_believed(net: Internet, told: dict[str, Told]) -> None:
    findings = told["portres"].answer["findings"]
    assert [one["method"] for one in findings] == ["stun", "stun", "internal-ip"]
    assert findings[0]["endpoint"] == str(net.endpoint("portres", PORT))
    assert findings[-1]["endpoint"] == f"{net.lan_address('portres')}:{PORT}"


def run(net: Internet, site: str, *arguments: str) -> tuple[int, str]:
    process = net.host(site).start(*RELAYD, "stun", *arguments)
    wait_until(lambda: process.returncode() is not None, "it ends", ANSWER_S)
    status, said = process.returncode(), process.output()
    net.lab.discard(process)
    assert status is not None
    return status, said


def test_a_person_reads_what_it_means(net: Internet) -> None:
    status, said = run(net, "no6", str(net.address("relay")), "--interface", "wg0", "--lifetime", "8")
    assert status == 0
    assert f"Asked from WireGuard's own port, {PORT} (wg0)." in said
    assert f"IPv4: port-restricted-cone, seen as {net.endpoint('no6', PORT)}" in said
    assert "mapping    endpoint-independent, as far as one address can tell, keeps the port" in said
    assert "filtering  address-and-port-dependent" in said
    assert "but those behind symmetric NATs" in " ".join(said.split())
    # The NAT forgets after 4 s; what was tried is 1, 2, 3, 5 and 8 s.
    assert "lifetime   3 s, less than 5 s" in said


def test_beside_an_agent_it_tells_the_same(net: Internet, told: dict[str, Told]) -> None:
    host = net.host("double")
    agent = host.relayd(
        "agent",
        "--relay",
        f"{net.address('relay')}:3478",
        "--interface",
        "wg0",
        "--log",
        "json",
        "--http",
        "off",
    )
    agent.wait_for_output("agent.started", 30.0)
    status, said = run(net, "double", *servers(net), "--interface", "wg0", "--json")
    assert status == 0
    answer = json.loads(said.splitlines()[-1])
    four = next(one for one in answer["versions"] if one["version"] == 4)
    before = told["double"].version(4)
    assert [four[what] for what in ("nat", "mapped", "filtering")] == [
        before[what] for what in ("nat", "mapped", "filtering")
    ]
    assert agent.returncode() is None
    net.lab.discard(agent)


def test_without_root_it_is_an_estimate_and_says_why(net: Internet) -> None:
    nobody = ("setpriv", "--bounding-set=-net_raw,-net_admin", "--inh-caps=-net_raw,-net_admin")
    process = net.host("fullcone").start(
        *nobody, *RELAYD, "stun", str(net.address("relay")), "--port", str(PORT), "--json"
    )
    wait_until(lambda: process.returncode() is not None, "it ends", ANSWER_S)
    answer = json.loads(process.output().splitlines()[-1])
    assert answer["estimated"] is True
    assert "CAP_NET_RAW is missing" in answer["lacks"]
    assert answer["versions"][0]["nat"] == "cone"
    assert answer["versions"][0]["asked_from_port"] != PORT
    assert [one["estimated"] for one in answer["findings"] if one["method"] == "stun"] == [True]


def test_a_server_that_is_no_address_or_has_none_is_told_by_its_name(net: Internet) -> None:
    status, said = run(net, "public", "nosuch.invalid", "--interface", "wg0")
    assert status == 1
    assert "STUN server nosuch.invalid:3478" in said
    assert "None of the servers could be asked." in said
    status, said = run(net, "public", "no_name!", "--interface", "wg0")
    assert status == 2
    assert "host name" in said
