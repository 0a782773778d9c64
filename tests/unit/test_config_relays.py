"""How an agent is told of its relays: by address, by join string, in a file; and what is never quoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.config import load_agent
from relayd.config.load import examine_agent
from relayd.errors import ConfigError
from relayd.join import JoinString
from tests.helpers.identities import RELAY, TOKEN

JOIN = JoinString("relay.example.net", 3478, key=RELAY.public, token=TOKEN)


def test_a_flag_a_variable_and_the_file_take_join_strings(tmp_path: Path) -> None:
    assert load_agent(None, {"relay": [JOIN.format()]}, environ={}).relays == (JOIN,)
    assert load_agent(None, {}, environ={"RELAYD_RELAY": JOIN.format()}).relays == (JOIN,)
    path = tmp_path / "agent.toml"
    path.write_text(f'[relay]\naddress = ["{JOIN.format()}", "192.0.2.1:3478"]\n')
    assert load_agent(path, {}, environ={}).relays == (JOIN, JoinString("192.0.2.1", 3478))


def test_an_address_has_one_spelling() -> None:
    relays = load_agent(None, {"relay": ["relayd://[2001:DB8:0::1]:3478"]}, environ={}).relays
    assert relays == (JoinString("2001:db8::1", 3478),)


def secret(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "relay.join"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_of_join_strings_adds_to_those_that_are_named(tmp_path: Path) -> None:
    path = secret(tmp_path, f"# the spare one\n\n{JOIN.format()}  # as of today\n")
    config = load_agent(None, {"relay": ["192.0.2.1:1"], "relay_file": str(path)}, environ={})
    assert config.relays == (JoinString("192.0.2.1", 1), JOIN)
    assert load_agent(None, {}, environ={"RELAYD_RELAY_FILE": str(path)}).relays == (JOIN,)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("", 0o600, "--relay-file: .*relay.join is empty"),
        (f"{JOIN.format()}\n", 0o644, "--relay-file: .*relay.join is open to every user"),
        (f"\nrelayd://relay.example.net?token={TOKEN}\n", 0o600, r"relay.join:2: .*has no port"),
        (f"{JOIN.format()}\n{JOIN.format()}\n", 0o600, r"relay.join:2: .*is named twice"),
    ],
)
def test_a_wrong_file_of_join_strings_is_told_with_its_line(
    tmp_path: Path, text: str, mode: int, said: str
) -> None:
    path = secret(tmp_path, text, mode)
    with pytest.raises(ConfigError, match=said) as caught:
        load_agent(None, {"relay_file": str(path)}, environ={})
    assert TOKEN not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.join does not exist"):
        load_agent(None, {"relay_file": str(tmp_path / "nothing.join")}, environ={})


@pytest.mark.parametrize(("name", "said"), [("nothing.join", "does not exist"), ("n" * 300, "cannot read")])
def test_a_file_that_cannot_be_read_is_a_mistake_on_the_line_that_names_it(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "agent.toml").write_text(f'[relay]\n\nfile = "{name}"\n[agent]\nlogg = 1\n')
    told = examine_agent(tmp_path / "agent.toml", {}, environ={}).errors
    assert [(one.line, one.key) for one in told] == [(3, "relay.file"), (5, "agent.logg")]
    assert said in told[0].problem


@pytest.mark.parametrize(
    "text",
    [
        f"relayd://relay.example.net:3478?key=x&token={TOKEN}",
        f"relayd://relay.example.net:3478&token={TOKEN}",
        f"relayd://relay.example.net:3478?token={TOKEN}&{TOKEN}",
        f"http://relay.example.net:3478?token={TOKEN}",
        f"relayd://relay.example.net?token={TOKEN}",
        f"relay.example.net:3478?token={TOKEN}",
        f"relayd://0.0.0.0:3478?token={TOKEN}",
    ],
)
def test_no_error_quotes_a_token(text: str) -> None:
    for flags, environ in (({"relay": [text]}, {}), ({}, {"RELAYD_RELAY": text})):
        with pytest.raises(ConfigError) as caught:
            load_agent(None, flags, environ=environ)
        assert TOKEN not in str(caught.value)
