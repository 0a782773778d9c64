"""`relayd man`: the manual page, made of what the commands and the tables of settings say."""

from __future__ import annotations

import argparse
import os
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence

from relayd import __version__
from relayd.commands.exit_status import MEANINGS
from relayd.commands.flags import EVERY_SETTING
from relayd.commands.parser import DESCRIPTION, HELP_ALL
from relayd.commands.words import Command, Option
from relayd.config.setting import Key, Setting
from relayd.config.settings import AGENT, INTERFACE_KEYS, PEER_KEYS, RELAY
from relayd.config.types import KEY_FILE, RELAY_CONTROL, STATE_DIR, agent_control


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """It has no flags."""


def run(args: argparse.Namespace) -> int:
    """Print it, in man(7). The exit status."""
    from relayd.commands.catalog import catalog
    from relayd.observe.output import printing

    # https://reproducible-builds.org/specs/source-date-epoch/
    made = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    with printing():
        for line in page(catalog(), date=time.strftime("%Y-%m-%d", made)):
            print(line if line.startswith(".") else textwrap.fill(line, 78, break_on_hyphens=False))
    return 0


def page(commands: Sequence[Command], *, date: str) -> Iterator[str]:
    """Its lines; those of text can be broken anywhere between words."""
    each = [one for command in commands for one in command.actions or (command,)]
    yield f'.TH RELAYD 1 {date} "relayd {__version__}" "relayd manual"'
    yield ".SH NAME"
    yield "relayd \\- paths for WireGuard nodes that can't reach each other"
    yield ".SH SYNOPSIS"
    for number, one in enumerate(each):
        if number:
            yield ".br"
        arguments = [_value(option) for option in one.options if not option.flags]
        yield " ".join([f"\\fBrelayd {_plain(' '.join(one.words))}\\fR [\\fIOPTIONS\\fR]", *arguments])
    yield ".SH DESCRIPTION"
    for number, text in enumerate((DESCRIPTION, _ABOUT, _HELP)):
        if number:
            yield ".PP"
        yield _plain(text)
    yield ".SH COMMANDS"
    settings = {role.command: {one.flag: one for one in role.settings} for role in (RELAY, AGENT)}
    for one in each:
        yield f".SS relayd {_plain(' '.join(one.words))}"
        yield _plain(one.description)
        yield from _options(one, settings.get(one.words[0], {}))
        if one.epilog:
            yield ".PP"
        yield from _lines(one.epilog)
    yield ".SH CONFIGURATION FILE"
    yield from map(_plain, _FILE)
    about = "An interface that the agent makes and keeps. SIGHUP applies all but another name."
    yield from _keys("[interface]", about, INTERFACE_KEYS)
    about = "Once for each peer of that interface. SIGHUP applies what comes, goes and changes."
    yield from _keys("[[peer]]", about, PEER_KEYS)
    yield from _list("ENVIRONMENT", _ENVIRONMENT)
    yield from _list("FILES", _files())
    yield from _list("SIGNALS", _SIGNALS)
    yield from _list("EXIT STATUS", {str(number): text for number, text in MEANINGS.items()})
    yield from _list("EXAMPLES", _EXAMPLES)
    yield ".SH SEE ALSO"
    yield ".BR wg (8),"
    yield ".BR wg\\-quick (8),"
    yield ".BR ip (8)"


_HELP = "relayd COMMAND --help names a command's common flags, --help-all all of them."
_ABOUT = (
    "relayd agent sits beside a node's WireGuard and finds each peer a path that works: straight UDP where "
    "it can be had, otherwise through a relay over TCP. relayd serve is that relay. WireGuard stays end to "
    "end: the relay sees ciphertext only, and the agent never touches the packets of a direct tunnel."
)
_FILE = (
    "TOML, one file for each role. Each setting above has its key there. A flag wins over a variable, which "
    "wins over the file, which wins over the default. Relative names of files start at the file's own "
    "directory. relayd config check tells every mistake of a file, relayd config show which values count.",
)
_ENVIRONMENT = {
    "RELAYD_CONFIG": "The file, when --config names none.",
    "RELAYD_...": "Each setting has its variable, named above. Several values have commas between them. "
    "Variables that no setting has are let be; an empty one is not set.",
    "WIREKUBE_CLEAN_STATE": "true: the agent builds its interface anew at this start, and not again until a "
    "start without it.",
}
_SIGNALS = {
    "SIGTERM": "Stop in order, within 10 s; exit status 0. The kernel's tunnels stay.",
    "SIGINT": "The same; exit status 130.",
    "SIGHUP": "Read the configuration and the files that it names again, apply what can be, and log which "
    "settings need a restart; a mistake changes nothing. From a terminal that goes: stop, exit status 129.",
}
_EXAMPLES = {
    "relayd serve": "A relay on TCP port 3478.",
    "relayd agent --relay relay.example.net:3478 --interface wg0": "An agent for an interface that exists.",
    "relayd agent --config /etc/relayd/agent.toml": "One that makes its interface.",
    "relayd check --relay relay.example.net:3478": "What would keep an agent from working here.",
    "relayd cleanup --dry-run": "What the agent added to this host.",
}


def _files() -> Mapping[str, str]:
    return {
        RELAY_CONTROL: "Where a relay answers relayd status.",
        agent_control("INTERFACE"): "Where an agent does.",
        STATE_DIR: "What an agent remembers of a host: what it changed, and how that was before.",
        f"{STATE_DIR}/{KEY_FILE}": "The private key of an interface whose file names none.",
    }


def _options(command: Command, settings: Mapping[str, Setting]) -> Iterator[str]:
    for option in command.options:
        if "--help" in option.flags or HELP_ALL in option.flags:
            continue
        if command.words == ("config", "show") and option.group == EVERY_SETTING:
            continue  # the flags of serve and agent: the epilog says so
        yield ".TP"
        flags = ", ".join(f"\\fB{_plain(flag)}\\fR" for flag in option.flags)
        yield f"{flags} {_value(option)}".strip()
        setting = settings.get(option.flags[0]) if option.flags else None
        if setting is None:
            yield _plain(option.help)
            continue
        yield _plain(f"{option.help}.")
        yield f"In the file: \\fB{_plain(setting.path[1])}\\fR in [{_plain(setting.table)}]."
        yield f"Variable: \\fB{setting.variable}\\fR."
        if setting.live:
            yield "SIGHUP applies a new value."


def _value(option: Option) -> str:
    """What stands for it, in brackets if it may be left out."""
    if not option.value:
        return ""
    value = f"\\fI{_plain(option.value)}{' ...' if option.several else ''}\\fR"
    return f"[{value}]" if option.optional else value


def _keys(table: str, about: str, keys: Mapping[str, Key]) -> Iterator[str]:
    yield f".SS {table}"
    yield about
    for name, key in keys.items():
        yield ".TP"
        yield f"\\fB{_plain(name)}\\fR = \\fI{_plain(key.kind.metavar)}\\fR"
        yield _plain(key.help)


def _list(heading: str, items: Mapping[str, str]) -> Iterator[str]:
    yield f".SH {heading}"
    for name, text in items.items():
        yield ".TP"
        yield f"\\fB{_plain(name)}\\fR"
        yield _plain(text)


def _lines(text: str) -> Iterator[str]:
    """Each on a line of its own."""
    for number, line in enumerate(text.splitlines()):
        if number:
            yield ".br"
        yield _plain(line)


def _plain(text: str) -> str:
    """Text that roff takes for nothing else: groff_char(7) on backslashes, hyphens and what begins a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
