"""Cleanup on a real host: whole, half done, never there; always the same end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from relayd.kernel import host_rules, links, ownership
from relayd.kernel.cleanup import Cleanup, Outcome
from relayd.kernel.device import PeerSettings
from relayd.kernel.firewall import Iptables
from relayd.kernel.host_rules import HostRules
from relayd.kernel.ownership import Owned, open_owned
from relayd.kernel.routing import NetlinkRouting
from relayd.kernel.sysctls import Sysctls
from tests.helpers.wireguard_contract import networks, new_key
from tests.kernel.agents import Agents
from tests.kernel.shell import UNDO_RULES, host, removed, sh

NAME = "wire_kube"
VARIANTS = ("nft", "legacy")
KEY = new_key()
OWNED = Owned(
    name=NAME,
    private_key=KEY,
    listen_port=51820,
    mtu=1420,
    addresses=(ip_interface("10.8.0.1/24"), ip_interface("fd08::1/64")),
    peers=(PeerSettings(key=new_key().public(), allowed_ips=networks("10.77.0.0/16", "fd77::/64")),),
)
FIREWALL_RULE = (
    "-m mark --mark 0x574b -d 127.0.0.0/8 -j ACCEPT -m comment --comment "
    "'wirekube: allow WG relay proxy on loopback'"
)

NAT_RULE = (
    "-m mark --mark 0x574b -j ACCEPT -m comment --comment 'relayd: WireGuard packets keep their source'"
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "wirekube"


@pytest.fixture
def before(state: Path) -> Iterator[str]:
    """The host before relayd: with KUBE-FIREWALL in both variants, and things that aren't relayd's."""
    for variant in VARIANTS:
        sh(
            f"iptables-{variant} -N KUBE-FIREWALL; iptables-{variant} -A KUBE-FIREWALL -j RETURN; "
            f"iptables-{variant} -t nat -N KUBE-POSTROUTING; "
            f"iptables-{variant} -t nat -A POSTROUTING -j KUBE-POSTROUTING"
        )
    sh("ip rule add from 10.5.0.0/16 lookup 100 priority 200; ip link add wg0 type wireguard")
    yield seen()
    removed(NAME, "wg0")
    sh(f"{UNDO_RULES}\nip rule del priority 200; sysctl -qw net.ipv4.conf.lo.accept_local=0")
    for variant in VARIANTS:
        sh(
            f"iptables-{variant} -F KUBE-FIREWALL; iptables-{variant} -X KUBE-FIREWALL; "
            f"iptables-{variant} -t nat -F POSTROUTING; iptables-{variant} -t nat -X KUBE-POSTROUTING"
        )


def seen() -> str:
    return host() + sh("iptables-legacy-save | grep -v '^[#:]'")


def cleanup(state: Path, *, iptables: Iptables | None = None) -> Cleanup:
    return Cleanup(
        NAME,
        state,
        routing=NetlinkRouting(),
        sysctls=Sysctls(state),
        firewall=iptables or Iptables(),
    )


async def installed(state: Path) -> None:
    """All that an agent adds."""
    opened = await open_owned(OWNED, state)
    opened.wireguard.close()
    rules = HostRules(NetlinkRouting(), Sysctls(state), Iptables())
    allowed_ips = [ip for peer in OWNED.peers for ip in peer.allowed_ips]
    done = await rules.apply(host_rules.owned(NAME, OWNED.addresses, allowed_ips), [ip_address("127.0.0.1")])
    assert done.problems == []
    (state / "privatekey").write_text(KEY.to_base64())
    (state / "loopback.json").write_text("{}")
    assert "fwmark: 0x574b" in sh(f"wg show {NAME}")


def listed(directory: Path) -> list[str] | None:
    """The names in it; None: it isn't there."""
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else None


def kinds(outcome: Outcome) -> set[str]:
    return {item.kind for item in outcome.removed}


ALL_KINDS = {"firewall", "route", "rule", "interface", "sysctl", "file"}


async def test_g21_everything_goes_and_a_second_run_finds_nothing(before: str, state: Path) -> None:
    await installed(state)
    dry = await cleanup(state).run(dry_run=True)
    assert {item.kind for item in dry.left} == ALL_KINDS
    there = seen()
    outcome = await cleanup(state).run()
    assert (outcome.is_clean, outcome.failed) == (True, [])
    assert kinds(outcome) == ALL_KINDS
    assert {str(item) for item in outcome.removed} == {str(item) for item in dry.left}
    assert there != before
    assert seen() == before
    assert listed(state) is None
    again = await cleanup(state).run()
    assert (again.is_clean, again.removed) == (True, [])
    assert seen() == before


