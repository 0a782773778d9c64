"""Exit statuses and what they promise: 0 asked to stop, 2 changed nothing on the host, 3 lacks something."""

from __future__ import annotations

import signal
from ipaddress import IPv4Interface

import pytest

from relayd.demo.lab import RELAYD, Lab, Node
from relayd.demo.tunnel import Tunnel
from relayd.keys import PrivateKey
from tests.helpers.netns import snapshot, status_of, wait_until, write

STOP_S = 20.0
KEY = PrivateKey(b"\x01" * 32)
OTHER = PrivateKey(b"\x02" * 32).public()
THIRD = PrivateKey(b"\x03" * 32).public()
CONTROL = "/run/relayd/relay.sock"

GOOD = f"""\
[interface]
name = "wg7"
private_key_file = "/run/test/private.key"
listen_port = 51999
address = "198.18.7.1/24"
[[peer]]
public_key = "{OTHER}"
allowed_ips = ["198.18.7.2/32"]
[relay]
address = "192.0.2.1:3478"
"""

MISTAKES = {
    "an unknown key": (
        GOOD.replace("listen_port", "listen_prot"),
        ["agent.toml:4", "listen_prot", "listen_port"],
    ),
    "a key that is not base64": (GOOD.replace(str(OTHER), "not-a-key"), ["agent.toml:7", "public_key"]),
    "allowed IPs that overlap": (
        GOOD.replace(
            "[relay]", f'[[peer]]\npublic_key = "{THIRD}"\nallowed_ips = ["198.18.7.2/32"]\n[relay]'
        ),
        ["agent.toml", "198.18.7.2"],
    ),
    "no relay": (GOOD.replace('[relay]\naddress = "192.0.2.1:3478"\n', ""), ["relay", "--relay"]),
    "no TOML at all": ("[interface\n", ["agent.toml:1"]),
}


@pytest.fixture(scope="module")
def node(lab: Lab) -> Node:
    made = lab.node("host")
    made.run("mkdir", "-p", "/run/test")
    write(made, "/run/test/private.key", KEY.to_base64() + "\n")
    Tunnel(made, IPv4Interface("198.18.6.1/24"))
    return made


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_config_error_exits_with_2_and_changes_nothing(lab: Lab, node: Node, mistake: str) -> None:
    text, expected = MISTAKES[mistake]
    write(node, "/run/test/agent.toml", text)
    before = snapshot(node)
    agent = node.relayd("agent", "--config", "/run/test/agent.toml")
    assert agent.wait(STOP_S) == 2
    assert snapshot(node) == before
    said = agent.output().strip()
    assert len(said.splitlines()) == 1
    for words in expected:
        assert words in said
    lab.discard(agent)


@pytest.mark.parametrize("command", [["agent", "--relay", "nowhere"], ["serve", "--listen", "192.0.2.1"]])
def test_a_wrong_flag_exits_with_2_and_changes_nothing(lab: Lab, node: Node, command: list[str]) -> None:
    before = snapshot(node)
    process = node.relayd(*command)
    assert process.wait(STOP_S) == 2
    assert snapshot(node) == before
    assert command[1] in process.output()
    lab.discard(process)


def test_an_interface_that_is_not_there_is_named(lab: Lab, node: Node) -> None:
    before = snapshot(node)
    agent = node.relayd(
        "agent", "--relay", "192.0.2.1:3478", "--interface", "wg5", "--state", "/run/test/state"
    )
    assert agent.wait(STOP_S) == 3
    assert "wg5" in agent.output()
    assert "wg0" in agent.output()
    assert snapshot(node) == before
    lab.discard(agent)


SERVE = ("serve", "--state", "/run/relay-state")


def test_a_second_relay_on_one_port_says_so_and_the_first_goes_on(lab: Lab, node: Node) -> None:
    first = node.relayd(*SERVE, "--listen", "127.0.0.1:3478")
    wait_until(lambda: status_of(node, CONTROL), "a relay answers")
    second = node.relayd(*SERVE, "--listen", "127.0.0.1:3478", "--control", "/run/test/second.sock")
    assert second.wait(STOP_S) == 3
    assert "127.0.0.1:3478" in second.output()
    assert "another process listens there" in second.output()
    third = node.relayd(*SERVE, "--listen", "127.0.0.1:4478")  # 3479 is the first one's second STUN port
    assert third.wait(STOP_S) == 3
    assert CONTROL in third.output()
    assert status_of(node, CONTROL) is not None
    first.terminate()
    assert first.wait(STOP_S) == 0
    assert not node.path(CONTROL).exists()
    for process in (first, second, third):
        lab.discard(process)


def test_a_killed_relays_socket_does_not_keep_the_next_one_out(lab: Lab, node: Node) -> None:
    first = node.relayd(*SERVE, "--listen", "127.0.0.1:3478")
    wait_until(lambda: status_of(node, CONTROL), "a relay answers")
    first.kill()
    first.wait()
    assert node.path(CONTROL).exists()
    second = node.relayd(*SERVE, "--listen", "127.0.0.1:3478")
    wait_until(lambda: status_of(node, CONTROL), "the next relay answers")
    second.send_signal(signal.SIGTERM)
    assert second.wait(STOP_S) == 0
    for process in (first, second):
        lab.discard(process)


UNABLE = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all")
"""(root's id is no right by itself: without capabilities another user's directory is closed to it.)"""


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (["status"], 3, "relayd: /run/relayd: Permission denied (ask as root"),
        (["check"], 1, "CAP_NET_ADMIN is missing"),
        (["cleanup", "--dry-run"], 1, "cannot look at /run/relayd/agent-wire_kube.sock: Permission denied"),
        (["stun"], 0, "Nobody was asked"),
        (
            ["serve", "--show-join", "--state", "/run/relayd"],
            3,
            "cannot look into /run/relayd: Permission denied",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_who_may_not_look_is_told_so(
    lab: Lab, node: Node, command: list[str], status: int, said: str
) -> None:
    node.run("sh", "-ec", "mkdir -p /run/relayd; chown 65534 /run/relayd; chmod 0700 /run/relayd")
    try:
        process = node.start(*UNABLE, *RELAYD, *command)
        assert process.wait(STOP_S) == status
    finally:
        node.run("chown", "0", "/run/relayd")
    assert said in process.output()
    assert "Traceback" not in process.output()
    lab.discard(process)


def test_status_without_a_process_says_so(lab: Lab, node: Node) -> None:
    process = node.relayd("status", "--control", "/run/test/nobody.sock")
    assert process.wait(STOP_S) == 1
    assert "/run/test/nobody.sock" in process.output()
    lab.discard(process)
