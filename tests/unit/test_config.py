"""The configuration: what a right one says, where its values come from, and the examples."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from pathlib import Path

import msgspec
import pytest

from relayd.config import AgentConfig, PeerConfig, RelayConfig, load_agent, load_control, load_relay
from relayd.config.settings import RELAY
from relayd.endpoints import Endpoint
from relayd.errors import ConfigError
from relayd.join import JoinString
from tests.helpers.config_files import (
    AGENT,
    KEY_A,
    KEY_B,
    OWN,
    change,
    check_error,
    relay_error,
    with_private_key,
    write,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where AGENT finds its private key."""
    return with_private_key(tmp_path)


# What is right


def test_a_full_file_says_all_that_is_in_it(directory: Path) -> None:
    config = load_agent(write(directory, AGENT), {}, environ={})
    assert config.relays == (JoinString("relay.example.net", 3478),)
    assert config.interface == "wg0"
    owned = config.owned
    assert owned is not None
    assert owned.name == "wg0"
    assert owned.private_key_file == directory / "private.key"
    assert owned.private_key == OWN
    assert owned.listen_port == 51821
    assert owned.address == (ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64"))
    assert owned.mtu == 1380
    assert config.peers == (
        PeerConfig(
            public_key=KEY_A,
            allowed_ips=(ip_network("10.0.0.2/32"), ip_network("fd00::2/128"), ip_network("192.168.7.0/24")),
            endpoint=Endpoint.parse("[2001:db8::2]:51820"),
            persistent_keepalive=25,
        ),
        PeerConfig(public_key=KEY_B, allowed_ips=(ip_network("10.0.0.3/32"), ip_network("10.9.0.0/16"))),
    )
    assert config.state_dir == str(directory / "state")
    assert config.control_path == "/run/relayd/other.sock"
    assert config.proxy_port == 22348
    assert config.log == "json"
    assert (config.echo_s, config.reconcile_s) == (2.5, 3.0)


def test_a_configuration_never_shows_the_private_key(directory: Path) -> None:
    config = load_agent(write(directory, AGENT), {}, environ={})
    assert OWN.to_base64() not in repr(config)
    assert repr(OWN.raw) not in repr(config)


def test_a_configuration_is_frozen() -> None:
    config = RelayConfig()
    with pytest.raises(AttributeError):
        config.control = "/elsewhere"  # type: ignore[misc]


def test_without_a_file_an_agent_uses_an_interface_that_exists() -> None:
    config = load_agent(None, {"relay": "[2001:DB8::1]:3478"}, environ={})
    assert config == AgentConfig(relays=(JoinString("2001:db8::1", 3478),), interface="wire_kube")
    assert config.control_path == "/run/relayd/agent-wire_kube.sock"


def test_a_file_may_name_an_interface_that_exists(directory: Path) -> None:
    text = '[relay]\naddress = "192.0.2.1:3478"\n[agent]\ninterface = "wg7"\n'
    config = load_agent(write(directory, text), {}, environ={})
    assert (config.interface, config.owned, config.peers) == ("wg7", None, ())
    assert config.control_path == "/run/relayd/agent-wg7.sock"


def test_a_relay_needs_no_file() -> None:
    assert load_relay(None, {"listen": None, "control": None}, environ={}) == RelayConfig()


def test_a_relay_reads_all_its_settings(directory: Path) -> None:
    text = """\
[relay]
listen = ["127.0.0.1:0", "[::1]:3478"]
control = "here.sock"
log = "console"
queue_bytes = 131072
queue_age_ms = 250
silence_s = 60
register_timeout_s = 5.5
max_unregistered = 10
max_unregistered_per_address = 5
round_bytes = 65536
"""
    assert load_relay(write(directory, text), {}, environ={}) == RelayConfig(
        listen=("127.0.0.1:0", "[::1]:3478"),
        control=str(directory / "here.sock"),
        log="console",
        queue_bytes=131072,
        queue_age_ms=250,
        silence_s=60,
        register_timeout_s=5.5,
        max_unregistered=10,
        max_unregistered_per_address=5,
        round_bytes=65536,
    )


def test_a_key_file_that_the_group_may_read_is_taken(directory: Path) -> None:
    (directory / "private.key").chmod(0o640)
    config = load_agent(write(directory, AGENT), {}, environ={})
    assert config.owned is not None


def test_a_default_route_may_stand_beside_other_peers(directory: Path) -> None:
    config = load_agent(write(directory, change("10.9.0.0/16", "0.0.0.0/0, ::/0")), {}, environ={})
    assert config.peers[1].allowed_ips[1:] == (ip_network("0.0.0.0/0"), ip_network("::/0"))


def test_networks_of_one_peer_may_nest(directory: Path) -> None:
    config = load_agent(write(directory, change("10.9.0.0/16", "10.9.0.0/16, 10.9.1.0/24")), {}, environ={})
    assert len(config.peers[1].allowed_ips) == 3


# Where a value comes from


def test_flag_beats_environment_beats_file_beats_default(directory: Path) -> None:
    path = write(directory, '[relay]\nlisten = ["127.0.0.1:1"]\ncontrol = "/file"\nlog = "json"\n')
    environ = {
        "RELAYD_LISTEN": "127.0.0.1:2, [::1]:2",
        "RELAYD_CONTROL": "/environ",
        "RELAYD_SILENCE_S": "30",
    }
    config = load_relay(path, {"listen": ["127.0.0.1:3", "[::1]:3"], "log": []}, environ=environ)
    assert config.listen == ("127.0.0.1:3", "[::1]:3")
    assert config.control == "/environ"
    assert config.log == "json"
    assert config.silence_s == 30.0
    assert config.queue_bytes == RelayConfig().queue_bytes
    assert load_relay(path, {}, environ=environ).listen == ("127.0.0.1:2", "[::1]:2")
    assert load_relay(path, {}, environ={}).listen == ("127.0.0.1:1",)


def test_every_setting_of_an_agent_can_come_from_the_environment() -> None:
    environ = {
        "RELAYD_RELAY": "192.0.2.1:3478",
        "RELAYD_INTERFACE": "wg3",
        "RELAYD_STATE": "/tmp/state",
        "RELAYD_CONTROL": "/tmp/c.sock",
        "RELAYD_LOG": "console",
        "RELAYD_PROXY_PORT": "1234",
        "RELAYD_ECHO_S": "1.5",
        "RELAYD_PORT": "tcp://10.0.0.1:3478",  # Kubernetes' own
    }
    assert load_agent(None, {}, environ=environ) == AgentConfig(
        relays=(JoinString("192.0.2.1", 3478),),
        interface="wg3",
        state_dir="/tmp/state",
        control="/tmp/c.sock",
        log="console",
        proxy_port=1234,
        echo_s=1.5,
    )


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYD_LISTEN", "127.0.0.1:5")
    assert load_relay(None, {}).listen == ("127.0.0.1:5",)


def test_an_empty_variable_is_not_set() -> None:
    assert load_relay(None, {}, environ={"RELAYD_LISTEN": "", "RELAYD_CONFIG": ""}) == RelayConfig()


def test_the_environment_may_name_the_file(directory: Path) -> None:
    path = write(directory, '[relay]\nlisten = "127.0.0.1:1"\n')
    assert load_relay(None, {}, environ={"RELAYD_CONFIG": str(path)}).listen == ("127.0.0.1:1",)


def test_the_flag_names_an_interface_that_the_file_leaves_nameless(directory: Path) -> None:
    config = load_agent(write(directory, change('name = "wg0"\n', "")), {"interface": "wg5"}, environ={})
    assert config.owned is not None
    assert (config.interface, config.owned.name) == ("wg5", "wg5")


def test_the_flag_may_repeat_the_files_interface(directory: Path) -> None:
    assert load_agent(write(directory, AGENT), {"interface": "wg0"}, environ={}).interface == "wg0"


def test_a_flag_that_does_not_exist_is_a_bug() -> None:
    with pytest.raises(TypeError, match="lisssten"):
        load_relay(None, {"lisssten": "127.0.0.1:1"}, environ={})


def test_status_asks_the_socket_that_it_is_told_of() -> None:
    assert load_control({"control": None}, environ={}) is None
    assert load_control({}, environ={"RELAYD_CONTROL": "/a.sock"}) == "/a.sock"
    assert load_control({"control": "/b.sock"}, environ={"RELAYD_CONTROL": "/a.sock"}) == "/b.sock"


# Flags and variables


@pytest.mark.parametrize(
    ("flags", "source", "problem"),
    [
        ({"listen": ["127.0.0.1:1", "nonsense"]}, "--listen", "'nonsense' has no port"),
        ({"listen": "0.0.0.0:70000"}, "--listen", "not a port"),
        ({"control": ""}, "--control", "is empty"),
        ({"log": "loud"}, "--log", "'loud' is not a way to log"),
        ({"queue_bytes": "many"}, "--queue-bytes", "'many' is not a whole number"),
        ({"queue_bytes": 1}, "--queue-bytes", "1 is out of range"),
    ],
)
def test_an_error_names_the_flag(flags: dict[str, object], source: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_relay(None, flags, environ={"RELAYD_LISTEN": "127.0.0.1:1"})
    error = check_error(caught.value)
    assert (error.source, error.line, error.key) == (source, None, "")
    assert problem in error.problem


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("RELAYD_RELAY", "nonsense", "'nonsense' has no port"),
        ("RELAYD_INTERFACE", "a/b", "can't name an interface"),
        ("RELAYD_LOG", "\udcff", r"'\udcff' is not a way to log"),
        ("RELAYD_ECHO_S", "soon", "'soon' is not a number"),
        ("RELAYD_ECHO_S", "inf", "out of range"),
        ("RELAYD_PROXY_PORT", "1.5", "'1.5' is not a whole number"),
    ],
)
def test_an_error_names_the_variable(name: str, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_agent(None, {}, environ={"RELAYD_RELAY": "192.0.2.1:1", name: text})
    error = check_error(caught.value)
    assert error.source == name
    assert problem in error.problem


def test_without_any_relay_the_error_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match="--relay RELAY, RELAYD_RELAY, or address in"):
        load_agent(None, {}, environ={})


