"""The tables of settings: whole, and all that a setting needs for its flag, its variable and its key."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import pytest

from relayd import cli
from relayd.commands import flags
from relayd.commands.parser import make_parser
from relayd.config import kinds, load_agent, load_relay
from relayd.config.kinds import Kind
from relayd.config.setting import Role, Setting
from relayd.config.settings import AGENT, RELAY, ROLES
from relayd.config.types import AgentConfig
from relayd.config.values import WrongError

NOT_SETTINGS = {"owned", "peers", "clean_state", "clean_state_once"}
"""Fields of a configuration that come from tables of the file, or from one start's flags."""

BY_ROLE = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


@BY_ROLE
def test_every_field_is_a_setting_and_every_setting_a_field(role: Role) -> None:
    fields = {one.name for one in msgspec.structs.fields(role.config)} - NOT_SETTINGS
    assert sorted(one.name for one in role.settings) == sorted(fields)


@BY_ROLE
def test_no_two_settings_share_a_key_a_flag_or_a_variable(role: Role) -> None:
    for spelling in ("path", "flag", "variable"):
        seen = [getattr(one, spelling) for one in role.settings]
        assert len(set(seen)) == len(seen)


@BY_ROLE
def test_help_text_is_a_clause_without_the_default(role: Role) -> None:
    for one in role.settings:
        assert one.help
        assert not one.help.endswith(".")
        assert "default" not in one.help


@BY_ROLE
def test_a_default_is_right_by_its_own_reader(role: Role) -> None:
    for one in role.settings:
        default = role.defaults.get(one.name)
        if default not in (None, "", ()):
            assert load_one(one, list(default) if isinstance(default, tuple) else default) == default


def load_one(setting: Setting, value: object) -> object:
    read = setting.kind.read(value)
    return str(read) if isinstance(read, Path) else read


@BY_ROLE
def test_every_setting_has_a_flag_that_reaches_the_configuration(role: Role, tmp_path: Path) -> None:
    """What the default says, given as the flag's text, is the default again."""
    load = load_relay if role is RELAY else load_agent
    for one in role.settings:
        default = role.defaults.get(one.name)
        if default in (None, "", ()):
            continue
        texts = list(map(str, default)) if isinstance(default, tuple) else [str(default)]
        arguments = [role.command, one.flag, *texts]
        if one.kind.switch:
            arguments = [role.command, one.flag if default else one.flag.replace("--", "--no-", 1)]
        if role is AGENT:
            arguments += ["--relay", "192.0.2.1:3478"]
        args = make_parser(arguments).parse_args(arguments)
        config = load(None, flags.given(args, role), environ={})
        assert getattr(config, one.name) == default, one.flag


