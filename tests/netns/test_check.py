"""`relayd check` on hosts that really have the fault: it is told, and the command that is told mends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network

import pytest

from relayd.demo.host import check_programs
from relayd.demo.lab import RELAYD, Lab, Node
from relayd.demo.tunnel import Tunnel
from relayd.errors import HostError
from relayd.join import JoinString
from relayd.keys import PrivateKey
from relayd.wire.identity import NO_TOKEN, TLS_ONLY, WRONG_TOKEN
from tests.helpers.checking import CHECK_S, RELAY, check, faults, only, run_command, unchanged
from tests.helpers.netns import relay_status, status_of, wait_until, write


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    try:
        check_programs(["iptables"])
    except HostError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def relay_host(lab: Lab) -> Node:
    made = lab.node("relay")
    made.relayd("serve", "--open", "--state", "/run/relay-state")
    relay_status(made)
    return made


@pytest.fixture
def host(lab: Lab, relay_host: Node) -> Iterator[Node]:
    """A node with a tunnel and a wire to the relay; a new one each time, as tests change what there is."""
    made = lab.node("host")
    lab.wire(relay_host, made, IPv4Network("192.0.2.0/24"))
    Tunnel(made, IPv4Interface("198.18.6.1/24"), name="wire_kube", userspace=True)
    yield made
    for process in lab.processes():
        if process.title.startswith("host"):
            lab.discard(process)
    relay_host.run("sh", "-c", "ip link delete to-host 2>/dev/null || true")


def test_a_good_host_has_no_fault_and_nothing_is_changed(lab: Lab, host: Node) -> None:
    with unchanged(host):
        status, found = check(lab, host)
    assert status == 0
    assert [one for one in found if one["level"] != "ok"] == []
    texts = " ".join(one["text"] for one in found)
    assert "has proved key" in texts
    assert "192.0.2.1 with the mark goes dev to-relay table main" in texts
    assert "wire_kube is a userspace WireGuard, with 0 peers, on UDP port 51820" in texts


def test_the_stranger_who_asks_leaves_the_relay_at_once(lab: Lab, host: Node, relay_host: Node) -> None:
    check(lab, host)
    wait_until(lambda: relay_status(relay_host)["connections"] == 0, "the relay has no connection")


def test_people_are_shown_lines(lab: Lab, host: Node) -> None:
    process = host.relayd("check")
    assert process.wait(CHECK_S) == 0
    lines = process.output().splitlines()
    assert lines[0].startswith("ok       capabilities: ")
    assert lines[-1].startswith("0 errors, 0 warnings, ")
    lab.discard(process)


def test_strict_rp_filter_is_found_and_its_command_mends_it(lab: Lab, host: Node) -> None:
    host.run("sh", "-ec", "echo 1 >/proc/sys/net/ipv4/conf/wire_kube/rp_filter")
    found = only(check(lab, host), "rp_filter")
    assert "strict on wire_kube" in found["text"]
    run_command(host, found)
    assert faults(check(lab, host)) == []


def test_a_strict_underlay_is_found_where_it_really_cuts_the_relay_off(lab: Lab, host: Node) -> None:
    # The tunnel covers the relay's network, and the rule for marked packets is right.
    host.ip(
        "route add 192.0.2.0/24 dev wire_kube table 22347",
        "rule add priority 110 fwmark 0x574b lookup main",
        "rule add priority 200 lookup 22347",
    )
    host.run("sh", "-ec", "echo 1 >/proc/sys/net/ipv4/conf/to-relay/rp_filter")
    status, findings = check(lab, host)
    assert status == 1
    strict = only((status, findings), "rp_filter")
    assert (strict["level"], "strict on to-relay" in strict["text"]) == ("error", True)
    assert faults((status, findings), "relay")
    run_command(host, strict)
    mended = check(lab, host)
    assert [one for one in faults(mended) if one["level"] == "error"] == []


def test_a_rule_of_others_that_takes_our_mark_is_found_and_its_command_mends_it(lab: Lab, host: Node) -> None:
    host.ip(
        "rule add priority 50 fwmark 0x700/0xf00 blackhole",
        "rule add priority 51 fwmark 0x200/0xf00 lookup 99",
    )
    host.run("ip", "-6", "rule", "add", "priority", "52", "fwmark", "0x40/0x40", "lookup", "99")
    status, findings = check(lab, host)
    fourth, sixth = faults((status, findings), "marks")
    assert "0x700/0xf00" in fourth["text"]
    assert "0x40/0x40" in sixth["text"]
    # With the mark the relay is gone, without it is there: the doctor tries both.
    assert status == 1
    assert "without the mark, and not with it" in only((status, findings), "relay")["text"]
    (quiet,) = [one for one in findings if one["check"] == "marks" and one["level"] == "ok"]
    assert "0x200/0xf00" in quiet["meaning"]
    run_command(host, fourth)
    run_command(host, sixth)
    assert faults(check(lab, host)) == []


KUBE_PROXY = """
iptables -t nat -N KUBE-POSTROUTING
iptables -t nat -A POSTROUTING -j KUBE-POSTROUTING
iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
iptables -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully
"""
"""As kube-proxy's iptables mode writes it."""


