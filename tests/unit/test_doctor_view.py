"""What a person is shown: levels in a column, commands whole, 80 columns on a terminal."""

from __future__ import annotations

import io
import json
import socket
import sys
from dataclasses import replace

import pytest

from relayd.config import AgentConfig, load_agent
from relayd.doctor import command
from relayd.doctor.facts import HostFacts
from relayd.doctor.finding import Finding
from relayd.doctor.udp_ports import parse_table
from relayd.doctor.view import print_findings
from relayd.join import JoinString
from tests.helpers.doctor_facts import BARE, DOWN, SET_UP, relay

FINDINGS = [
    Finding("clock", "ok", "not looked at"),
    Finding(
        "kube-firewall",
        "error",
        "a chain with a name that is so long that the line of it can't be but wrapped on a terminal",
        meaning="kubelet's rule drops what WireGuard sends",
        command="iptables-nft -t filter -I KUBE-FIREWALL 1 -m mark --mark 0x574b -d 127.0.0.0/8 -j ACCEPT "
        "-m comment --comment x\nsecond command",
    ),
    Finding("rules", "warning", "two \x1b[2J rules", meaning="m", command="c"),
]


def shown(*, columns: int | None = None) -> list[str]:
    out = io.StringIO()
    print_findings(FINDINGS, file=out, columns=columns)
    return out.getvalue().splitlines()


def test_each_finding_is_one_line_where_there_is_no_terminal() -> None:
    lines = shown()
    assert lines[0] == "ok       clock: not looked at"
    assert lines[1].startswith("error    kube-firewall: a chain")
    assert lines[1].endswith("on a terminal")
    assert lines[2] == "         kubelet's rule drops what WireGuard sends"
    assert lines[-1] == "1 error, 1 warning, 1 ok"


def test_on_a_terminal_all_but_commands_fits_80_columns() -> None:
    lines = shown(columns=80)
    plain = [line for line in lines if "$ " not in line]
    assert max(map(len, plain)) <= 80
    assert sum(line.startswith("error") for line in lines) == 1
    assert lines[2].startswith("         ")


@pytest.mark.parametrize("columns", [None, 80])
def test_a_command_is_whole_so_that_it_can_be_copied(columns: int | None) -> None:
    commands = [line.strip() for line in shown(columns=columns) if line.strip().startswith("$ ")]
    assert commands == [f"$ {line}" for line in (*FINDINGS[1].command.splitlines(), "c")]


def test_what_a_host_says_does_not_reach_the_terminal_raw() -> None:
    assert "\x1b[2J" not in "\n".join(shown(columns=80))


@pytest.mark.parametrize(
    ("facts", "status"), [(SET_UP, 0), (replace(BARE, relays=(relay(marked=DOWN, unmarked=DOWN),)), 1)]
)
def test_the_exit_status_tells_whether_there_is_an_error(
    facts: HostFacts, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def seen(_config: AgentConfig) -> HostFacts:
        return facts

    monkeypatch.setattr(command, "survey", seen)
    assert command.check(AgentConfig(), as_json=True) == status
    answer = json.loads(capsys.readouterr().out)
    assert answer["errors"] == status
    assert (answer["relay"], answer["relays"]) == (None, [])
    assert {finding["level"] for finding in answer["findings"]} <= {"ok", "warning", "error"}
    for finding in answer["findings"]:
        assert "\\n" not in finding["command"], "a command of two lines is two lines"
    assert command.check(AgentConfig(), as_json=False) == status
    assert f"{status} error" in capsys.readouterr().out


def test_a_host_can_be_looked_over_without_a_relay() -> None:
    assert load_agent(None, {}, environ={}, relay_needed=False).relays == ()
    named = load_agent(None, {}, environ={"RELAYD_RELAY": "192.0.2.1:3478"}, relay_needed=False)
    assert named.relays == (JoinString("192.0.2.1", 3478),)


@pytest.mark.skipif(sys.byteorder == "big", reason="the table below is a little-endian machine's")
def test_proc_net_udp_is_read_as_the_kernel_prints_it() -> None:
    heading = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    rest = "00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0"
    line = f"  12: 0100007F:574B {rest} 4711 2 0000000000000000 0\n"
    assert list(parse_table(heading + line, socket.AF_INET)) == [("127.0.0.1", 22347, 4711)]
    line = f"  12: 00000000000000000000000001000000:0035 {rest} 4712 2 0 0\n"
    assert list(parse_table(heading + line, socket.AF_INET6)) == [("::1", 53, 4712)]