async def test_g21_duplicates_odd_priorities_and_strange_routes_go_too(before: str, state: Path) -> None:
    await installed(state)
    for variant in VARIANTS:
        sh(
            f"for _ in 1 2 3; do iptables-{variant} -A KUBE-FIREWALL {FIREWALL_RULE}; "
            f"iptables-{variant} -t nat -A POSTROUTING {NAT_RULE}; done"
        )
    sh(
        "ip rule add fwmark 0x574b lookup main priority 115; "
        "ip rule add fwmark 0x574b lookup main priority 100; "
        "ip rule add lookup 22347 priority 777; ip -6 rule add lookup 22347 priority 778; "
        "ip route add unreachable 10.88.0.0/16 table 22347; "
        "ip route add 10.89.0.0/16 dev lo table 22347 metric 7; "
        "ip -6 route add unreachable fd88::/64 table 22347"
    )
    outcome = await cleanup(state).run()
    assert outcome.is_clean, outcome
    assert sum(item.kind == "firewall" for item in outcome.removed) == 16
    assert seen() == before


async def test_g21_a_half_clean_host_ends_the_same(before: str, state: Path) -> None:
    await installed(state)
    # As the manual commands leave it: no interface (its routes and switches with it), no key, one rule gone.
    sh(
        f"ip link del {NAME}; ip rule del priority 200 table 22347; "
        f"rm {state}/privatekey {state}/loopback.json"
    )
    outcome = await cleanup(state).run()
    assert outcome.is_clean, outcome
    assert kinds(outcome) == {"firewall", "rule", "sysctl", "file"}
    assert seen() == before
    assert listed(state) is None


async def test_g21_a_host_that_never_had_it_is_clean(before: str, state: Path) -> None:
    outcome = await cleanup(state).run()
    assert (outcome.is_clean, outcome.removed, outcome.kept) == (True, [], [])
    assert seen() == before


async def test_g21_without_iptables_the_rest_goes(before: str, state: Path) -> None:
    await installed(state)
    outcome = await cleanup(state, iptables=Iptables(search_path="/nowhere")).run()
    assert outcome.is_clean
    assert kinds(outcome) == ALL_KINDS - {"firewall"}


async def test_of_a_mounted_state_directory_the_content_goes(before: str, state: Path) -> None:
    sh(f"mkdir {state}; mount -t tmpfs state {state}")
    try:
        await installed(state)
        outcome = await cleanup(state).run()
        assert outcome.is_clean, outcome
        assert listed(state) == []
    finally:
        sh(f"umount {state}")
    assert seen() == before


def test_what_relayd_made_by_another_name_goes_where_none_is_named(
    before: str, state: Path, agents: Agents
) -> None:
    """[interface] has any name. What stays is told apart by the kernel, which knows who made it."""
    sh("ip link add wg7 type wireguard; ip link set wg7 alias 'made by relayd'")
    try:
        places = ("--state", str(state), "--control", f"{state}/none.sock")
        for named, gone in (("--interface", "wg8"), False), ((), True):
            done = agents.start_beside(os.getpid(), "cleanup", *places, *named)
            assert done.wait() == 0
            assert ("removed: interface wg7\n" in done.output()) == gone, done.output()
        assert seen() == before
    finally:
        removed("wg7")


async def test_other_files_in_the_state_directory_stay(before: str, state: Path) -> None:
    await installed(state)
    for name in ("relay.key", "endpoints-wg0.json"):
        (state / name).write_text("not the agent's")
    outcome = await cleanup(state).run()
    assert outcome.is_clean
    assert listed(state) == ["endpoints-wg0.json", "relay.key"]
    assert "relay.key" in outcome.kept[0]


async def test_a_switch_that_somebody_else_set_meanwhile_stays(before: str, state: Path) -> None:
    sh("sysctl -qw net.ipv4.conf.lo.accept_local=1")
    try:
        await installed(state)
        assert (await cleanup(state).run()).is_clean
        # It had the value before relayd came.
        assert sh("sysctl -n net.ipv4.conf.lo.accept_local") == "1\n"
    finally:
        sh("sysctl -qw net.ipv4.conf.lo.accept_local=0")


@pytest.mark.parametrize("kind", ["wireguard", "veth"])
async def test_g22_an_interface_of_that_name_that_is_not_ours_stays(
    before: str, state: Path, kind: str
) -> None:
    sh(f"ip link add {NAME} type {kind}")
    if kind == "wireguard":
        sh(f"wg set {NAME} private-key /dev/stdin listen-port 4711", stdin=new_key().to_base64())
    outcome = await cleanup(state).run()
    assert outcome.is_clean
    assert "left alone" in outcome.kept[0]
    link, _ = await ownership.look(NAME)
    assert link is not None


async def test_an_interface_of_an_earlier_program_is_known_by_key_or_mark(before: str, state: Path) -> None:
    for how in ("private-key /dev/stdin", "fwmark 0x574b"):
        sh(f"mkdir {state}")
        (state / "privatekey").write_text(KEY.to_base64())
        sh(f"ip link add {NAME} type wireguard; wg set {NAME} {how}", stdin=KEY.to_base64())
        assert (await cleanup(state).run()).is_clean
        assert await links.find(NAME) is None
        assert listed(state) is None