def test_kube_proxys_chain_without_our_exception_is_found_and_its_command_mends_it(
    lab: Lab, host: Node
) -> None:
    host.run("sh", "-ec", KUBE_PROXY)
    assert faults(check(lab, host)) == []  # an agent would put it there
    host.ip("rule add priority 110 fwmark 0x574b lookup main", "rule add priority 200 lookup 22347")
    found = only(check(lab, host), "kube-proxy")
    assert (found["level"], "KUBE-POSTROUTING" in found["text"]) == ("error", True)
    run_command(host, found)
    assert faults(check(lab, host), "kube-proxy") == []
    host.run("sh", "-ec", "iptables -t nat -I POSTROUTING 1 -j KUBE-POSTROUTING")
    late = only(check(lab, host), "kube-proxy")
    assert late["level"] == "warning"
    run_command(host, late)
    assert faults(check(lab, host), "kube-proxy") == []


def test_kubelets_chain_without_our_exception_is_found_and_its_command_mends_it(lab: Lab, host: Node) -> None:
    host.run("sh", "-ec", "iptables -N KUBE-FIREWALL; iptables -A OUTPUT -j KUBE-FIREWALL")
    assert faults(check(lab, host)) == []  # an agent would put it there
    host.ip("rule add priority 110 fwmark 0x574b lookup main", "rule add priority 200 lookup 22347")
    found = only(check(lab, host), "kube-firewall")
    assert found["level"] == "error"
    run_command(host, found)
    assert faults(check(lab, host), "kube-firewall") == []
    # A second copy, and not in front.
    host.run("sh", "-ec", f"{found['command'].replace('-I KUBE-FIREWALL 1', '-A KUBE-FIREWALL')}")
    twice = only(check(lab, host), "kube-firewall")
    assert twice["level"] == "warning"
    run_command(host, twice)
    assert faults(check(lab, host), "kube-firewall") == []


def test_a_loop_is_found_and_its_command_breaks_it(lab: Lab, host: Node) -> None:
    host.ip("route add 192.0.2.0/24 dev wire_kube table 22347", "rule add priority 200 lookup 22347")
    status, findings = check(lab, host)
    assert status == 1
    assert "a loop" in only((status, findings), "route")["text"]
    run_command(host, faults((status, findings), "rules")[0])
    assert [one for one in faults(check(lab, host)) if one["level"] == "error"] == []


def test_a_taken_port_names_the_process_and_its_command_frees_it(lab: Lab, host: Node) -> None:
    script = (
        "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 22347)); "
        "print('bound', flush=True); time.sleep(600)"
    )
    holder = host.start("python3", "-c", script)
    holder.wait_for_output("bound", CHECK_S)
    found = only(check(lab, host), "ports")
    assert (found["level"], f"pid {holder.pid}" in found["text"]) == ("error", True)
    assert "python3" in found["text"]
    run_command(host, found)
    holder.wait()
    assert faults(check(lab, host)) == []


def test_the_agent_itself_is_no_taken_port(lab: Lab, host: Node) -> None:
    arguments = ["--relay", RELAY, "--interface", "wire_kube", "--state", "/run/state"]
    agent = host.relayd("agent", *arguments)
    wait_until(lambda: status_of(host, "/run/relayd/agent-wire_kube.sock"), "the agent answers")
    status, findings = check(lab, host)
    assert (status, faults((status, findings))) == (0, [])
    assert "the agent has UDP port 22347 on lo" in [one["text"] for one in findings]
    assert "an agent runs for wire_kube" in [one["text"] for one in findings]
    agent.kill()
    agent.wait()
    left = only(check(lab, host), "leftovers")
    assert "/run/relayd/agent-wire_kube.sock" in left["text"]