@pytest.mark.parametrize("source", ["--interface", "RELAYD_INTERFACE"])
def test_an_interface_other_than_the_files_is_refused(source: str, directory: Path) -> None:
    path = write(directory, AGENT)
    flags, environ = (
        ({"interface": "wg9"}, {}) if source == "--interface" else ({}, {"RELAYD_INTERFACE": "wg9"})
    )
    with pytest.raises(ConfigError) as caught:
        load_agent(path, flags, environ=environ)
    assert caught.value.source == source
    assert f"'wg9' is another interface than 'wg0' in {path}:5" in caught.value.problem


def test_a_flag_does_not_hide_a_mistake_in_the_file(directory: Path) -> None:
    error = relay_error(directory, '[relay]\nlog = "loud"\n', log="json")
    assert (error.line, error.key) == (2, "relay.log")


# The examples


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def uncommented(text: str) -> str:
    """With every `#key = value` (no blank after the mark: that is a setting, not a sentence) in force."""
    return "\n".join(
        line[1:] if line.startswith("#") and line[1:2].isalpha() else line for line in text.splitlines()
    )


def test_the_relays_example_shows_every_setting_and_its_default(directory: Path) -> None:
    text = (EXAMPLES / "relay.toml").read_text()
    assert load_relay(write(directory, text), {}, environ={}) == RelayConfig()
    everything = uncommented(text)
    # Beside an allow-list it would be an error.
    without_cluster = everything.replace('\nadmit = "kubernetes"', "")
    loaded = load_relay(write(directory, without_cluster), {}, environ={})
    # What there is none of by default is shown with an example.
    examples = {
        one.name: getattr(loaded, one.name) for one in RELAY.settings if RELAY.defaults[one.name] is None
    }
    assert loaded == msgspec.structs.replace(RelayConfig(), **examples)
    for field in msgspec.structs.fields(RelayConfig):
        assert f"\n{field.name} = " in everything


