"""A full configuration file of an agent, and ways to break it."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.config import load_agent, load_relay
from relayd.errors import ConfigError
from relayd.keys import PrivateKey, PublicKey

OWN = PrivateKey(bytes(range(32)))
KEY_A, KEY_B = PublicKey(b"\xaa" * 32), PublicKey(b"\xbb" * 32)

AGENT = f"""\
[relay]
address = "relay.example.net:3478"

[interface]
name = "wg0"
private_key_file = "private.key"
listen_port = 51821
address = ["10.0.0.1/24", "fd00::1/64"]
mtu = 1380

[[peer]]
public_key = "{KEY_A}"
allowed_ips = ["10.0.0.2/32", "fd00::2", "192.168.7.0/24"]
endpoint = "[2001:db8::2]:51820"
persistent_keepalive = 25

[[peer]]
public_key = "{KEY_B}"
allowed_ips = "10.0.0.3, 10.9.0.0/16"

[agent]
state_dir = "state"
control = "/run/relayd/other.sock"
proxy_port = 22348
log = "json"
echo_s = 2.5
reconcile_s = 3
"""


def with_private_key(directory: Path) -> Path:
    """`directory`, with the private key in it that AGENT names."""
    key = directory / "private.key"
    key.write_text(OWN.to_base64() + "\n")
    key.chmod(0o600)
    return directory


def write(directory: Path, text: str) -> Path:
    path = directory / "relayd.toml"
    path.write_text(text)
    return path


def agent_error(directory: Path, text: str, **flags: object) -> ConfigError:
    """The error that an agent with this file ends with."""
    with pytest.raises(ConfigError) as caught:
        load_agent(write(directory, text), flags, environ={})
    return check_error(caught.value)


def relay_error(directory: Path, text: str, **flags: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_relay(write(directory, text), flags, environ={})
    return check_error(caught.value)


def check_error(error: ConfigError) -> ConfigError:
    assert error.exit_status == 2
    assert "\n" not in str(error)
    assert OWN.to_base64() not in str(error)
    return error


def change(old: str, new: str) -> str:
    """AGENT with one thing else."""
    assert AGENT.count(old) == 1, old
    return AGENT.replace(old, new)
