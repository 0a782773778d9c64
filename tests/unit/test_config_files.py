"""Files that can't be read or trusted, and files and texts of any contents: one ConfigError, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.config import load_agent, load_relay
from relayd.endpoints import Endpoint
from relayd.errors import ConfigError
from tests.helpers.config_files import (
    AGENT,
    KEY_A,
    OWN,
    agent_error,
    change,
    check_error,
    with_private_key,
    write,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where AGENT finds its private key."""
    return with_private_key(tmp_path)


# Files


def test_the_error_reads_as_one_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    write(directory, AGENT.replace('allowed_ips = "', 'allowed_ip = "'))
    with pytest.raises(ConfigError) as caught:
        load_agent("relayd.toml", {}, environ={})
    assert str(caught.value) == "relayd.toml:19: peer[2].allowed_ip: unknown key (did you mean allowed_ips?)"


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/nonexistent/relayd\.toml: cannot read it: No such file"):
        load_relay("/nonexistent/relayd.toml", {}, environ={})


def test_a_file_that_a_variable_names_is_missing_by_that_name() -> None:
    with pytest.raises(
        ConfigError, match=r"^RELAYD_CONFIG: /nowhere/relay\.toml: cannot read it: No such file"
    ):
        load_relay(None, {}, environ={"RELAYD_CONFIG": "/nowhere/relay.toml"})


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it: Is a directory"):
        load_relay(tmp_path, {}, environ={})


def test_a_file_that_may_not_be_read_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests run as root too, whom no mode keeps out.
    def refuse(path: object, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ConfigError, match=r"x\.toml: cannot read it: Permission denied"):
        load_relay("x.toml", {}, environ={})


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: longer than 4 MiB"):
        load_relay("/dev/zero", {}, environ={})


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_name_that_no_file_has_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError):
        load_relay(name, {}, environ={})


def test_bytes_that_are_not_utf8_have_a_line(tmp_path: Path) -> None:
    path = tmp_path / "relayd.toml"
    path.write_bytes(b"[relay]\n# caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        load_relay(path, {}, environ={})
    assert caught.value.line == 2


def key_error(directory: Path) -> ConfigError:
    error = agent_error(directory, AGENT)
    assert (error.line, error.key) == (6, "interface.private_key_file")
    return error


def test_a_missing_key_file_says_how_to_make_one(directory: Path) -> None:
    (directory / "private.key").unlink()
    error = key_error(directory)
    assert "private.key' does not exist" in error.problem
    assert f"wg genkey > {directory}/private.key" in error.hint


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o666, 0o777])
def test_a_key_file_open_to_every_user_is_refused(mode: int, directory: Path) -> None:
    (directory / "private.key").chmod(mode)
    error = key_error(directory)
    assert f"open to every user (mode {mode:04o})" in error.problem
    assert error.hint == f"chmod 600 {directory}/private.key"


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        (b"", "0 bytes long"),
        (b"not a key", "not base64"),
        (OWN.to_base64()[:-1].encode(), "not base64"),
        (OWN.to_base64().encode() * 2, "not base64"),
        (b"\xff" * 44, "ASCII"),
        (b"A" * 43 + b"=", "all zeros"),
        (b"A" * 10_000, "bytes long"),
    ],
)
def test_a_malformed_key_file_is_refused_without_quoting_it(
    contents: bytes, problem: str, directory: Path
) -> None:
    (directory / "private.key").write_bytes(contents)
    error = key_error(directory)
    assert "holds no WireGuard key" in error.problem
    assert problem in error.problem
    assert not contents or contents.decode("latin-1") not in str(error)


def test_a_key_file_that_would_block_is_refused(directory: Path) -> None:
    (directory / "private.key").unlink()
    os.mkfifo(directory / "private.key", 0o600)
    assert "is not a regular file" in key_error(directory).problem


def test_a_key_file_that_is_a_directory_is_refused(directory: Path) -> None:
    (directory / "private.key").unlink()
    (directory / "private.key").mkdir(0o700)
    assert "is not a regular file" in key_error(directory).problem


def test_a_private_key_in_the_configuration_is_not_shown(directory: Path) -> None:
    error = agent_error(directory, change("private.key", OWN.to_base64()))
    assert (error.line, error.key) == (6, "interface.private_key_file")
    assert "is a key" in error.problem
    assert "private_key_file" in error.hint


# Whatever is written

FUZZ = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=100,
)
ATOMS = st.one_of(
    st.sampled_from(
        [
            "-1",
            "0",
            "1",
            "65536",
            "9" * 30,
            "nan",
            "inf",
            "1.5",
            "true",
            "1979-05-27",
            "[]",
            "{}",
            '""',
            '"\\u0000"',
        ]
    ),
    st.sampled_from(
        ['"10.0.0.0/8"', f'"{KEY_A}"', f'"{OWN.to_base64()}"', '"[::1]:1"', '"a:1"', '"/dev/null"']
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20).map(
        lambda text: "'" + text.replace("'", "") + "'"
    ),
)
VALUES = ATOMS | st.lists(ATOMS, max_size=3).map(lambda items: "[" + ",".join(items) + "]")


@FUZZ
@given(line=st.integers(0, AGENT.count("\n") - 1), value=VALUES)
def test_no_value_raises_anything_but_config_error(line: int, value: str, directory: Path) -> None:
    lines = AGENT.splitlines()
    key, equals, _ = lines[line].partition(" = ")
    lines[line] = f"{key}{equals}{value}" if equals else f"{key}\nx = {value}"
    path = write(directory, "\n".join(lines))
    try:
        load_agent(path, {}, environ={})
    except ConfigError as error:
        check_error(error)


@FUZZ
@given(st.binary(max_size=60), st.integers(0, len(AGENT)), st.integers(0, 10))
def test_no_damage_to_a_file_raises_anything_but_config_error(
    directory: Path, noise: bytes, start: int, length: int
) -> None:
    raw = AGENT.encode()
    path = directory / "relayd.toml"
    path.write_bytes(raw[:start] + noise + raw[start + length :])
    for load in (load_agent, load_relay):
        try:
            load(path, {}, environ={})
        except ConfigError as error:
            check_error(error)


@FUZZ
@given(st.sampled_from(["RELAY", "INTERFACE", "STATE", "CONTROL", "LOG", "PROXY_PORT", "ECHO_S"]), st.text())
def test_no_variable_or_flag_raises_anything_but_config_error(word: str, text: str) -> None:
    relay = {"RELAYD_RELAY": "192.0.2.1:1"}
    for flags, environ in (({}, {**relay, f"RELAYD_{word}": text}), ({word.lower(): text}, relay)):
        try:
            load_agent(None, flags, environ=environ)
        except ConfigError as error:
            check_error(error)


@FUZZ
@given(st.text())
def test_no_listen_address_raises_anything_but_config_error(text: str) -> None:
    try:
        for address in load_relay(None, {"listen": [text]}, environ={}).listen:
            Endpoint.parse(address)
    except ConfigError as error:
        check_error(error)
