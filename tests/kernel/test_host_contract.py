"""The kernel's routing, and both variants of iptables, do what the fakes do."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from relayd.kernel.firewall import LEGACY, NFT, Firewall, Iptables, legacy_size
from relayd.kernel.routing import NetlinkRouting, Routing
from tests.helpers.host_contract import FirewallContract, NatContract, RoutingContract
from tests.kernel.shell import UNDO_RULES, removed, sh


class TestNetlinkRouting(RoutingContract):
    @pytest.fixture
    def routing(self) -> Iterator[Routing]:
        sh(
            "ip link add tunnel0 type wireguard; ip link set tunnel0 up; "
            "ip address add 10.8.0.1/24 dev tunnel0; ip address add fd08::1/64 dev tunnel0"
        )
        yield NetlinkRouting()
        removed("tunnel0")
        sh(UNDO_RULES)


@pytest.mark.parametrize("variant", [NFT, LEGACY])
class TestIptables(FirewallContract):
    @pytest.fixture
    def firewall(self, variant: str) -> Iterator[Firewall]:
        iptables = f"iptables-{variant}"
        sh(f"{iptables} -N KUBE-FIREWALL")
        sh(f"{iptables} -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP")
        yield Iptables()
        sh(f"{iptables} -F KUBE-FIREWALL; {iptables} -X KUBE-FIREWALL")

    async def test_the_rule_is_what_an_operator_would_have_typed(
        self, firewall: Firewall, variant: str
    ) -> None:
        (chain,) = await firewall.chains()
        await firewall.insert(chain)
        listed = sh(f"iptables-{variant} -S KUBE-FIREWALL")
        sh(
            f"iptables-{variant} -t filter -D KUBE-FIREWALL -m mark --mark 0x574b -d 127.0.0.0/8 -j ACCEPT "
            "-m comment --comment 'wirekube: allow WG relay proxy on loopback'; "
            f"iptables-{variant} -t filter -I KUBE-FIREWALL 1 -m mark --mark 0x574b -d 127.0.0.0/8 -j ACCEPT "
            "-m comment --comment 'wirekube: allow WG relay proxy on loopback'"
        )
        assert sh(f"iptables-{variant} -S KUBE-FIREWALL") == listed
        await firewall.delete(chain)
        assert "574b" not in sh(f"iptables-{variant} -S KUBE-FIREWALL")

    async def test_others_comments_may_say_anything(self, firewall: Firewall, variant: str) -> None:
        (chain,) = await firewall.chains()
        await firewall.insert(chain)
        comment = 'it\'s "our" permission,\nyou must be root'
        sh(f"iptables-{variant} -I KUBE-FIREWALL -m comment --comment {shlex.quote(comment)} -j RETURN")
        (chain,) = await firewall.chains()
        assert (chain.ours, chain.length) == ((2,), 3)


@pytest.mark.parametrize("variant", [NFT, LEGACY])
@pytest.mark.parametrize("version", [4, 6])
class TestNatByIptables(NatContract):
    @pytest.fixture
    def firewall(self, variant: str, version: int) -> Iterator[Firewall]:
        iptables = f"{'iptables' if version == 4 else 'ip6tables'}-{variant} -t nat"
        sh(
            f"{iptables} -N KUBE-POSTROUTING; {iptables} -A POSTROUTING -o somewhere -j ACCEPT; "
            f"{iptables} -A POSTROUTING -m comment --comment 'kubernetes postrouting rules' "
            "-j KUBE-POSTROUTING"
        )
        yield Iptables()
        sh(f"{iptables} -F POSTROUTING; {iptables} -X KUBE-POSTROUTING")


async def test_without_the_chain_there_is_nothing_to_do_and_nothing_is_made() -> None:
    before = sh("nft list ruleset")
    assert await Iptables().chains() == []
    assert sh("nft list ruleset") == before


async def test_a_host_without_iptables_has_no_chains() -> None:
    assert await Iptables(search_path="/nowhere").chains() == []


def test_a_change_of_legacy_iptables_shows_in_its_size() -> None:
    sh("iptables-legacy -N SOME-CHAIN")
    sh("iptables-legacy -t nat -N SOME-CHAIN; ip6tables-legacy -t nat -N SOME-CHAIN")
    seen = {legacy_size()}
    assert len(next(iter(seen))) >= 3
    for count, command in enumerate(
        ("iptables-legacy", "iptables-legacy -t nat", "ip6tables-legacy -t nat"), 2
    ):
        sh(f"{command} -A SOME-CHAIN -j ACCEPT")
        seen.add(legacy_size())
        assert len(seen) == count
        sh(f"{command} -F SOME-CHAIN; {command} -X SOME-CHAIN")
