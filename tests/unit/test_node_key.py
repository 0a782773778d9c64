"""node_key: made once, mode 0600, and never written over."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from relayd.agent.node_key import with_key
from relayd.config import AgentConfig, load_agent
from relayd.errors import ConfigError
from relayd.keys import PrivateKey

TEXT = '[relay]\naddress = "192.0.2.1:3478"\n\n[interface]\naddress = "10.8.0.1/24"\n'


def loaded(directory: Path) -> AgentConfig:
    file = directory / "agent.toml"
    file.write_text(TEXT)
    return load_agent(file, {"state": str(directory / "state")}, environ={})


def key_of(config: AgentConfig) -> PrivateKey:
    assert config.owned is not None
    assert config.owned.private_key is not None
    return config.owned.private_key


def test_the_first_start_makes_a_key_and_the_next_one_finds_it(tmp_path: Path) -> None:
    first = loaded(tmp_path)
    assert first.owned is not None
    assert first.owned.private_key is None
    key = key_of(with_key(first))
    path = tmp_path / "state" / "privatekey"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_text() == key.to_base64() + "\n"
    assert len(path.read_text()) == 45
    assert key_of(loaded(tmp_path)) == key
    assert key_of(with_key(first)) == key  # two that started at once


@pytest.mark.parametrize("text", ["", "not a key\n", "AAAA\n", PrivateKey(bytes(32)).to_base64()])
def test_a_malformed_key_is_an_error_and_is_never_written_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state" / "privatekey"
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigError, match="no WireGuard key") as refused:
        with_key(loaded(tmp_path))
    assert str(path) in str(refused.value)
    assert path.read_text() == text


def test_a_key_that_appears_between_reading_and_making_is_checked_too(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    path = tmp_path / "state" / "privatekey"
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text("not a key")
    with pytest.raises(ConfigError, match="no WireGuard key"):
        with_key(config)
    assert path.read_text() == "not a key"
