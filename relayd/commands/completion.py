"""`relayd completion`: what makes a shell complete relayd's words.

The scripts hold all words themselves: no interpreter starts at a press of the tab key. (shtab, the library
for this, writes none for fish.)
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence

from relayd.commands.words import Command, Option

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its argument."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell that reads it")
    parser.epilog = (
        "bash: relayd completion bash > /etc/bash_completion.d/relayd\n"
        "zsh:  relayd completion zsh > /usr/local/share/zsh/site-functions/_relayd\n"
        "fish: relayd completion fish > ~/.config/fish/completions/relayd.fish"
    )


def run(args: argparse.Namespace) -> int:
    """Print it. The exit status."""
    from relayd.commands.catalog import catalog
    from relayd.observe.output import printing

    writers = {"bash": bash, "zsh": zsh, "fish": fish}
    with printing():
        print("\n".join(writers[args.shell](catalog())))
    return 0


def _all(commands: Sequence[Command]) -> Iterator[Command]:
    """Commands, and their actions."""
    for command in commands:
        yield command
        yield from command.actions


# --- bash ---


def bash(commands: Sequence[Command]) -> Iterator[str]:
    """The lines of a script for bash 4.4 and later."""
    yield "# relayd's words for bash, made by `relayd completion bash`"
    yield "_relayd() {"
    yield "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command= words="
    yield "    # bash takes --flag=value for three words"
    yield '    if [[ $current == "=" ]]; then current='
    yield '    elif [[ $previous == "=" ]]; then previous=${COMP_WORDS[COMP_CWORD - 2]}; fi'
    yield "    COMPREPLY=()"
    yield "    (( COMP_CWORD < 2 )) || command=${COMP_WORDS[1]}"
    yield "    if (( COMP_CWORD > 2 )); then"
    yield '        case "$command ${COMP_WORDS[2]}" in'
    yield from (
        f'        {shlex.quote(" ".join(one.words))}) command+=" ${{COMP_WORDS[2]}}" ;;'
        for command in commands
        for one in command.actions
    )
    yield "        esac"
    yield "    fi"
    yield '    case "$command:$previous" in'
    for command in _all(commands):
        for option in command.options:
            if option.value and option.flags:
                pattern = "|".join(shlex.quote(f"{' '.join(command.words)}:{flag}") for flag in option.flags)
                yield f"    {pattern}) {_bash_value(option)} return ;;"
    yield "    esac"
    yield '    case "$command" in'
    top = [one.words[0] for one in commands]
    yield f"    '') words={shlex.quote(' '.join([*top, '-h', '--help', '--version']))} ;;"
    for command in _all(commands):
        arguments = [one for one in command.options if not one.flags]
        words = [one.words[-1] for one in command.actions]
        words += [word for one in arguments for word in one.choices]
        words += [flag for one in command.options for flag in one.flags]
        files = "".join(_bash_value(one) for one in arguments if one.takes_file)
        yield f"    {shlex.quote(' '.join(command.words))}) words={shlex.quote(' '.join(words))}; {files} ;;"
    yield "    esac"
    yield '    mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "$words" -- "$current")'
    yield "}"
    yield "complete -F _relayd relayd"


def _bash_value(option: Option) -> str:
    if option.choices:
        words = shlex.quote(" ".join(option.choices))
        return f'mapfile -t COMPREPLY < <(compgen -W {words} -- "$current");'
    if option.takes_file or option.takes_directory:
        kind = "-f" if option.takes_file else "-d"
        return f'compopt -o filenames; mapfile -t COMPREPLY < <(compgen {kind} -- "$current");'
    return ""


# --- zsh ---


def zsh(commands: Sequence[Command]) -> Iterator[str]:
    """The lines of a function for zsh 5, to be found in fpath or sourced."""
    yield "#compdef relayd"
    yield "# relayd's words for zsh, made by `relayd completion zsh`"
    top = Option(("--version",), "", "say which relayd this is", ""), Option(("-h", "--help"), "", "help", "")
    yield from _zsh_function(Command((), "", "", "", top, tuple(commands)))
    yield 'if [[ $funcstack[1] == _relayd ]]; then _relayd "$@"; else compdef _relayd relayd; fi'


def _zsh_function(command: Command) -> Iterator[str]:
    for action in command.actions:
        yield from _zsh_function(action)
    yield f"{_zsh_name(command)}() {{"
    specs = [_zsh_spec(option) for option in command.options]
    if not command.actions:
        yield f"    _arguments {' '.join(specs)}"
    else:
        yield "    local context state state_descr line"
        yield "    typeset -A opt_args"
        yield f"    _arguments -C {' '.join(specs)} '1:command:->word' '*::argument:->rest'"
        yield "    case $state in"
        told = " ".join(shlex.quote(f"{one.words[-1]}:{one.summary}") for one in command.actions)
        yield f"    word) local -a words_here=({told}); _describe command words_here ;;"
        yield "    rest)"
        yield "        case $line[1] in"
        yield from (f"        {one.words[-1]}) {_zsh_name(one)} ;;" for one in command.actions)
        yield "        esac ;;"
        yield "    esac"
    yield "}"


def _zsh_name(command: Command) -> str:
    return "_".join(("_relayd", *command.words))


def _zsh_spec(option: Option) -> str:
    value = ""
    if option.value:
        what = option.value.replace(":", r"\:")
        value = f"{'::' if option.optional else ':'}{what}:{_zsh_value(option)}"
    if not option.flags:
        return shlex.quote(f"*:{value.lstrip(':')}" if option.several else value)
    told = option.help.replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]").replace(":", r"\:")
    repeat = "*" if option.several else ""
    return " ".join(shlex.quote(f"{repeat}{flag}[{told}]{value}") for flag in option.flags)


def _zsh_value(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    return "_files" if option.takes_file else "_files -/" if option.takes_directory else " "


# --- fish ---


def fish(commands: Sequence[Command]) -> Iterator[str]:
    """The lines of a file for fish 3."""
    yield "# relayd's words for fish, made by `relayd completion fish`"
    yield "function __relayd_in # the command line goes on from these words"
    yield "    set -l words (commandline -opc)[2..]"
    yield "    set -l count (count $argv)"
    yield "    test $count -eq 0; and return"  # fish counts from 1, and takes [1..0] for a mistake
    yield '    test (count $words) -ge $count; and test "$words[1..$count]" = "$argv"'
    yield "end"
    yield "function __relayd_after # it has these words, and no more"
    yield "    test (commandline -opc | count) -eq (math (count $argv) + 1); and __relayd_in $argv"
    yield "end"
    yield "complete -c relayd -f"
    yield "complete -c relayd -n '__relayd_after' -l version -d 'say which relayd this is'"
    for command in commands:
        yield f"complete -c relayd -n '__relayd_after' -a {command.words[0]} -d {_fish(command.summary)}"
    for command in _all(commands):
        words = " ".join(command.words)
        after = f"complete -c relayd -n '__relayd_after {words}'"
        yield from (f"{after} -a {one.words[-1]} -d {_fish(one.summary)}" for one in command.actions)
        where = f"complete -c relayd -n '__relayd_in {words}'"
        for option in command.options:
            yield " ".join([where, *_fish_option(option)])


def _fish_option(option: Option) -> Iterator[str]:
    for flag in option.flags:
        yield f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
    if option.choices:
        yield f"-a {_fish(' '.join(option.choices))}"
    elif option.takes_directory:
        yield "-a '(__fish_complete_directories)'"
    if option.takes_file:
        yield "-rF" if option.flags else "-F"
    elif option.value and option.flags:
        yield "-x"
    yield f"-d {_fish(option.help)}"


def _fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
