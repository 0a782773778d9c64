"""`relayd config check` and `show`, and what a new configuration changes."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from msgspec import structs

from relayd import cli
from relayd.config import AgentConfig, RelayConfig, changes, load_agent
from relayd.config.report import HIDDEN, effective, examine, role_of
from relayd.config.setting import Role
from relayd.config.settings import AGENT, RELAY
from relayd.config.toml import parse_document
from relayd.config.types import InterfaceConfig, PeerConfig
from relayd.errors import ConfigError
from relayd.join import JoinString
from tests.helpers.config_files import AGENT as AGENT_FILE
from tests.helpers.config_files import OWN, change, with_private_key, write
from tests.helpers.identities import ALICE

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where AGENT_FILE finds its private key; no variable says anything."""
    for variable in {one.variable for role in (RELAY, AGENT) for one in role.settings} | {"RELAYD_CONFIG"}:
        monkeypatch.delenv(variable, raising=False)
    return with_private_key(tmp_path)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """The exit status, and the lines on stdout."""
    status = cli.main(["config", *arguments])
    return status, capsys.readouterr().out.splitlines()


# --- check ---

MANY_MISTAKES = """\
[relay]
adress = "relay.example.net:3478"

[interface]
address = "10.0.0.256"
mtu = 12

[[peer]]
public_key = "nonsense"
allowed_ips = ["10.0.0.2/33", "10.0.0.3/32"]

[[peer]]
public_key = "64yON9AsAX/F1h9O302ONKlODoTZB5uTgWMd+XMmLh0="
allowed_ips = []

[[peer]]
public_key = "64yON9AsAX/F1h9O302ONKlODoTZB5uTgWMd+XMmLh0="
allowed_ips = ["10.0.0.3/32"]

[agent]
echo_s = "soon"
log = "loud"

[extra]
"""


def test_check_tells_all_mistakes_in_order_of_line(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(directory, MANY_MISTAKES))
    status, lines = told(capsys, "check", path)
    assert status == 2
    assert [line.removeprefix(path).split(" ")[0] for line in lines] == [
        ":2:", ":5:", ":6:", ":9:", ":10:", ":14:", ":21:", ":22:", ":24:", ":",
    ]  # fmt: skip
    assert lines[-1] == f"{path}: 9 mistakes, read as an agent's (relayd agent)"
    assert f"{path}:2: relay.adress: unknown key (did you mean address?)" in lines
    status, (line,) = told(capsys, "check", "--json", path)
    answer = json.loads(line)
    assert (status, answer["role"], answer["right"]) == (2, "agent", False)
    assert [error["line"] for error in answer["errors"]] == [2, 5, 6, 9, 10, 14, 21, 22, 24]


def test_a_start_tells_the_first_of_them(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"relayd.toml:2: relay.adress: unknown key"):
        load_agent(write(directory, MANY_MISTAKES), {}, environ={})