def test_where_no_interface_is_named_it_is_the_one_with_an_agent(lab: Lab, host: Node) -> None:
    """A gateway's interface is called wg0, and its operator types `relayd check`."""

    def looked_at(*arguments: str) -> tuple[str, bool]:
        asked = host.start(*RELAYD, "check", "--json", *arguments)
        asked.wait(CHECK_S)
        answer = json.loads(asked.output())
        lab.discard(asked)
        return answer["interface"], answer["errors"] == 0

    gateway = Tunnel(host, IPv4Interface("198.18.7.1/24"), name="wg0", port=51821, userspace=True)
    assert looked_at() == ("wire_kube", True)  # which an agent would make by that name
    agent = host.relayd("agent", "--relay", RELAY, "--interface", "wg0", "--state", "/run/state")
    wait_until(lambda: status_of(host, "/run/relayd/agent-wg0.sock"), "the agent answers")
    assert looked_at() == ("wg0", True)
    host.ip("link set wg0 down")
    assert looked_at() == ("wg0", True)
    assert gateway.process is not None
    lab.discard(gateway.process)
    assert looked_at()[0] == "wg0", "the agent runs for it still"
    assert looked_at("--interface", "wire_kube")[0] == "wire_kube"
    lab.discard(agent)


def test_a_relay_that_is_down_is_found(lab: Lab, host: Node) -> None:
    status, findings = check(lab, host, relay="192.0.2.1:3479")
    assert status == 1
    assert "Connection refused" in only((status, findings), "relay")["text"]


@pytest.fixture(scope="module")
def locked(relay_host: Node) -> JoinString:
    """What a second relay on the same host prints: it wants a token, and makes itself a certificate."""
    serving = relay_host.relayd(
        *("serve", "--listen", "0.0.0.0:3490", "--host", "192.0.2.1", "--tls-self-signed", "--http", "off"),
        *("--state", "/run/locked-state", "--control", "/run/locked.sock"),
    )
    wait_until(lambda: status_of(relay_host, "/run/locked.sock"), "the second relay answers")
    return JoinString.parse(next(line for line in serving.output().splitlines() if "://" in line))


def test_by_its_join_string_a_relay_is_known_over_tls_and_without(
    lab: Lab, host: Node, locked: JoinString
) -> None:
    key = locked.key
    assert key is not None
    for join in (locked, replace(locked, tls=False, pin=None)):
        status, findings = check(lab, host, relay=join.format())
        assert faults((status, findings)) == []
        assert f"192.0.2.1:3490 has proved the pinned key {key.short()}, and lets us in" in [
            one["text"] for one in findings
        ]


def test_what_is_wrong_in_a_join_string_is_told_and_what_the_relay_prints_mends_it(
    lab: Lab, host: Node, relay_host: Node, locked: JoinString
) -> None:
    other = PrivateKey(bytes(range(32))).public()
    assert locked.key is not None
    for wrong, words in (
        (replace(locked, key=other), f"key is {locked.key.short()}, and {other.short()} is pinned"),
        (replace(locked, token="wrong-token-of-another"), WRONG_TOKEN),
        (replace(locked, token=""), NO_TOKEN),
        (replace(locked, pin=bytes(32)), f"has the key pin={locked.shown_pin}, and the join string says"),
        (replace(locked, pin=None), "certificate: self-signed certificate"),
        (replace(locked, port=3478), "TLS: "),  # a relay that has none
    ):
        found = only(check(lab, host, relay=wrong.format()), "relay")
        assert (found["level"], words in found["text"]) == ("error", True), found
        assert "wrong-token-of-another" not in json.dumps(found)
    command = found["command"].partition(" ")[2].partition("#")[0].split()
    flags = ["--listen", "0.0.0.0:3490", "--host", "192.0.2.1", "--tls-self-signed"]
    printed = relay_host.run(*RELAYD, *command, *flags, "--state", "/run/locked-state")
    assert locked.format() in printed.splitlines()


def test_a_list_of_keys_keeps_the_check_out_and_that_is_no_fault(
    lab: Lab, host: Node, relay_host: Node
) -> None:
    listed = PrivateKey(bytes(range(32))).public()
    write(relay_host, "/run/listed", f"{listed}\n")
    serving = relay_host.relayd(
        *("serve", "--listen", "0.0.0.0:3495", "--host", "192.0.2.1", "--tls-self-signed", "--tls-only"),
        *("--allow-list", "/run/listed", "--state", "/run/listed-state", "--control", "/run/listed.sock"),
        *("--http", "off"),
    )
    wait_until(lambda: status_of(relay_host, "/run/listed.sock"), "the third relay answers")
    join = JoinString.parse(next(line for line in serving.output().splitlines() if "://" in line))
    assert join.key is not None
    status, findings = check(lab, host, relay=join.format())
    assert (status, faults((status, findings))) == (0, [])
    (told,) = [one["text"] for one in findings if "no stranger" in one["text"]]
    assert f"shows the pinned key {join.key.short()}, and lets no stranger in: key " in told
    # The same relay without TLS, which it doesn't speak.
    plain = only(check(lab, host, relay=replace(join, tls=False, pin=None).format()), "relay")
    assert (plain["level"], TLS_ONLY in plain["text"]) == ("error", True)
    lab.discard(serving)