@BY_ROLE
def test_short_help_names_the_common_settings_and_the_long_one_all(
    role: Role, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as caught:
            cli.main([role.command, flag])
        assert caught.value.code == 0
        named[flag] = set(capsys.readouterr().out.replace(",", "").split())
    for one in role.settings:
        assert one.flag in named["--help-all"]
        assert (one.flag in named["--help"]) == one.common, one.flag
        assert all(word in named["--help-all"] for word in one.help.replace(",", "").split()), one.flag


def test_a_setting_without_a_default_names_none() -> None:
    assert AGENT.default_text(AGENT.setting("relays")) == ""
    assert RELAY.default_text(RELAY.setting("listen")) == "0.0.0.0:3478, [::]:3478"
    assert RELAY.default_text(RELAY.setting("silence_s")) == "75"
    assert AGENT.default_text(AGENT.setting("relay_file")) == "", "off would be a file of that name"
    assert AGENT.default_text(AGENT.setting("control")) == "/run/relayd/agent-INTERFACE.sock"


# --- kinds that a table can hold ---


class Every(msgspec.Struct, frozen=True, kw_only=True):
    """One field of each kind."""

    open: bool = False
    auth: str = "required"
    tokens: tuple[str, ...] = ()
    key: str = ""
    http: str | None = None


EVERY = (
    Setting("relay", "g", "open", kinds.SWITCH, "let anyone in"),
    Setting("relay", "g", "auth", kinds.choice("required", "optional"), "whether keys are proved"),
    Setting("relay", "g", "tokens", kinds.several_paths("FILE", example="/etc/t"), "files with tokens"),
    Setting("relay", "g", "key", kinds.FILE, "a file"),
    Setting("relay", "g", "http", kinds.or_off(kinds.HTTP), "where to answer"),
)
EVERY_ROLE = Role("every", "every", Every, EVERY)  # type: ignore[arg-type]


def parse(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    flags.add_settings(parser, EVERY_ROLE)
    return flags.given(parser.parse_args(arguments), EVERY_ROLE)


def test_flags_of_every_kind() -> None:
    assert parse() == dict.fromkeys(("open", "auth", "tokens", "key", "http"))
    assert parse("--open")["open"] is True
    assert parse("--no-open")["open"] is False
    assert parse("--tokens", "a", "b", "--tokens", "c")["tokens"] == ["a", "b", "c"]
    assert parse("--http", "off", "--auth", "optional") | {} == {
        "open": None, "auth": "optional", "tokens": None, "key": None, "http": "off",
    }  # fmt: skip


def test_default_texts_of_every_kind() -> None:
    texts = {one.name: EVERY_ROLE.default_text(one) for one in EVERY}
    assert texts == {"open": "no", "auth": "required", "tokens": "", "key": "", "http": "off"}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (kinds.SWITCH, "Yes", True),
        (kinds.SWITCH, "0", False),
        (kinds.choice("a", "b"), "b", "b"),
        (kinds.or_off(kinds.HTTP), "off", None),
        (kinds.or_off(kinds.HTTP), "127.0.0.1:9478", "127.0.0.1:9478"),
        (kinds.or_off(kinds.PORT), "off", None),
        (kinds.or_off(kinds.PORT), "80", 80),
        (kinds.number(1, 5, "things"), "5", 5),
        (kinds.duration(0.5, 5), "0.5", 0.5),
        (kinds.several_paths("FILE", example="/t"), "/a,/b", (Path("/a"), Path("/b"))),
    ],
)
def test_kind_takes_a_variables_text(kind: Kind, text: str, value: object) -> None:
    assert kind.read(kind.from_text(text)) == value


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (kinds.SWITCH, "true", "is a string, not a boolean"),
        (kinds.SWITCH, 1, "is an integer, not a boolean"),
        (kinds.choice("required", "optional"), "optinal", "'optinal' is not known here"),
        (kinds.or_off(kinds.HTTP), "of", "'of'"),
        (kinds.number(1, 5, "things"), 6, "6 is out of range"),
        (kinds.PORT, "80", "is a string, not an integer"),
    ],
)
def test_kind_refuses(kind: Kind, value: object, said: str) -> None:
    with pytest.raises(WrongError, match=said):
        kind.read(value)


@pytest.mark.parametrize(
    ("kind", "text"), [(kinds.SWITCH, "maybe"), (kinds.PORT, "http"), (kinds.duration(1, 2), "1s")]
)
def test_kind_refuses_text_that_is_none_of_its_own(kind: Kind, text: str) -> None:
    with pytest.raises(WrongError):
        kind.from_text(text)


def test_wrong_value_of_a_flag_names_the_flag() -> None:
    with pytest.raises(Exception, match=r"--proxy-port: 'x' is not a whole number"):
        load_agent(None, {"relay": "192.0.2.1:1", "proxy_port": "x"}, environ={})


def test_no_field_is_without_a_default() -> None:
    """What must be given, a relay, may come from two settings: `load` looks after that."""
    assert not [one.name for one in msgspec.structs.fields(AgentConfig) if one.required]