def test_peers_are_compared_though_the_interface_has_a_mistake(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = change("10.9.0.0/16", "10.0.0.2/32").replace("mtu = 1380", "mtu = 1")
    _, lines = told(capsys, "check", str(write(directory, text)))
    assert any("mtu" in line for line in lines)
    assert any("overlaps" in line for line in lines)


def test_check_of_a_right_file_says_whose_it_is(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relay = str(EXAMPLES / "relay.toml")
    assert told(capsys, "check", relay) == (0, [f"{relay}: no mistakes, read as a relay's (relayd serve)"])
    agent = str(write(directory, AGENT_FILE))
    assert told(capsys, "check", agent)[1] == [f"{agent}: no mistakes, read as an agent's (relayd agent)"]
    status, (line,) = told(capsys, "check", "--json", agent)
    assert (status, json.loads(line)) == (0, {"role": "agent", "right": True, "errors": []})


@pytest.mark.parametrize("text", ["[relay", "relay = [[[[", "\0"])
def test_check_of_what_is_no_toml(directory: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, (line,) = told(capsys, "check", str(write(directory, text)))
    assert status == 2
    assert "not valid TOML" in line


def test_check_of_no_file(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, (line,) = told(capsys, "check", str(directory / "none.toml"))
    assert (status, line) == (2, f"{directory}/none.toml: cannot read it: No such file or directory")


def test_check_listens_to_no_variable(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAYD_LOG", "loud")
    assert told(capsys, "check", str(EXAMPLES / "relay.toml"))[0] == 0


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("", RELAY),
        ("[relay]\nlisten = []", RELAY),
        ("[relay]\naddress = 3", AGENT),
        ("[agent]\nnonsense = 3", AGENT),
        ("[[peer]]", AGENT),
        ("interface = 3", AGENT),
        ("[relay]\nsilence_s = 3\nlog = 5\naddress = 7", RELAY),
    ],
)
def test_whose_a_file_is(text: str, role: Role) -> None:
    assert role_of(parse_document(text, source="x")) is role


def test_role_can_be_said(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = told(capsys, "check", "--role", "agent", str(write(directory, "")))
    assert (status, "no relay is named" in lines[0]) == (2, True)


# --- show ---


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[object, str, object]]:
    status, (line,) = told(capsys, "show", "--json", *arguments)
    assert status == 0
    return {one["name"]: (one["value"], one["source"], one["line"]) for one in json.loads(line)["values"]}


def test_show_says_where_each_value_is_from(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write(directory, '[relay]\nlisten = ["127.0.0.1:1"]\nlog = "json"\nsilence_s = 5\n'))
    monkeypatch.setenv("RELAYD_SILENCE_S", "7")
    values = shown(capsys, "--config", path, "--queue-age-ms", "9")
    assert values["relay.listen"] == (["127.0.0.1:1"], path, 2)
    assert values["relay.log"] == ("json", path, 3)
    assert values["relay.silence_s"] == (7.0, "RELAYD_SILENCE_S", None)
    assert values["relay.queue_age_ms"] == (9, "--queue-age-ms", None)
    assert values["relay.queue_bytes"] == (RelayConfig().queue_bytes, "default", None)
    assert len(values) == len(RELAY.settings)
    _, lines = told(capsys, "show", "--config", path)
    assert ["relay.log", '"json"', f"{path}:3"] in [line.split() for line in lines]


def test_show_of_an_agent_has_its_interface_and_peers_and_no_key(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(directory, AGENT_FILE))
    values = shown(capsys, "--config", path)
    assert values["interface.name"][:2] == ("wg0", path)
    assert values["peer[2].persistent_keepalive"] == (0, "default", None)
    assert values["peer[1].allowed_ips"][0] == ["10.0.0.2/32", "fd00::2/128", "192.168.7.0/24"]
    assert "agent.interface" not in values
    assert OWN.to_base64() not in str(values)
    assert repr(OWN.raw) not in str(values)


def test_show_names_the_flag_that_names_the_interface(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(directory, change('name = "wg0"\n', "")))
    assert shown(capsys, "--config", path, "--interface", "wg5")["interface.name"][:2] == (
        "wg5",
        "--interface",
    )


def test_show_without_a_file(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = shown(capsys, "--role", "agent", "--relay", "192.0.2.1:1", "--interface", "wg7")
    assert values["relay.address"] == (["relayd://192.0.2.1:1"], "--relay", None)
    assert values["agent.control"] == ("/run/relayd/agent-wg7.sock", "default", None)
    assert cli.main(["config", "show"]) == 2
    assert "neither a file nor a role is named" in capsys.readouterr().err


def test_show_refuses_what_the_role_refuses(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "--role", "relay", "--relay", "192.0.2.1:1"]) == 2
    assert "--relay: that is for relayd agent" in capsys.readouterr().err
    assert cli.main(["config", "show", "--config", str(write(directory, MANY_MISTAKES))]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 9


def test_a_wrong_relay_is_one_mistake(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", "--role", "agent", "--relay", "relay.example.net"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("relayd: --relay: ")


def test_a_token_in_a_join_string_is_never_shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = "SECRETSECRETSECRETSECRETSECRET12"
    values = shown(capsys, "--role", "agent", "--relay", f"relayd://192.0.2.1:1?token={token}")
    assert values["relay.address"] == (["relayd://192.0.2.1:1"], "--relay", None)
    assert token not in str(values)


def test_a_secret_is_never_shown() -> None:
    hidden = replace(RELAY, settings=tuple(replace(one, secret=True) for one in RELAY.settings))
    examined = examine(RELAY, None, {"log": "json"}, environ={})
    values = [one.value for one in effective(replace(examined, role=hidden)) if one.value]  # what is set
    assert set(values) == {HIDDEN}


# --- what a reload changes ---


def test_changes_are_told_apart_by_what_can_be_applied() -> None:
    role = replace(
        RELAY, settings=tuple(replace(one, live=one.name == "silence_s") for one in RELAY.settings)
    )
    old = RelayConfig()
    new = RelayConfig(silence_s=3.0, log="json", queue_bytes=70000)
    found = changes.changes(role, old, new)
    assert (found.live, found.restart) == (("silence_s",), ("log", "queue_bytes"))
    assert changes.applied(role, old, new) == RelayConfig(silence_s=3.0)
    assert changes.changes(role, old, old) == changes.Changes((), ())


def test_an_interface_of_ours_and_its_peers_can_become_others_unless_it_is_another_one() -> None:
    relays = (JoinString("192.0.2.1", 1),)
    made = InterfaceConfig(
        private_key_file=Path("key"), private_key=None, address=(IPv4Interface("10.0.0.1/24"),)
    )
    peer = PeerConfig(public_key=ALICE.public(), allowed_ips=(IPv4Network("10.0.0.2/32"),))
    old = AgentConfig(relays=relays, owned=made)
    moved = structs.replace(made, address=(IPv4Interface("10.0.0.9/24"),), private_key=ALICE)
    found = changes.changes(AGENT, old, AgentConfig(relays=relays, owned=moved, peers=(peer,)))
    assert (found.live, found.restart) == (("owned", "peers"), ())
    # The key that the agent made at its start is in the file now.
    known = structs.replace(made, private_key=ALICE)
    assert changes.changes(AGENT, old, structs.replace(old, owned=known)) == changes.Changes((), ())
    other = structs.replace(made, name="wg7")
    found = changes.changes(AGENT, old, AgentConfig(relays=relays, owned=other, peers=(peer,)))
    assert (found.live, found.restart) == ((), ("owned", "peers"))
    assert changes.changes(AGENT, old, AgentConfig(relays=relays)).restart == ("owned",)


def test_peers_and_interface_are_compared_too() -> None:
    old = AgentConfig(relays=(JoinString("192.0.2.1", 1),))
    new = AgentConfig(relays=(JoinString("192.0.2.1", 1),), interface="wg1")
    assert changes.changes(AGENT, old, new).restart == ("interface",)


def test_few_settings_wait_for_a_restart() -> None:
    """docs/systemd.md has them in a table."""
    cluster = {"api_server", "api_token_file", "api_ca_file"}
    waiting = {role.name: {one.name for one in role.settings if not one.live} for role in (RELAY, AGENT)}
    assert waiting == {
        "relay": {"listen", "stun_port", "control", "state_dir", "admit", "host"} | cluster,
        "agent": {
            "interface",
            "direct_paths",
            "proxy_port",
            "control",
            "state_dir",
            "kubernetes",
            "node_name",
        }
        | cluster,
    }
