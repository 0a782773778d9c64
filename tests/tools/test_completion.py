"""Completion in real shells: what each of them offers at a press of the tab key."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relayd.commands.completion import SHELLS
from relayd.commands.parser import all_commands

TIMEOUT_S = 30.0


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that `relayd completion SHELL` makes."""
    directory = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with (directory / shell).open("w") as output:
            subprocess.run(
                [sys.executable, "-m", "relayd", "completion", shell],
                stdout=output, check=True, timeout=TIMEOUT_S,
            )  # fmt: skip
    return directory


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to complete names in."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "a file.toml").touch()
    (here / "directory").mkdir()
    monkeypatch.chdir(here)
    return here


def run(*argv: str) -> list[str]:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} isn't installed")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def bash(path: Path, line: str) -> set[str]:
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    # `compopt` works only while bash completes: then it would have been called by readline.
    return set(
        run(
            "bash", "--norc", "-c",
            f"compopt() {{ :; }}; source {path}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
            '_relayd; printf "%s\\n" "${COMPREPLY[@]}"',
        )
    ) - {""}  # fmt: skip


def fish(path: Path, line: str) -> set[str]:
    offered = run("fish", "--no-config", "-c", f"source {path}; complete -C '{line}'")
    return {one.partition("\t")[0] for one in offered}


class Zsh:
    """zsh offers its words to a terminal only, so here is one."""

    def __init__(self, path: Path, directory: Path) -> None:
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            os.environ.update(TERM="dumb", ZDOTDIR=str(directory), COLUMNS="400", LINES="200")
            os.execlp("zsh", "zsh", "-f", "-i")
        self.say("PS1='READY'$'> '; unset zle_bracketed_paste; unsetopt prompt_sp; LISTMAX=1000; stty -echo")
        self.say("autoload -Uz compinit; compinit -u -D; zstyle ':completion:*' list-grouped false")
        self.say(f"zstyle ':completion:*' verbose no; source {path}; stty rows 200 columns 400")

    def say(self, line: str) -> None:
        os.write(self._terminal, line.encode() + b"\n")
        self._read(until=r"READY> ")

    def complete(self, line: str) -> str:
        """What is on the terminal after `line` and two presses of the tab key."""
        os.write(self._terminal, line.encode() + b"\t\t")
        shown = self._read(until=None)
        os.write(self._terminal, b"\x15\n")  # the line goes
        self._read(until=r"READY> $")
        return shown

    def _read(self, until: str | None) -> str:
        """Up to a pattern, or until nothing more comes for half a second."""
        shown, deadline = "", time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self._terminal], [], [], 0.5)
            if ready:
                shown += os.read(self._terminal, 65536).decode(errors="replace")
            elif until is None and shown:
                return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x07|\r", "", shown)
            if until is not None and re.search(until, shown):
                return shown
        pytest.fail(f"zsh says no more than {shown!r}")

    def close(self) -> None:
        os.write(self._terminal, b"\nexit\n")
        os.close(self._terminal)
        os.waitpid(self._process, 0)


LINES = {
    "relayd ": {*all_commands(), "--version"},
    "relayd config ": {"check", "show"},
    "relayd serve --l": {"--listen", "--log"},
    "relayd serve --log ": {"auto", "console", "json"},
    "relayd config show --sil": {"--silence-s"},
    "relayd config check --ro": {"--role"},
    "relayd config check --role ": {"relay", "agent"},
    "relayd completion ": {"bash", "zsh", "fish"},
    "relayd agent --config ": {"a file.toml", "directory"},
    "relayd agent --state ": {"directory"},
    "relayd agent --relay ": set(),
}
"""What is typed, and what must be offered: of a prefix that ends there, nothing else."""

EXACT = [line for line in LINES if not line.endswith((" ", "--role "))] + [
    "relayd serve --log ",
    "relayd agent --state ",
]


@pytest.mark.parametrize("line", LINES)
def test_bash(line: str, scripts: Path, files: Path) -> None:
    offered = bash(scripts / "bash", line)
    assert offered >= LINES[line]
    assert line not in EXACT or offered == LINES[line]


def test_bash_after_an_equals_sign(scripts: Path) -> None:
    assert bash(scripts / "bash", "relayd serve --log = j") == {"json"}


@pytest.mark.parametrize("line", LINES)
def test_fish(line: str, scripts: Path, files: Path) -> None:
    offered = {one.replace("\\ ", " ").rstrip("/") for one in fish(scripts / "fish", line)}
    assert offered >= LINES[line] - {"--version"}  # fish offers flags after a dash only
    assert line not in EXACT or offered == LINES[line]


def test_zsh(scripts: Path, files: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh isn't installed")
    zsh = Zsh(scripts / "zsh", files)
    try:
        for line, words in LINES.items():
            shown = zsh.complete(line).replace("\\ ", " ")
            for word in words - {"--version"}:
                assert word in shown, (line, shown)
        assert "--silence-s" not in zsh.complete("relayd agent --s")
        assert "relayd serve --silence-s " in zsh.complete("relayd serve --sil")
    finally:
        zsh.close()


@pytest.mark.parametrize("shell", SHELLS)
def test_script_has_no_syntax_error(shell: str, scripts: Path) -> None:
    run(shell, {"bash": "-n", "zsh": "-n", "fish": "--no-execute"}[shell], str(scripts / shell))
