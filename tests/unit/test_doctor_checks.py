"""What is seen of a host, and what it means: each finding of `relayd check`, from facts alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from relayd.doctor.facts import (
    Buffers,
    Capabilities,
    Echo,
    HostFacts,
    PortHolder,
    Reach,
    RelayFacts,
    RouteProof,
    StateFacts,
    WireGuardFacts,
)
from relayd.doctor.finding import Finding
from relayd.wire.identity import NO_TOKEN, TLS_ONLY, WRONG_TOKEN, Trust
from tests.helpers.doctor_facts import (
    BARE,
    DOWN,
    ETH0,
    OTHER_KEY,
    RELAY,
    RELAY_KEY,
    ROUTE,
    SET_UP,
    TUNNEL,
    WANTED,
    faults,
    mark_rule,
    of,
    one,
    relay,
    table_rule,
    with_rules,
)


def test_a_bare_host_has_no_fault() -> None:
    assert faults(BARE) == []


def test_a_host_that_is_set_up_has_no_fault() -> None:
    assert faults(replace(SET_UP, relays=(relay(),))) == []


def test_a_complaint_without_a_way_out_is_a_bug() -> None:
    with pytest.raises(ValueError, match="what mends it"):
        Finding("rules", "error", "something is wrong")


def test_the_clock_is_said_not_to_matter() -> None:
    assert "time of day" in one("clock", BARE).text


# --- capabilities ---


def test_without_net_admin_is_an_error_that_says_how_to_grant_it() -> None:
    held = Capabilities(net_admin=False, net_raw=False, may_mark=False)
    found = one("capabilities", replace(BARE, capabilities=held))
    assert (found.level, "CAP_NET_ADMIN is missing" in found.text) == ("error", True)
    assert "AmbientCapabilities=CAP_NET_ADMIN" in found.command


def test_net_admin_of_another_user_namespace_is_told_from_none() -> None:
    held = Capabilities(net_admin=True, net_raw=True, may_mark=False)
    assert "doesn't count" in one("capabilities", replace(BARE, capabilities=held)).text


def test_without_net_raw_is_a_warning() -> None:
    held = Capabilities(net_admin=True, net_raw=False, may_mark=True)
    found = one("capabilities", replace(BARE, capabilities=held))
    assert (found.level, "CAP_NET_RAW" in found.text) == ("warning", True)


# --- WireGuard ---


def wireguard(**facts: Any) -> HostFacts:
    return replace(BARE, wireguard=WireGuardFacts(**{"in_kernel": True} | facts))


@pytest.mark.parametrize(
    ("facts", "level", "words", "command"),
    [
        ({"in_kernel": True}, "ok", "the kernel has WireGuard", ""),
        ({"in_kernel": None}, "warning", "can't be seen", "modprobe wireguard"),
        ({"in_kernel": False}, "error", "no WireGuard", "modprobe wireguard"),
        (
            {"in_kernel": False, "userspace_program": "/usr/bin/wireguard-go"},
            "warning",
            "/usr/bin/wireguard-go is here",
            "wireguard-go wire_kube",
        ),
        ({"others": ("wg0",)}, "ok", "there is wg0", ""),
        ({"link_kind": "dummy"}, "error", "a dummy interface, not WireGuard", "ip -details link show"),
        ({"link_kind": "", "others": ("wg0",)}, "error", "a network device", "--interface wg0"),
        ({"link_kind": "tun", "problem": "nothing answers"}, "error", "nothing answers", "wg show"),
        ({"link_kind": "wireguard", "listen_port": 1}, "warning", "is down", "ip link set wire_kube up"),
        (
            {"link_kind": "wireguard", "is_up": True, "listen_port": 51821, "peers": 1},
            "ok",
            "the kernel's WireGuard, with 1 peer, on UDP port 51821",
            "",
        ),
    ],
)
def test_wireguard(facts: dict[str, Any], level: str, words: str, command: str) -> None:
    found = one("wireguard", wireguard(**facts))
    assert found.level == level
    assert words in found.text
    assert command in found.command


# --- ports ---


def test_an_agent_is_known_however_long_its_interpreters_path_is() -> None:
    long = f"/{'deep/' * 40}bin/python -m relayd agent --relay r:1"
    facts = replace(SET_UP, ports=(PortHolder(22347, "0.0.0.0", 7, "python", long),))
    assert [found.level for found in of("ports", facts) if "22347" in found.text] == ["ok"]


def test_a_long_command_line_is_cut_where_it_is_shown() -> None:
    facts = replace(BARE, ports=(PortHolder(22347, "0.0.0.0", 7, "nc", "nc " + "x" * 500),))
    (taken,) = (found for found in of("ports", facts) if found.level == "error")
    assert len(taken.text) < 200


def test_a_taken_proxy_port_names_who_has_it() -> None:
    holder = PortHolder(22347, "0.0.0.0", 4242, "nc", "nc -lu 22347")
    free, taken = of("ports", replace(BARE, ports=(holder,)))
    assert free.text == "UDP port 51820, for WireGuard, is free"
    assert (taken.level, "nc (pid 4242: nc -lu 22347)" in taken.text) == ("error", True)
    assert taken.command.startswith("kill 4242")
    assert "proxy_port" in taken.command


def test_a_port_of_the_kernels_is_told_from_a_process() -> None:
    taken = of("ports", replace(BARE, ports=(PortHolder(51820, "0.0.0.0"),)))[0]
    assert (taken.level, "another WireGuard interface?" in taken.text) == ("error", True)


def test_wireguards_own_port_is_no_fault_when_the_interface_is_up() -> None:
    ports = (PortHolder(51820, "0.0.0.0"), *SET_UP.ports)
    assert [found.level for found in of("ports", replace(SET_UP, ports=ports))] == ["ok", "ok"]


def test_a_taken_port_is_a_fault_while_the_interface_is_down() -> None:
    down = replace(SET_UP.wireguard, is_up=False)
    facts = replace(SET_UP, wireguard=down, ports=(PortHolder(51820, "0.0.0.0", 9, "nc", "nc"),))
    assert of("ports", facts)[0].level == "error"
    own = PortHolder(51820, "0.0.0.0", 9, "wireguard-go", f"wireguard-go -f {facts.interface}")
    kept = of("ports", replace(facts, wireguard=replace(down, link_kind="tun"), ports=(own,)))[0]
    assert (kept.level, kept.command) == ("ok", ""), "to kill it would end the tunnel"


def test_another_agents_proxy_port_is_a_warning() -> None:
    found = of("ports", replace(SET_UP, agent_runs=False))[1]
    assert (found.level, "another agent's" in found.text) == ("warning", True)


# --- buffers and sysctls ---


def test_a_small_buffer_is_a_warning_with_the_sysctl_that_mends_it() -> None:
    small = Buffers(wanted=WANTED, granted=212992, forced=False, rmem_max=212992)
    found = one("buffers", replace(BARE, buffers=small))
    assert (found.level, found.command) == ("warning", f"sysctl -w net.core.rmem_max={WANTED}")


@pytest.mark.parametrize(("own", "everywhere", "level"), [(1, 0, "warning"), (0, 1, "warning"), (2, 1, "ok")])
def test_the_larger_of_two_rp_filters_counts(own: int, everywhere: int, level: str) -> None:
    sysctls = dict(SET_UP.sysctls)
    sysctls |= {"net.ipv4.conf.all.rp_filter": everywhere, "net.ipv4.conf.wire_kube.rp_filter": own}
    found = one("rp_filter", replace(SET_UP, sysctls=sysctls))
    assert found.level == level
    assert (found.command == "sysctl -w net.ipv4.conf.wire_kube.rp_filter=2") == (level == "warning")


def test_a_strict_underlay_drops_a_relay_that_unmarked_packets_reach_by_the_tunnel() -> None:
    facts = replace(
        SET_UP,
        sysctls=dict(SET_UP.sysctls) | {"net.ipv4.conf.eth0.rp_filter": 1},
        relays=(relay(proofs=(RouteProof(address=RELAY, marked=ETH0, unmarked=TUNNEL),)),),
    )
    found = of("rp_filter", facts)[1]
    assert (found.level, found.command) == ("error", "sysctl -w net.ipv4.conf.eth0.rp_filter=2")
    same_way = replace(facts, relays=(relay(),))
    assert [one.level for one in of("rp_filter", same_way)] == ["ok"]


def test_accept_local_that_went_missing_is_a_warning_and_before_the_first_start_is_not() -> None:
    gone = replace(SET_UP, sysctls={"net.ipv4.conf.lo.accept_local": 0})
    found = one("accept_local", gone)
    assert (found.level, found.command) == ("warning", "sysctl -w net.ipv4.conf.lo.accept_local=1")
    assert one("accept_local", replace(BARE, sysctls=gone.sysctls)).level == "ok"
    adopted = replace(BARE, sysctls=gone.sysctls, agent_runs=True)  # there no agent turns it on
    assert one("accept_local", adopted).level == "ok"


# --- the relay ---


def test_without_a_relay_the_way_to_it_is_not_looked_at() -> None:
    assert "no relay is named" in one("route", BARE).text
    assert of("relay", BARE) == []


def test_a_relay_through_the_tunnel_is_a_loop() -> None:
    looped = relay(proofs=(RouteProof(address=RELAY, marked=TUNNEL, unmarked=TUNNEL),))
    found = one("route", replace(with_rules(table_rule()), relays=(looped,)))
    assert (found.level, "a loop" in found.text) == ("error", True)
    assert found.command.splitlines() == [
        "ip rule add priority 110 fwmark 0x574b lookup main",
        "ip route get 192.0.2.1 mark 0x574b   # through wire_kube still: it is the main table's route",
    ]


def test_a_relay_that_only_the_tunnel_reaches_is_an_error_and_no_loop() -> None:
    by_table = relay(proofs=(RouteProof(address=RELAY, marked=TUNNEL, unmarked=TUNNEL),))
    found = one("route", replace(SET_UP, relays=(by_table,)))
    assert (found.level, "the main table has no way there" in found.text) == ("error", True)


def test_one_family_without_a_route_is_a_warning_when_the_other_has_one() -> None:
    sixth = RouteProof(address=ip_address("2001:db8::1"), marked=None, unmarked=None)
    found = of("route", replace(SET_UP, relays=(relay(proofs=(*relay().proofs, sixth)),)))
    assert [finding.level for finding in found] == ["ok", "warning"]
    assert found[1].command == "ip -6 route get 2001:db8::1 mark 0x574b"
    assert one("route", replace(SET_UP, relays=(relay(proofs=(sixth,)),))).level == "error"


def test_a_name_without_an_address_is_an_error() -> None:
    facts = RelayFacts(address="nowhere.invalid:3478", problem="Name or service not known")
    found = one("route", replace(BARE, relays=(facts,)))
    assert (found.level, found.command) == ("error", "getent ahosts nowhere.invalid")


def test_a_relay_that_is_down_is_one_error() -> None:
    found = one("relay", replace(SET_UP, relays=(relay(marked=DOWN, unmarked=DOWN),)))
    assert (found.level, "Connection refused" in found.text) == ("error", True)
    assert found.command.startswith("nc -vz 192.0.2.1 3478\n")


def test_a_relay_that_marked_packets_alone_don_t_reach_is_an_error() -> None:
    found = one("relay", replace(SET_UP, relays=(relay(marked=DOWN),)))
    assert (found.level, "not with it" in found.text) == ("error", True)
    assert found.command == "ip rule; ip route get 192.0.2.1 mark 0x574b"


def test_a_relay_that_only_marked_packets_reach_is_fine() -> None:
    found = of("relay", replace(SET_UP, relays=(relay(unmarked=DOWN),)))
    assert [finding.level for finding in found] == ["ok", "ok"]


def test_not_being_allowed_to_mark_is_said_and_the_relay_asked_all_the_same() -> None:
    unmarked = Reach(peer="192.0.2.1:3478", echo="welcomed", key=RELAY_KEY, trust=Trust.PINNED)
    found = of("relay", replace(BARE, relays=(relay(marked=None, unmarked=unmarked),)))
    assert [finding.level for finding in found] == ["warning", "ok"]


@pytest.mark.parametrize(
    ("echo", "level", "words"),
    [
        ("welcomed", "ok", "has proved the pinned key"),
        ("returned", "error", "doesn't prove who it is, and its key is pinned"),
        ("challenged", "error", "doesn't answer the proof"),
        ("wrong key", "error", "not the one"),
        ("unproved", "error", "not the one"),
        ("TLS failed", "error", "not the one"),
        ("refused", "ok", "lets no stranger in: not the one"),
        ("closed", "warning", "closed the connection"),
        ("silent", "error", "gives no frame back"),
    ],
)
def test_what_came_of_asking_the_relay(echo: Echo, level: str, words: str) -> None:
    marked = Reach(peer="192.0.2.1:3478", echo=echo, words="not the one", key=RELAY_KEY, trust=Trust.PINNED)
    found = of("relay", replace(SET_UP, relays=(relay(marked=marked, pinned=True),)))[-1]
    assert (found.level, words in found.text) == (level, True)


@pytest.mark.parametrize(
    ("trust", "level", "words"),
    [
        (Trust.FIRST, "ok", "none is pinned"),
        (Trust.REMEMBERED, "ok", "as before"),
        (Trust.CHANGED, "warning", f"had {OTHER_KEY.short()} before"),
    ],
)
def test_how_the_relays_key_is_known(trust: Trust, level: str, words: str) -> None:
    marked = Reach(peer="192.0.2.1:3478", echo="welcomed", key=RELAY_KEY, trust=trust, previous=OTHER_KEY)
    found = of("relay", replace(SET_UP, relays=(relay(marked=marked),)))[-1]
    assert (found.level, words in found.text, RELAY_KEY.short() in found.text) == (level, True, True)


@pytest.mark.parametrize("words", [NO_TOKEN, WRONG_TOKEN, TLS_ONLY])
def test_a_refusal_that_another_join_string_mends_is_an_error(words: str) -> None:
    marked = Reach(peer="192.0.2.1:3478", echo="refused", words=words, key=RELAY_KEY)
    found = of("relay", replace(SET_UP, relays=(relay(marked=marked),)))[-1]
    assert (found.level, words in found.text, "--show-join" in found.command) == ("error", True, True)


def test_a_relay_that_proves_nothing_is_fine_where_that_is_allowed() -> None:
    marked = Reach(peer="192.0.2.1:3478", echo="returned")
    allowed = of("relay", replace(SET_UP, relays=(relay(marked=marked, insecure=True),)))[-1]
    assert allowed.level == "ok"
    found = of("relay", replace(SET_UP, relays=(relay(marked=marked),)))[-1]
    assert (found.level, "--insecure-relay" in found.command) == ("error", True)


def test_each_relay_is_looked_at() -> None:
    second = relay(address="192.0.2.9:3478", marked=DOWN, unmarked=DOWN)
    found = of("relay", replace(SET_UP, relays=(relay(), second)))
    assert [(one.level, "192.0.2.9" in one.text) for one in found] == [
        ("ok", False),
        ("ok", False),
        ("error", True),
    ]


# --- state and leftovers ---


def test_a_key_that_others_can_read_is_a_warning() -> None:
    readable = StateFacts(path="/var/lib/wirekube", directory_mode=0o700, key_mode=0o644)
    found = one("state", replace(SET_UP, state=readable))
    assert (found.level, found.command) == ("warning", "chmod 600 /var/lib/wirekube/privatekey")


def test_a_directory_that_others_can_write_is_a_warning_and_one_they_can_list_is_not() -> None:
    for mode, level in ((0o777, "warning"), (0o755, "ok")):
        listed = StateFacts(path="/var/lib/wirekube", directory_mode=mode, key_mode=0o600)
        assert one("state", replace(SET_UP, state=listed)).level == level


def test_a_state_that_cannot_be_looked_at_is_a_warning() -> None:
    hidden = StateFacts(path="/var/lib/wirekube", problem="Permission denied")
    assert one("state", replace(BARE, state=hidden)).level == "warning"


def test_rules_without_their_interface_are_left_over() -> None:
    found = one("leftovers", with_rules(mark_rule(), table_rule(), routes=(ROUTE,)))
    assert (found.level, found.text[:30]) == ("warning", "2 rules and 1 route of ours, w")
    assert found.command.splitlines() == [
        "relayd cleanup --interface wire_kube --dry-run",
        "relayd cleanup --interface wire_kube",
    ]


def test_what_outlives_its_agent_on_purpose_is_no_fault() -> None:
    found = one("leftovers", replace(SET_UP, agent_runs=False))
    assert (found.level, "stay meanwhile" in found.text) == ("ok", True)


def test_a_socket_that_nobody_answers_at_is_a_warning() -> None:
    found = of("leftovers", replace(BARE, stale_socket="/run/relayd/agent-wire_kube.sock"))
    assert [finding.level for finding in found] == ["warning", "ok"]