def test_a_relay_key_that_changed_since_the_agent_saw_it_is_a_warning(lab: Lab, host: Node) -> None:
    before = PrivateKey(bytes(range(32))).public()
    host.run("mkdir", "-p", "/run/state")
    write(host, "/run/state/relays.json", json.dumps({"relays": {RELAY: str(before)}, "version": 1}))
    write(host, "/run/agent.toml", f'[relay]\naddress = "{RELAY}"\n[agent]\nstate_dir = "/run/state"\n')
    found = only(check(lab, host, "--config", "/run/agent.toml", relay=""), "relay")
    assert (found["level"], f"had {before.short()} before" in found["text"]) == ("warning", True)


def test_every_relay_is_looked_at(lab: Lab, host: Node, locked: JoinString) -> None:
    status, findings = check(lab, host, relay=f"{RELAY},192.0.2.1:3479,{locked.format()}")
    assert status == 1
    assert "192.0.2.1:3479 can't be reached" in only((status, findings), "relay")["text"]
    texts = " ".join(one["text"] for one in findings)
    assert f"{RELAY} has proved key" in texts
    assert "192.0.2.1:3490 has proved the pinned key" in texts


ECHO = """
import socket
server = socket.create_server(("192.0.2.1", 3492))
print("up", flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        register = connection.recv(37, socket.MSG_WAITALL)
        while data := connection.recv(65536):
            connection.sendall(data)
"""
"""To one connection it is a relay that knows no handshake: Register has no answer, and Data to oneself comes
back."""


def test_a_relay_that_proves_nothing_is_an_error_unless_that_is_allowed(
    lab: Lab, host: Node, relay_host: Node
) -> None:
    simple = relay_host.start("python3", "-c", ECHO)
    simple.wait_for_output("up", CHECK_S)
    found = only(check(lab, host, relay="192.0.2.1:3492"), "relay")
    assert (found["level"], "doesn't prove who it is" in found["text"]) == ("error", True)
    assert "--insecure-relay" in found["command"]
    assert check(lab, host, "--insecure-relay", relay="192.0.2.1:3492")[0] == 0
    lab.discard(simple)


def test_something_that_accepts_and_says_nothing_is_no_relay(lab: Lab, host: Node, relay_host: Node) -> None:
    script = (
        "import socket, time; s = socket.create_server(('192.0.2.1', 3480)); print('up', flush=True); "
        "time.sleep(600)"
    )
    mute = relay_host.start("python3", "-c", script)
    mute.wait_for_output("up", CHECK_S)
    status, findings = check(lab, host, relay="192.0.2.1:3480")
    assert status == 1
    assert "gives no frame back" in only((status, findings), "relay")["text"]
    lab.discard(mute)


def test_without_capabilities_that_is_said_and_the_rest_is_looked_at(lab: Lab, host: Node) -> None:
    status, findings = check(lab, host, unable=True)
    assert status == 1
    assert "CAP_NET_ADMIN is missing" in only((status, findings), "capabilities")["text"]
    # (The relay is asked without the mark then.)
    assert "not tried with the mark" in only((status, findings), "relay")["text"]
    assert any("has proved key" in one["text"] for one in findings)


def test_an_interface_that_is_not_wireguard_is_an_error(lab: Lab, host: Node) -> None:
    host.ip("link add dummy0 type bridge")
    found = only(check(lab, host, "--interface", "dummy0"), "wireguard")
    assert (found["level"], "bridge" in found["text"]) == ("error", True)


def test_rules_that_outlived_their_interface_are_left_over(lab: Lab, host: Node) -> None:
    host.ip("rule add priority 110 fwmark 0x574b lookup main", "rule add priority 200 lookup 22347")
    found = only(check(lab, host, "--interface", "gone0"), "leftovers")
    assert found["text"].startswith("2 rules and 0 routes of ours, without an interface gone0")


def test_the_agents_configuration_is_taken(lab: Lab, host: Node) -> None:
    write(
        host,
        "/run/agent.toml",
        f'[relay]\naddress = "{RELAY}"\n[agent]\ninterface = "wg9"\nproxy_port = 23456\n',
    )
    status, findings = check(lab, host, "--config", "/run/agent.toml", relay="")
    texts = " ".join(one["text"] for one in findings)
    assert "no interface wg9" in texts
    assert "UDP port 23456" in texts
    assert "has proved key" in texts
    assert status == 0 or faults((status, findings), "wireguard")  # by what this kernel has


def test_a_wrong_flag_is_told_as_everywhere(lab: Lab, host: Node) -> None:
    process = host.relayd("check", "--relay", "nowhere")
    assert process.wait(CHECK_S) == 2
    assert "--relay" in process.output()
    lab.discard(process)