def test_the_agents_example_shows_every_setting_and_its_default(directory: Path) -> None:
    text = (
        (EXAMPLES / "agent.toml").read_text().replace("/etc/relayd/private.key", f"{directory}/private.key")
    )
    config = load_agent(write(directory, text), {}, environ={})
    assert [str(peer.endpoint) for peer in config.peers] == ["192.0.2.7:51820", "None"]
    second = directory / "relay.join"
    second.write_text("relayd://relay2.example.net:3478\n")
    second.chmod(0o600)
    everything = uncommented(text).replace("/etc/relayd/relay.join", str(second))
    with_defaults = load_agent(write(directory, everything), {}, environ={})
    examples = {name: getattr(with_defaults, name) for name in ("node_name", "api_server")}
    assert with_defaults == msgspec.structs.replace(
        config,
        control=config.control_path,
        relays=(*config.relays, JoinString("relay2.example.net", 3478)),
        relay_file=str(second),
        **examples,
    )
    tables_apart = {
        "kubernetes": "enabled",
        "relays": "address",
        "relay_file": "file",
        "insecure_relay": "insecure",
        "interface": "name",
        "owned": "private_key_file",
        "peers": "public_key",
    }
    for field in msgspec.structs.fields(AgentConfig):
        if field.name.startswith("clean_state"):  # asked for at one start, never a setting
            continue
        assert f"\n{tables_apart.get(field.name, field.name)} = " in everything
